"""The BARTs of the paper's table 4: what is planted, which rows there are, what is timed, and the page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import _bart_page, _bart_shapes, _generation, _graphs, bart
from benchmarks._bart_shapes import BASE, LARGE, PLANS, Plan, Size
from benchmarks._generation import FORWARD, GENERATE, HEAD, PARTS, Workload
from benchmarks._workshop import read_arrays
from compactor.benching.report import report_problems
from compactor.runtime.profiling import NodeEvent
from tests.benchmarks.made_up import SETTINGS, in_this_process

TINY = Size("tiny", width=64, layers=2, heads=4, inner=64, vocabulary=99, positions=64)
TINY_PLANS = (Plan(TINY), Plan(TINY, 2.0), Plan(TINY, 2.0, half_empty=0.75))
PRUNED = TINY_PLANS[1]
WORKLOAD = Workload(source=12, tokens=5, beams=2)
OPTIONS = ["--source", "12", "--tokens", "5", "--beams", "2", "--rounds", "2", "--samples", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where all tests of this file build their models, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_graphs, "in_fresh_process", in_this_process)
        yield tmp_path_factory.mktemp("bart")


@pytest.fixture(scope="module")
def inputs(work: Path) -> Path:
    return bart.write_inputs(work, WORKLOAD, TINY.vocabulary)


# What is planted


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_the_decoder_is_compressed_by_its_factor_and_the_whole_as_published(plan: Plan) -> None:
    dense = plan.size.encoder_weights + plan.size.decoder_weights
    assert plan.size.decoder_weights / plan.decoder_weights == pytest.approx(plan.factor, rel=1e-3)
    expected = 1 / plan.factor if plan.density is None else plan.density
    assert plan.linear_weights / dense == pytest.approx(expected, rel=1e-3)


def test_the_dense_models_are_those_of_the_paper() -> None:
    millions = [(size.encoder_weights + size.decoder_weights) / 1e6 for size in (BASE, LARGE)]
    assert [round(count) for count in millions] == [99, 352]


def test_half_empty_heads_are_as_many_as_published_and_hold_fewer_weights() -> None:
    plan = next(plan for plan in PLANS if plan.half_empty is not None)
    assert sum(sum(stack.kept_heads) for stack in plan.stacks.values()) == 155
    for stack in plan.stacks.values():
        for heads, weights in zip(stack.kept_heads, stack.attention_nnz, strict=True):
            assert weights < heads * plan.size.head_weights


def test_layers_differ_and_stay_within_what_there_is() -> None:
    found = _bart_shapes.spread(60, 12, 8, np.random.default_rng(0))
    assert sum(found) == 60
    assert min(found) >= 1
    assert max(found) <= 12
    assert len(set(found)) > 2
    assert _bart_shapes.spread(24, 12, 2, np.random.default_rng(0)) == [12, 12]
    for total in (1, 25):
        with pytest.raises(ValueError, match=f"expected a sum from 2 to 24, got {total}"):
            _bart_shapes.spread(total, 12, 2, np.random.default_rng(0))


def test_names_are_unique_and_say_what_was_done() -> None:
    assert [plan.name for plan in PLANS] == [
        *("base-dense", "base-2.6", "base-3.4", "base-3.4-hybrid"),
        *("large-dense", "large-2.0", "large-3.5"),
    ]


@pytest.mark.parametrize("plan", TINY_PLANS, ids=lambda plan: plan.name)
def test_the_planted_model_has_the_zeros_of_its_plan_and_no_zero_bias(plan: Plan, work: Path) -> None:
    import torch

    model = _graphs.load_torch(bart.Bart(work, plan).checkpoint())
    halves = {"encoder": model.model.encoder.layers, "decoder": model.model.decoder.layers}
    halves["cross"] = halves["decoder"]
    for kind, stack in plan.stacks.items():
        for index, layer in enumerate(halves[kind]):
            attention = layer.encoder_attn if kind == "cross" else layer.self_attn
            weights = [attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj]
            rows = [weight.weight if i < 3 else weight.weight.T for i, weight in enumerate(weights)]
            for matrix in rows:
                assert int(matrix.reshape(4, -1).any(dim=1).sum()) == stack.kept_heads[index]
            live = sum(int(torch.count_nonzero(matrix)) for matrix in rows)
            assert live == pytest.approx(stack.attention_nnz[index], abs=16 * 32 if plan.half_empty is not None else 0)
            if kind != "cross":
                assert int(layer.fc1.weight.any(dim=1).sum()) == stack.kept_ffn[index]
                assert int(layer.fc2.weight.any(dim=0).sum()) == stack.kept_ffn[index]
    biases = [tensor for name, tensor in model.state_dict().items() if name.endswith("bias")]
    assert all(bool(bias.any()) for bias in biases)
    assert model.state_dict()["final_logits_bias"].any()


@pytest.mark.slow
def test_an_artefact_with_other_sizes_is_refused(work: Path) -> None:
    shop = bart.Bart(work, PRUNED)
    manifest = json.loads((shop.artefact() / "compactor.json").read_text(encoding="utf-8"))
    _bart_shapes.check_sizes(PRUNED, manifest["layers"])
    manifest["layers"][0]["heads"][1] += 1
    with pytest.raises(AssertionError, match=manifest["layers"][0]["path"]):
        _bart_shapes.check_sizes(PRUNED, manifest["layers"])


# Which rows there are


def _shops(work: Path) -> list[bart.Bart]:
    return [bart.Bart(work, plan) for plan in PLANS]


def test_each_model_is_measured_in_both_precisions_and_dense_ones_in_pytorch(tmp_path: Path) -> None:
    rows = bart.make_rows(_shops(tmp_path), None, build=True)
    assert [row.id for row in rows if row.shop.plan.size is LARGE] == [
        *("large-dense-torch", "large-dense-fp32", "large-dense-int8"),
        *("large-2.0-fp32", "large-2.0-int8", "large-3.5-fp32", "large-3.5-int8"),
    ]
    assert {row.missing for row in rows} == {None}


def test_what_is_not_chosen_or_not_built_is_a_row_that_says_so(tmp_path: Path) -> None:
    for built in ("checkpoint", bart.ARTEFACT):
        (tmp_path / "bart-base-dense" / built).mkdir(parents=True)
    rows = bart.make_rows(_shops(tmp_path), ["base-3.4"], build=False)
    reasons = {row.id: row.make().reason for row in rows if row.precision == "int8" or row.engine == "torch"}
    other = "not run: it was not chosen (--only)"
    assert reasons == {
        "base-dense-torch": None,
        "base-dense-int8": None,
        "base-2.6-int8": other,
        "base-3.4-int8": f"not run: {bart.NO_BUILD}",
        "base-3.4-hybrid-int8": other,
        "large-dense-torch": other,
        "large-dense-int8": other,
        "large-2.0-int8": other,
        "large-3.5-int8": other,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "base-9"], "there is no 'base-9'; there are base-dense, base-2.6"),
        (["--no-build"], "--build-only and --no-build need --work"),
        (["--work", "w", "--build-only", "--no-build"], "exclude each other"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bart.main(options)
    assert message in capsys.readouterr().err


# What is timed


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_a_process_times_both_cases_and_splits_a_generation(
    engine: str, work: Path, inputs: Path, tmp_path: Path
) -> None:
    shop = bart.Bart(work, PRUNED)
    path = shop.checkpoint() if engine == "torch" else shop.artefact()
    clock = bart.Clock(warm_up_s=0.0, warm_up_calls=0, measure_s=0.0, min_samples=2)
    how = dataclasses.replace(SETTINGS, clock=clock)
    found = _generation.measure_variant(engine, path, "fp32", inputs, WORKLOAD, how, tmp_path / "answers.npz")
    assert {case: len(result["samples_ms"]) for case, result in found["cases"].items()} == {FORWARD: 2, GENERATE: 2}
    assert all(found["parts"][part] > 0 for part in PARTS)
    assert found["parts"]["steps"] == WORKLOAD.tokens - 1
    with np.load(tmp_path / "answers.npz") as answers, np.load(shop.answers(inputs, WORKLOAD)) as reference:
        assert answers["logits"].shape == (1, WORKLOAD.tokens, TINY.vocabulary)
        assert answers["tokens"].shape == (1, WORKLOAD.tokens + 1)
        np.testing.assert_allclose(answers["logits"], reference["logits"], atol=1e-4)
        np.testing.assert_array_equal(answers["tokens"], reference["tokens"])


@pytest.mark.slow
def test_what_is_watched_works_as_before_afterwards(work: Path, inputs: Path) -> None:
    model = _generation.Model("onnxruntime", bart.Bart(work, PRUNED).artefact(), threads=1)
    ids = np.load(inputs)["ids"]
    before = model.generate(ids, WORKLOAD)
    first = _generation.split(model, ids, WORKLOAD)
    assert _generation.split(model, ids, WORKLOAD)["steps"] == first["steps"]
    np.testing.assert_array_equal(model.generate(ids, WORKLOAD), before)


@pytest.mark.slow
@pytest.mark.parametrize("precision", bart.PRECISIONS)
def test_the_profile_of_a_step_tells_its_parts(precision: str, work: Path) -> None:
    found = _generation.profile_step(bart.Bart(work, PRUNED).artefact(), precision, WORKLOAD, 1)
    assert {"attention", "cross_attention", "feed_forward", HEAD} <= set(found["parts"])
    assert sum(found["parts"].values()) == pytest.approx(found["ms"], rel=0.01)


def test_the_head_is_what_gives_scores_for_the_vocabulary() -> None:
    event = NodeEvent(0, "lm_head/MatMul", "MatMul", "cpu", (), (("float", (2, 1, 99)),), 1)
    assert _generation.step_part(event, 99) == HEAD
    named = dataclasses.replace(event, name="decoder.layers.1.cross_attention/MatMul")
    assert _generation.step_part(named, 98) == "cross_attention"
    assert _generation.step_part(event, 98) == "other"


def test_tokens_count_up_to_the_first_that_differs() -> None:
    expected = np.array([[2, 5, 6, 7]])
    assert bart.agreement(expected, expected) == 3
    assert bart.agreement(expected, np.array([[2, 5, 9, 7]])) == 1
    assert bart.agreement(expected, np.array([[2, 5]])) == 1
    assert bart.agreement(expected, np.array([[2, 9, 6, 7]])) == 0


# The whole way


@pytest.fixture(scope="module")
def out(work: Path) -> Path:
    """The result of a run of all tiny models but one."""
    path = work / "results" / "bart-tiny.json"
    arguments = ["--work", str(work), "--only", PRUNED.name, "--out", str(path), *OPTIONS]
    assert bart.main([*arguments, "--build-only"], TINY_PLANS) == 0
    assert not path.exists(), "it only builds"
    assert bart.main([*arguments, "--no-build"], TINY_PLANS) == 0
    return path


@pytest.mark.slow
def test_the_report_is_one_of_the_harness(out: Path) -> None:
    result = json.loads(out.read_text(encoding="utf-8"))
    report = result["reports"]["tiny"]
    assert report_problems(report) == []
    status = {variant["id"]: variant["status"] for variant in report["variants"]}
    assert {name for name, found in status.items() if found != "measured"} == {
        "tiny-2.0-hybrid-fp32",
        "tiny-2.0-hybrid-int8",
    }
    for variant in report["variants"]:
        for measured in variant["results"]:
            assert [len(samples) for samples in measured["rounds_ms"]] == [1, 1]
    assert "--work" not in report["command"]
    assert result["details"]["tiny"]["tokens"]["tiny-dense-fp32"] == WORKLOAD.tokens
    assert result["details"]["tiny"]["errors"]["tiny-2.0-fp32"] < 1e-4


@pytest.mark.slow
def test_the_page_tells_speed_and_where_the_time_goes(out: Path) -> None:
    page = out.with_suffix(".md").read_text(encoding="utf-8")
    for line in (
        "| BART-tiny 2.0×: ours int8 |",
        "BART-tiny 2.0× with half-empty heads: ours fp32: not run: it was not chosen (--only).",
        f"| model | {' | '.join(PARTS)} | a step |",
        f"share of {HEAD}",
        "INVALID: fewer than 6 processes",
    ):
        assert line in page, line


@pytest.mark.slow
def test_another_size_keeps_what_was_measured(out: Path, work: Path) -> None:
    earlier = json.loads(out.read_text(encoding="utf-8"))
    result = {"kind": earlier["kind"], "workload": earlier["workload"], "reports": {}, "details": {}}
    bart._carry_over(result, earlier)
    assert list(result["reports"]) == ["tiny"]
    other = {**result, "workload": {**earlier["workload"], "beams": 9}, "reports": {}, "details": {}}
    bart._carry_over(other, earlier)
    assert other["reports"] == {}, "of another workload"


@pytest.mark.slow
def test_each_size_says_how_it_was_measured(out: Path) -> None:
    result = json.loads(out.read_text(encoding="utf-8"))
    result["reports"]["other"] = {**result["reports"]["tiny"], "command": "another command"}
    result["details"]["other"] = result["details"]["tiny"]
    _, first, second = _bart_page.render(result).split("## ")
    assert f"`{result['reports']['tiny']['command']}`" in first and "`another command`" not in first
    assert "`another command`" in second and f"{result['reports']['tiny']['command']}`" not in second


@pytest.mark.slow
def test_the_bar_is_judged_by_the_ratio(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))["reports"]["tiny"]
    monkeypatch.setattr(_bart_page, "BAR_PLAN", PRUNED.name)
    assert "1e-09×, reached" in (_bart_page.bar_line(report, "int8", 1e-9) or "")
    assert "1e+09×, missed" in (_bart_page.bar_line(report, "int8", 1e9) or "")
    monkeypatch.setattr(_bart_page, "BAR_PLAN", TINY_PLANS[2].name)
    assert _bart_page.bar_line(report, "int8", 1.0) is None


@pytest.mark.slow
def test_wrong_answers_fail_the_row(work: Path, inputs: Path) -> None:
    shop = bart.Bart(work, PRUNED)
    row, measured = bart.make_rows([shop], None, build=True)[0], bart.Measured()
    reference = read_arrays(shop.answers(inputs, WORKLOAD))
    details: dict[str, Any] = {"errors": {}, "tokens": {}}
    bart.check(row, measured, reference, reference | {"logits": reference["logits"] * 1.01}, details)
    assert measured.error is not None
    assert "its logits are off PyTorch's by 0.01" in str(measured.error["what"])
    assert details == {"errors": {}, "tokens": {row.id: WORKLOAD.tokens}}


@pytest.mark.slow
def test_a_process_that_fails_is_a_row_that_says_so(work: Path) -> None:
    def fail() -> dict[str, Any]:
        raise FileNotFoundError("there is no such model")

    assert bart._in_process(fail) == "FileNotFoundError: there is no such model"
