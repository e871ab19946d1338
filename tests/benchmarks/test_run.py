"""Rows that cannot be built say why, and rows with wrong answers lose their times."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks import _graphs, _run
from benchmarks._graphs import BuildError
from benchmarks._workshop import Given, Outputs, parse_shapes, relative_error
from compactor.benching.processes import Measurements
from tests.benchmarks.made_up import CASE, SETTINGS, measured, row

ANSWER: Outputs = [{"logits": np.array([3.0, 4.0])}]


def _checked(folder: Path, answers: dict[str, np.ndarray], **fields: object) -> tuple[dict, Measurements]:
    """The errors and the measurements after the check of a row that gave ``answers``."""
    one = row("one", folder, **fields)
    (folder / "one").mkdir()
    np.savez(folder / "one" / f"{CASE.id}.0.npz", **answers)
    found = _run.Run([one.make()], [CASE], SETTINGS, Measurements({"one": measured([[1.0]])}))
    _run.check([one], found, folder)
    return found.errors, found.measurements


@pytest.fixture(autouse=True)
def _reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Given, "reference", lambda self, cases: {case.id: ANSWER for case in cases})


def test_right_answers_keep_their_times(tmp_path: Path) -> None:
    errors, measurements = _checked(tmp_path, {"logits": np.array([3.0, 4.00001])})
    assert 0 < errors["one"][CASE.id] < _run.EXACT
    assert measurements.variants["one"].error is None


@pytest.mark.parametrize(
    "answers",
    [{"logits": np.array([3.0, 4.1])}, {"logits": np.array([3.0, np.nan])}, {"other": np.array([3.0, 4.0])}],
    ids=["wrong", "not a number", "another output"],
)
def test_wrong_answers_fail_the_row(tmp_path: Path, answers: dict[str, np.ndarray]) -> None:
    errors, measurements = _checked(tmp_path, answers)
    assert errors["one"][CASE.id] is None or errors["one"][CASE.id] > _run.EXACT
    error = measurements.variants["one"].error
    assert error is not None
    assert "off PyTorch's" in str(error["what"])
    assert "at 1x8, more than 0.0001" in str(error["what"])


def test_a_row_is_judged_by_its_own_tolerance(tmp_path: Path) -> None:
    _, measurements = _checked(tmp_path, {"logits": np.array([3.0, 4.1])}, bound=_run.LOOSE)
    assert measurements.variants["one"].error is None


def test_answers_can_be_made_from_what_the_engine_gives(tmp_path: Path) -> None:
    adapt = lambda arrays, shop: {"logits": arrays["half"] * 2}  # noqa: E731
    errors, measurements = _checked(tmp_path, {"half": np.array([1.5, 2.0])}, adapt=adapt)
    assert errors["one"][CASE.id] == 0
    assert measurements.variants["one"].error is None


def test_a_row_that_failed_or_was_never_run_is_not_checked(tmp_path: Path) -> None:
    one, two = row("one", tmp_path), row("two", tmp_path)
    failed = measured([[1.0]])
    failed.error = {"what": "it fell over", "where": None, "todo": None}
    found = _run.Run([one.make(), two.make()], [CASE], SETTINGS, Measurements({"one": failed}))
    _run.check([one, two], found, tmp_path)
    assert found.errors == {}
    assert failed.error["what"] == "it fell over"


def test_what_is_missing_is_the_reason_and_nothing_is_built(tmp_path: Path) -> None:
    def build() -> Path:
        raise AssertionError("built")

    made = dataclasses.replace(row("one", tmp_path, missing="no such tool"), build=build).make()
    assert made.reason == "not run: no such tool"


def test_a_tool_that_refuses_is_the_reason(tmp_path: Path) -> None:
    def build() -> Path:
        raise BuildError("it does not know this operator")

    made = dataclasses.replace(row("one", tmp_path), build=build).make()
    assert made.reason == "not run: it does not know this operator"


def test_a_build_that_is_killed_is_the_reason(tmp_path: Path) -> None:
    build = functools.partial(_graphs.in_fresh_process, os._exit, 9)
    made = dataclasses.replace(row("one", tmp_path), build=build).make()
    assert "ended from outside: out of memory is the usual reason" in str(made.reason)


def test_a_graph_that_the_quantizer_refuses_is_the_reason(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(onnx.ModelProto(ir_version=10).SerializeToString())  # without an opset
    build = functools.partial(_graphs.quantize, source, tmp_path / "quantized.onnx")
    assert str(dataclasses.replace(row("one", tmp_path), build=build).make().reason).startswith(
        "not run: quantize_dynamic: "
    )


def test_a_row_that_is_built_has_no_reason(tmp_path: Path) -> None:
    made = row("one", tmp_path, precision="int8").make()
    assert made.reason is None
    assert made.path == tmp_path / "model.onnx"
    assert (made.target, made.precision) == ("model", "int8")


def test_relative_error_is_a_share_of_the_reference_over_all_outputs() -> None:
    reference = [{"x": np.array([3.0]), "y": np.array([0.0])}, {"x": np.array([4.0]), "y": np.array([0.0])}]
    other = [{"x": np.array([3.0]), "y": np.array([0.0])}, {"x": np.array([4.0]), "y": np.array([0.5])}]
    assert relative_error(reference, reference) == 0
    assert relative_error(reference, other) == pytest.approx(0.1)


def test_an_output_that_is_missing_is_an_error() -> None:
    with pytest.raises(AssertionError, match=r"\['x'\], got \['y'\]"):
        relative_error([{"x": np.ones(1)}], [{"y": np.ones(1)}])


@pytest.mark.parametrize("text", ["8", "8x", "x8", "0x8", "8x-1", "axb", "1x8,"])
def test_a_shape_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SystemExit, match="expected a shape such as 8x128, got"):
        parse_shapes(text)
    assert parse_shapes("8x128,1x32") == [(8, 128), (1, 32)]


def test_the_recorded_command_names_no_place_of_this_machine() -> None:
    argv = ["--work", "/a/b", "--f1", "87.7", "--optimum-python", "/c/d"]
    assert _run.command("peers.py", argv) == "python benchmarks/peers.py --f1 87.7 --optimum-python OPTIMUM_PYTHON"
    assert _run.command("peers.py", ["--work=/a/b", "--rounds=3"]) == "python benchmarks/peers.py --rounds=3"
    assert _run.command("peers.py", ["--out", "/a/b.json"]) == "python benchmarks/peers.py --out b.json"
    inside = str(Path(_run.__file__).parent / "results" / "b.json")
    assert _run.command("peers.py", [f"--out={inside}"]).endswith("--out benchmarks/results/b.json")


def test_turns_go_forwards_and_backwards(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(_run.turns(["a", "b"], 2)) == ["a", "b", "b", "a"]
    assert capsys.readouterr().err.splitlines()[2] == "round 2 of 2: b"
