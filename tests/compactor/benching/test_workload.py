from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest

from compactor.benching.request import Request
from compactor.benching.workload import (
    default_lengths,
    from_data,
    from_lengths,
    plan_workload,
    summarise_lengths,
    synthetic,
)
from compactor.errors import ExitCode, ModelDirectoryError, UsageError
from compactor.evaluation.inputs import InputSpec
from compactor.runtime.bucketing import Examples
from tests.compactor.evaluation.texts import CONFIG, SPECIAL, ids, write_tokenizer

CASE_KEYS = {"id", "batch", "seq", "batches", "examples", "tokens", "positions", "bucketed", "part"}
INPUTS = {"input_ids", "attention_mask", "token_type_ids"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("model"))


def spec_for(home, task="text-classification", **config):
    return InputSpec.from_config({**CONFIG, **config}, task=task, folder=home)


def load(file):
    with np.load(file) as arrays:
        return dict(arrays)


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else "\n".join(json.dumps(row) for row in content), "utf-8")
        return path

    return write


def sentences(*lengths):
    """A TSV of sentences that become that many tokens, special ones included."""
    rows = [f"{' '.join(['film'] * (n - 2))}\t{i % 2}" for i, n in enumerate(lengths)]
    return "sentence\tlabel\n" + "\n".join(rows) + "\n"


# Random tokens


def test_one_case_for_each_length_and_batch(tmp_path, home):
    workload = synthetic(tmp_path, spec_for(home), batches=(1, 4, 4), seqs=(3, 12))
    assert [case.id for case in workload.cases] == ["1x3", "4x3", "1x12", "4x12"]
    for case in workload.cases:
        (file,) = case.files
        feeds = load(file)
        assert feeds.keys() == INPUTS
        for array in feeds.values():
            assert array.shape == (case.batch, case.seq)
            assert array.dtype == np.int64
        assert feeds["attention_mask"].all()
        assert case.tokens == case.positions == case.batch * case.seq
        assert case.examples == case.batch
        assert case.bucketed is None


def test_random_tokens_are_ordinary_and_the_same_for_the_same_seed(tmp_path, home):
    def tokens(folder, seed):
        (case,) = synthetic(tmp_path / folder, spec_for(home), batches=(64,), seqs=(12,), seed=seed).cases
        return load(case.files[0])["input_ids"]

    found = tokens("a", 1)
    assert set(np.unique(found)) == set(range(len(SPECIAL), CONFIG["vocab_size"]))
    np.testing.assert_array_equal(found, tokens("b", 1))
    assert (found != tokens("c", 2)).any()


def test_a_vocabulary_of_special_tokens_still_avoids_padding():
    spec = InputSpec(vocabulary=3, padding=1, special=frozenset({0, 1, 2}))
    assert set(np.unique(spec.random_tokens(np.random.default_rng(0), 50)["input_ids"])) == {0, 2}


def test_a_length_over_the_maximum_is_refused_with_the_limit(tmp_path, home):
    with pytest.raises(UsageError, match="13 tokens are more than the model takes: its maximum is 12") as caught:
        synthetic(tmp_path, spec_for(home), batches=(1,), seqs=(12, 13))
    assert caught.value.exit_code == ExitCode.USAGE
    assert "at most 12" in caught.value.todo


@pytest.mark.parametrize(("batches", "seqs"), [((0,), (3,)), ((), (3,)), ((1,), (0,)), ((1,), (-4,))])
def test_numbers_that_are_no_size_are_refused(tmp_path, home, batches, seqs):
    with pytest.raises(UsageError, match="expected"):
        synthetic(tmp_path, spec_for(home), batches=batches, seqs=seqs)


@pytest.mark.parametrize(
    ("limit", "lengths"), [(None, [32, 128, 384]), (512, [32, 128, 384]), (128, [32, 128]), (12, [12])]
)
def test_default_lengths_fit_the_model(limit, lengths):
    assert default_lengths(InputSpec(vocabulary=9, max_tokens=limit)) == lengths


def test_images(tmp_path):
    spec = InputSpec.from_config({"image_size": 8}, task="image-classification", image=True)
    (case, other) = synthetic(tmp_path, spec, batches=(1, 3)).cases
    feeds = load(other.files[0])
    assert feeds.keys() == {"pixel_values"}
    assert feeds["pixel_values"].shape == (3, 3, 8, 8)
    assert feeds["pixel_values"].dtype == np.float32
    assert (case.seq, case.tokens) == (None, 0)
    with pytest.raises(UsageError, match="images"):
        synthetic(tmp_path, spec, batches=(1,), seqs=(8,))
    served = synthetic(tmp_path, spec, batches=(1,), scenario="server")
    assert Examples.load(served.queries).batch([0, 1])["pixel_values"].shape == (2, 3, 8, 8)


@pytest.mark.parametrize("size", [None, [8], 0, "8"])
def test_an_image_of_unknown_size_is_refused(size):
    with pytest.raises(ModelDirectoryError, match="how large an image"):
        InputSpec.from_config({"image_size": size}, task="image-classification", image=True)


def test_a_config_without_vocabulary_is_refused(home):
    with pytest.raises(ModelDirectoryError, match="vocab_size"):
        spec_for(home, vocab_size=None)
    with pytest.raises(ModelDirectoryError, match="id2label"):
        spec_for(home, id2label={"x": "a"})


def test_the_server_gets_queries_of_all_lengths(tmp_path, home):
    workload = synthetic(tmp_path, spec_for(home), batches=(1,), seqs=(3, 7), scenario="server")
    assert not workload.cases
    queries = Examples.load(workload.queries)
    assert set(queries.lengths) == {3, 7}
    assert queries[1].keys() == INPUTS


# Lengths


def test_lengths_from_a_file_become_random_tokens(tmp_path, home, write):
    file = write("lengths.txt", "3\n12\n5\n")
    workload = from_lengths(tmp_path / "in", file, spec_for(home), batches=(1, 2))
    single, double = workload.cases
    assert [load(path)["input_ids"].shape for path in single.files] == [(1, 3), (1, 12), (1, 5)]
    assert [load(path)["input_ids"].shape for path in double.files] == [(2, 12)]  # the lone third would be faster
    assert (double.examples, double.tokens, double.positions) == (2, 15, 24)
    assert workload.scoring is None
    block = workload.to_json()
    assert block["kind"] == "lengths"
    assert block["file"] == "lengths.txt"
    assert block["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert block["examples"] == 3
    assert block["lengths"] == {"min": 3, "median": 5.0, "p90": 10.6, "p95": 11.3, "max": 12, "mean": 6.67}


def test_a_length_in_a_file_over_the_maximum_is_refused(tmp_path, home, write):
    with pytest.raises(UsageError, match="13 tokens are more than") as caught:
        from_lengths(tmp_path, write("lengths.txt", "3\n13\n"), spec_for(home), batches=(1,))
    assert caught.value.where.endswith("lengths.txt")


def test_texts_without_labels_have_lengths(tmp_path, home, write):
    workload = from_lengths(tmp_path / "in", write("a.tsv", "text\nthe film\ngood\n"), spec_for(home), batches=(1,))
    assert workload.kind == "lengths"
    (case,) = workload.cases
    assert load(case.files[0])["input_ids"].tolist() == [ids("[CLS] the film [SEP]")]


def test_summary_of_lengths():
    assert summarise_lengths(np.arange(1, 101)) == {
        "min": 1,
        "median": 50.5,
        "p90": 90.1,
        "p95": 95.0,
        "max": 100,
        "mean": 50.5,
    }


# Scenarios on real text


def test_single_takes_full_batches_in_the_order_of_the_file(tmp_path, home, write):
    file = write("a.tsv", sentences(3, 9, 4, 8, 5))
    workload = from_data(tmp_path / "in", file, spec_for(home), batches=(1, 2))
    one, two = workload.cases
    assert (one.id, two.id) == ("batch 1", "batch 2")
    assert [load(path)["attention_mask"].sum() for path in one.files] == [3, 9, 4, 8, 5]
    assert [load(path)["input_ids"].shape for path in two.files] == [(2, 9), (2, 8)]
    feeds = load(two.files[0])
    assert feeds["input_ids"][0].tolist() == ids("[CLS] film [SEP]") + [0] * 6
    assert feeds["attention_mask"].sum(1).tolist() == [3, 9]


def test_offline_takes_the_same_tokens_in_order_and_bucketed(tmp_path, home, write):
    file = write("a.tsv", sentences(3, 9, 4, 8, 5))
    workload = from_data(tmp_path / "in", file, spec_for(home), batches=(1, 2), scenario="offline")
    alone, ordered, bucketed = workload.cases
    assert (alone.bucketed, ordered.bucketed, bucketed.bucketed) == (None, False, True)
    assert [load(path)["input_ids"].shape for path in ordered.files] == [(2, 9), (2, 8), (1, 5)]
    assert [load(path)["input_ids"].shape for path in bucketed.files] == [(2, 9), (2, 5), (1, 3)]
    for case in workload.cases:
        assert (case.examples, case.tokens) == (5, 29)
    assert (alone.positions, ordered.positions, bucketed.positions) == (29, 39, 31)


def test_a_batch_larger_than_the_file_is_one_of_all_and_said(tmp_path, home, write):
    file = write("a.tsv", sentences(3, 9))
    for scenario in ("single", "offline"):
        workload = from_data(tmp_path / scenario, file, spec_for(home), batches=(2, 8), scenario=scenario)
        (case,) = workload.cases
        assert (case.batch, case.examples, case.bucketed) == (2, 2, None)
        assert workload.notes == ["A batch of 8 is one of 2, as there are no more examples."]


def test_few_are_timed_and_all_are_scored(tmp_path, home, write):
    lengths = [3 + i // 10 for i in range(100)]
    file = write("a.tsv", sentences(*lengths))
    workload = from_data(tmp_path / "in", file, spec_for(home), batches=(1,), limit=10)
    (case,) = workload.cases
    assert case.examples == 10
    assert sorted(int(load(path)["attention_mask"].sum()) for path in case.files) == list(range(3, 13))
    assert workload.notes == ["Timed on 10 of the 100 examples, chosen so that the lengths are as in all."]
    assert workload.scoring.examples == 100
    assert len(workload.scoring.files) == 4  # batches of 32
    masks = [mask for path in workload.scoring.files for mask in load(path)["attention_mask"]]
    assert [int(mask.sum()) for mask in masks] == lengths
    assert workload.metrics == ("accuracy",)
    assert workload.labelled.references == [i % 2 for i in range(100)]


def test_the_block_of_the_report(tmp_path, home, write):
    file = write("a.tsv", sentences(3, 9, 4))
    block = from_data(tmp_path / "in", file, spec_for(home), batches=(2,), scenario="offline").to_json()
    assert json.loads(json.dumps(block)) == block
    assert all(case.keys() == CASE_KEYS for case in block["cases"])
    assert block["cases"][1] == {
        "id": "batch 2, bucketed",
        "batch": 2,
        "seq": None,
        "batches": 2,
        "examples": 3,
        "tokens": 16,
        "positions": 21,
        "bucketed": True,
        "part": None,
    }
    empty = synthetic(tmp_path, spec_for(home), batches=(1,), seqs=(3,)).to_json()
    assert (empty["kind"], empty["file"], empty["sha256"], empty["examples"], empty["lengths"]) == (
        "synthetic",
        *(None,) * 4,
    )


def test_the_server_gets_the_texts(tmp_path, home, write):
    file = write("a.tsv", sentences(3, 9, 4))
    workload = from_data(tmp_path / "in", file, spec_for(home), batches=(1,), scenario="server")
    assert Examples.load(workload.queries).lengths.tolist() == [3, 9, 4]
    assert workload.scoring is not None


def test_a_single_example_is_timed_and_not_judged(tmp_path, home, write):
    file = write("a.tsv", sentences(5))
    workload = from_data(tmp_path / "in", file, spec_for(home), batches=(1,))
    assert (workload.scoring, workload.metrics) == (None, ())
    assert "single example" in workload.notes[0]
    with pytest.raises(UsageError, match="two examples"):
        from_data(tmp_path / "in", file, spec_for(home), batches=(1,), metric="accuracy")


# Request


def targets(home, **changes):
    fields = {"config": CONFIG, "task": "text-classification", "tokenizer": home, "image": False, "max_length": 12}
    return SimpleNamespace(**{**fields, "generates": False, **changes})


def plan(folder, targets, **request):
    return plan_workload(folder, Request([], batches=(1,), **request), targets)


def test_the_request_chooses_the_source(tmp_path, home, write):
    data, lengths = write("a.tsv", sentences(3, 4)), write("lengths.txt", "3\n")
    assert plan(tmp_path / "a", targets(home)).cases[0].id == "1x12"
    assert plan(tmp_path / "b", targets(home), lengths=lengths).kind == "lengths"
    judged = plan(tmp_path / "c", targets(home), data=data, metric="f1,accuracy")
    assert judged.metric == "f1,accuracy"
    with pytest.raises(UsageError, match="two sources"):
        plan(tmp_path, targets(home), data=data, lengths=lengths)
    for source in ({}, {"lengths": lengths}):
        with pytest.raises(UsageError, match="--metric accuracy needs labelled examples"):
            plan(tmp_path, targets(home), metric="accuracy", **source)


def test_the_shortest_model_decides(tmp_path, home):
    with pytest.raises(UsageError, match="maximum is 6"):
        plan(tmp_path, targets(home, max_length=6), seqs=(7,))


def test_images_have_neither_texts_nor_lengths(tmp_path, home, write):
    images = targets(home, image=True, config={"image_size": 4}, task="image-classification")
    for option in ({"lengths": write("lengths.txt", "3\n")}, {"data": write("a.tsv", sentences(3))}):
        with pytest.raises(UsageError, match="images"):
            plan(tmp_path, images, **option)
