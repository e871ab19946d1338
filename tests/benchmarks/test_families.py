"""The encoder families: what is planted, the plain export and its mending, which rows there are, and the whole way."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from benchmarks import _family_models, _graphs, families
from benchmarks._families_page import SST2
from benchmarks._family_models import FAMILIES, Family, FamilyModel, left
from benchmarks._mending import repeat_rotary_tables
from benchmarks._run import EXACT, STATIC
from compactor.benching.report import report_problems
from tests.benchmarks.made_up import in_this_process

TINY = {family.name: family.tiny for family in FAMILIES}
MILLIONS = {
    "bert": 109,
    "modernbert": 150,
    "deberta": 184,
    "gte": 137,
    "esm": 148,
    "vit": 87,
}  # published, with a head of ours
HEADS, NEURONS = (4, 2), (48, 16)  # of a tiny layer, before and after
OPTIONS = ["--rounds", "1", "--measure-s", "0", "--threads", "1", "--shapes", "1x8,2x16", "--sentences", "33"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where all tests of this file build their models: in this process, as on a machine without the peers."""
    find = importlib.util.find_spec
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_graphs, "in_fresh_process", in_this_process)
        patch.setattr(importlib.util, "find_spec", lambda name: None if name in ("openvino", "nncf") else find(name))
        patch.delenv("OPTIMUM_PYTHON", raising=False)
        yield tmp_path_factory.mktemp("families")


# What is planted


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_sizes_are_the_published_ones(family: Family) -> None:
    kind = getattr(transformers, family.architecture)
    with torch.device("meta"):
        model = kind(kind.config_class(**family.settings))
    assert round(sum(tensor.numel() for tensor in model.parameters()) / 1e6) == MILLIONS[family.name]


def _blocks(family: Family, layer: Any) -> Iterator[tuple[list[torch.Tensor], torch.Tensor, int, int]]:
    """What makes heads, then neurons, and what reads them, ``(units, ...)`` each; how many units there are and live."""
    for makers, reader, sizes in (
        (family.attention, family.attention_output, HEADS),
        (family.neurons, family.neurons_output, NEURONS),
    ):
        width = layer.get_submodule(reader).in_features
        parts = [part for maker in makers for part in layer.get_submodule(maker).weight.split(width)]
        read = layer.get_submodule(reader).weight.T
        yield [part.reshape(sizes[0], -1) for part in parts], read.reshape(sizes[0], -1), *sizes


@pytest.mark.parametrize("family", TINY.values(), ids=TINY)
def test_half_of_the_heads_and_two_thirds_of_the_neurons_are_dead_and_no_bias_is(family: Family, work: Path) -> None:
    dense, pruned = (
        _graphs.load_torch(FamilyModel(work, family, pruned=pruned).checkpoint()) for pruned in (False, True)
    )
    for number in range(2):
        path = family.layer.format(number)
        both = zip(_blocks(family, dense.get_submodule(path)), _blocks(family, pruned.get_submodule(path)), strict=True)
        for (whole, whole_read, units, live), (parts, read, *_) in both:
            assert len(parts) == (3 if units == HEADS[0] else 1 + (family.name[5:] in ("modernbert", "gte")))
            alive = read.any(dim=1)
            assert int(alive.sum()) == live
            for before, after in zip([*whole, whole_read], [*parts, read], strict=True):
                assert before.all(), "the dense model has no zeros"
                torch.testing.assert_close(after, before * alive[:, None])
    biases = [tensor for name, tensor in pruned.named_parameters() if name.endswith("bias")]
    assert biases and all(bool(bias.all()) for bias in biases)


@pytest.mark.parametrize("name", ["deberta", "gte", "esm", "vit"])
def test_what_is_dead_does_not_change_the_answer(name: str, work: Path) -> None:
    family = TINY[name]
    shop = FamilyModel(work, family, pruned=True)
    model = _graphs.load_torch(shop.checkpoint())
    changed = copy.deepcopy(model)
    for number in range(2):
        layer = changed.get_submodule(family.layer.format(number))
        for maker, reader in (
            (family.attention[2], family.attention_output),
            (family.neurons[-1], family.neurons_output),
        ):
            dead = ~layer.get_submodule(reader).weight.any(dim=0)
            bias = layer.get_submodule(maker).bias
            if bias is not None:
                bias[dead] += 5.0
    feeds = {
        key: torch.from_numpy(array)
        for key, array in _family_models.random_example(shop.spec(), 12, seed=1).items()
        if key in _graphs.inputs_of(model)
    }
    torch.testing.assert_close(changed(**feeds).logits, model(**feeds).logits)


def test_what_an_export_left_counts_what_it_recognised() -> None:
    layers = [
        {"kind": "attention", "heads": [4, 2]},
        {"kind": "feed_forward", "width": [48, 16]},
        {"kind": "feed_forward", "width": [32, 32]},  # of the head
        {"kind": "attention", "heads": [4, 3]},
    ]
    assert left(TINY["esm"], layers) == {"heads": [8, 5], "neurons": [48, 16]}


# The plain export


def _rotary_model(*, positions: bool = False) -> onnx.ModelProto:
    """Two RotaryEmbeddings that share tables of batch 1, (1, S, 2), as the exporter writes them."""
    extra = ["positions"] if positions else []
    nodes = [
        helper.make_node("RotaryEmbedding", [source, "cos", "sin", *extra], [f"{source}.turned"])
        for source in ("query", "key")
    ]
    states = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 2, "S", 4])
        for name in ("query", "key", "query.turned", "key.turned")
    ]
    tables = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "S", 2]) for name in ("cos", "sin")]
    graph = helper.make_graph(nodes, "rotary", [*states[:2], *tables], states[2:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def test_mended_rotary_tables_serve_every_batch(tmp_path: Path) -> None:
    model = _rotary_model()
    assert repeat_rotary_tables(model) == 2
    onnx.checker.check_model(model, full_check=True)
    assert sum(node.op_type == "Expand" for node in model.graph.node) == 2, "the tables are shared"
    session = onnxruntime.InferenceSession(model.SerializeToString())
    random = np.random.default_rng(0)
    for batch in (1, 3):
        feeds = {name: random.normal(size=(batch, 2, 5, 4)).astype(np.float32) for name in ("query", "key")}
        angles = random.normal(size=(1, 5, 2))
        feeds |= {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
        wanted = ReferenceEvaluator(_rotary_model()).run(
            None, {**feeds, **{name: feeds[name].repeat(batch, axis=0) for name in ("cos", "sin")}}
        )
        for got, expected in zip(session.run(None, feeds), wanted, strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-6)
    with pytest.raises(Exception, match="expected to have the same shape"):
        onnxruntime.InferenceSession(_rotary_model().SerializeToString()).run(None, feeds)


def test_tables_that_are_read_by_position_are_right_already() -> None:
    model = _rotary_model(positions=True)
    before = model.SerializeToString()
    assert repeat_rotary_tables(model) == 0
    assert model.SerializeToString() == before


@pytest.mark.slow
def test_the_plain_export_of_images_takes_every_batch_and_is_quantized_without_its_convolution(work: Path) -> None:
    shop = FamilyModel(work, TINY["vit"], pruned=False)
    model = _graphs.load_torch(shop.checkpoint())
    feeds = shop.spec().random_images(np.random.default_rng(3), 3)
    expected = model(torch.from_numpy(feeds["pixel_values"])).logits.numpy()
    plain = shop.plain()
    quantized = shop.converted(plain, "-int8.onnx", _graphs.quantize)
    for path, bound in ((plain, 1e-5), (quantized, 0.05)):
        got = onnxruntime.InferenceSession(path).run(None, feeds)[0]
        assert np.abs(got - expected).max() <= bound * np.abs(expected).max()
    operators = [node.op_type for node in onnx.load(quantized).graph.node]
    assert operators.count("MatMulInteger") == 2 * 6 + 1 and "Conv" in operators


def test_what_the_exporter_refuses_is_a_row_that_says_why(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise torch.onnx.errors.OnnxExporterError("long\nstory") from ValueError("no such operator\nhints")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    monkeypatch.setattr(_graphs, "load_torch", lambda _: torch.nn.Linear(1, 1))
    monkeypatch.setattr(_graphs, "inputs_of", lambda _: {"pixel_values"})
    config = type("Config", (), {"image_size": 8, "num_channels": 3})
    monkeypatch.setattr(torch.nn.Linear, "config", config, raising=False)
    shop = dataclasses.replace(FamilyModel(work, TINY["vit"], pruned=True))
    row = families.make_rows(work, shop.family, None)[0]
    monkeypatch.setattr(FamilyModel, "folder", work / "refused")
    assert row.make().reason == "not run: torch.onnx.export: no such operator"


# Which rows there are


def test_only_what_is_asked_for_is_run_beside_the_baseline(tmp_path: Path) -> None:
    rows = families.make_rows(tmp_path, TINY["esm"], None)
    assert families.choose(rows, None) == rows
    assert [row.id for row in families.choose(rows, ["esm-pruned", "gte"])] == [
        *("tiny-esm-dense-plain-fp32", "tiny-esm-pruned-ours-fp32", "tiny-esm-pruned-ours-int8"),
    ]
    assert families.choose(rows, ["gte", "vit"]) == []


def test_nothing_chosen_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        SystemExit, match="--only albert chooses nothing; there are modernbert, deberta, gte, esm, vit, bert"
    ):
        families.main(["--only", "albert", "--tiny"])
    with pytest.raises(SystemExit):
        families.main(["--build-only"])
    assert "--build-only needs --work" in capsys.readouterr().err


def test_what_is_not_installed_is_a_row_that_says_so(work: Path) -> None:
    rows = {row.id.removeprefix("esm-dense-"): row for row in families.make_rows(work, FAMILIES[3], None)}
    assert {name: row.missing for name, row in rows.items() if row.missing} == {
        "optimum-fp32": "no interpreter with optimum-onnx given: --optimum-python",
        "optimum-int8": "no interpreter with optimum-onnx given: --optimum-python",
        "openvino-int8": "openvino and nncf not installed: pip install 'compactor[peers]'",
    }
    assert {row.tolerance for row in rows.values() if row.precision == "int8"} == {STATIC}
    assert {row.tolerance for row in rows.values() if row.precision == "fp32"} == {EXACT}


def test_an_export_that_fails_is_a_row_that_says_why(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> dict[str, Any]:
        raise RuntimeError("python -m compactor exited with 3:\nnoise\nerror: it has no 'vocab_size'\nto do: set it")

    monkeypatch.setattr(_family_models, "measure_command", fail)
    family = dataclasses.replace(TINY["vit"], name="failing")
    row = families.make_rows(work, family, None)[-1]
    assert row.make().reason == "not run: compactor export: error: it has no 'vocab_size' to do: set it"
    assert FamilyModel(work, family, pruned=True).cost() == {}


# The whole way


@pytest.fixture(scope="module")
def out(work: Path) -> Path:
    """The result of a run of some rows of a tiny family, built beforehand."""
    path = work / "results" / "families-tiny.json"
    rows = "modernbert-dense-plain,modernbert-dense-optimum-int8,modernbert-pruned"
    arguments = ["--tiny", "--only", rows, "--work", str(work), "--out", str(path), *OPTIONS]
    assert families.main([*arguments, "--build-only"]) == 0
    assert not path.exists(), "it only builds"
    assert families.main(arguments) == 0
    return path


@pytest.mark.slow
def test_the_report_is_one_of_the_harness(out: Path) -> None:
    entry = json.loads(out.read_text(encoding="utf-8"))["families"]["tiny-modernbert"]
    report = entry["report"]
    assert report_problems(report) == []
    assert [case["id"] for case in report["workload"]["cases"]] == ["1x8", "2x16", SST2]
    sentences = report["workload"]["cases"][2]
    assert (sentences["examples"], sentences["batches"]) == (33, 2)
    assert sentences["tokens"] < sentences["positions"]
    assert (report["workload"]["file"], report["workload"]["examples"]) == ("sst2.tsv", 872)
    status = {variant["id"].removeprefix("tiny-modernbert-"): variant["status"] for variant in report["variants"]}
    assert status == {
        **dict.fromkeys(("dense-plain-fp32", "dense-plain-int8", "pruned-ours-fp32", "pruned-ours-int8"), "measured"),
        "dense-optimum-int8": "not run",
    }
    assert all(error < 1e-4 for error in entry["relative_error"]["tiny-modernbert-pruned-ours-fp32"].values())
    assert "--work" not in report["command"]


@pytest.mark.slow
def test_exports_are_timed_and_their_sizes_told(out: Path) -> None:
    entry = json.loads(out.read_text(encoding="utf-8"))["families"]["tiny-modernbert"]
    assert entry["planted"] == {"heads": [8, 4], "neurons": [96, 32]}
    assert list(entry["exports"]) == ["pruned"], "the dense one was not chosen"
    cost = entry["exports"]["pruned"]
    assert cost["left"] == {"heads": [8, 4], "neurons": [96, 32]}
    assert cost["packed"] and cost["wall_s"] > 0
    assert cost["peak_bytes"] > 1e8
    assert cost["model_bytes"] > 50_368 * 32 * 4


@pytest.mark.slow
def test_profiles_tell_where_the_time_of_ours_goes(out: Path) -> None:
    report = json.loads(out.read_text(encoding="utf-8"))["families"]["tiny-modernbert"]["report"]
    blocks = {variant["id"]: variant["profiles"] for variant in report["variants"] if variant["profiles"]}
    assert set(blocks) == {"tiny-modernbert-dense-plain-int8", "tiny-modernbert-pruned-ours-int8"}
    for block in blocks["tiny-modernbert-pruned-ours-int8"]:
        assert {layer["name"] for layer in block["layers"]} >= {"layers.0.attention", "layers.1.feed_forward"}
    page = out.with_suffix(".md").read_text(encoding="utf-8")
    assert "| pruned: ours int8, SST-2 |" in page


@pytest.mark.slow
def test_another_family_keeps_what_was_measured(out: Path) -> None:
    earlier = json.loads(out.read_text(encoding="utf-8"))
    result: dict[str, Any] = {"families": {}}
    families.carry_over(result, earlier)
    assert list(result["families"]) == ["tiny-modernbert"]
    other: dict[str, Any] = {"families": {}}
    families.carry_over(other, {**earlier, "kind": "compactor-bart"})
    assert other["families"] == {}


def test_lengths_are_those_of_the_sentences(tmp_path: Path) -> None:
    data = tmp_path / "data.tsv"
    data.write_text("sentence\tlabel\nfine .\t1\nnot so fine , that is .\t0\n", encoding="utf-8")
    lengths = families.write_lengths(data, tmp_path / "inputs" / "lengths.txt").read_text(encoding="utf-8").split()
    assert lengths == ["4", "9"]  # with the tokens that begin and end a sentence
