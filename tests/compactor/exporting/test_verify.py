"""``compactor verify``: a good artefact passes; a changed file, another checkpoint and wrong numbers do not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from compactor.errors import VerificationError
from compactor.exporting.export import export
from compactor.exporting.verifying import onnxruntime_failures, verify
from tests.compactor import families
from tests.compactor.fakes import run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("verified")
    model = families.save(folder / "model", "bert")
    return model, export(model, folder / "out").path


@pytest.fixture
def artefact(made: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[1], tmp_path / "copy"))


def _spoil(artefact: Path) -> None:
    """Change one weight."""
    path = artefact / "onnx" / "model.onnx"
    saved = onnx.load(path)
    weight = max(saved.graph.initializer, key=lambda tensor: len(tensor.dims) == 2 and tensor.dims[0] == 24)
    array = numpy_helper.to_array(weight).copy()
    array[3, 2] += 1.5
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(saved, path)


def test_a_good_artefact(made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    model, artefact = made
    assert run("verify", artefact, model, "--json", "-q") == 0
    found = json.loads(capsys.readouterr().out)
    manifest = json.loads((artefact / "compactor.json").read_text())
    assert found["passed"]
    assert found["tolerance"] == manifest["verification"]["tolerance"]
    names = [(case["stage"], case["case"], case["optimizations"]) for case in found["cases"]]
    assert names == [(c["stage"], c["case"], c["optimizations"]) for c in manifest["verification"]["cases"]]


def test_a_changed_graph_file(artefact: Path, made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    (artefact / "onnx" / "model.onnx").write_bytes(b"short")
    assert run("verify", artefact, made[0], "-q") == 4
    assert "onnx/model.onnx" in capsys.readouterr().err


def test_a_changed_weight_fails_by_its_numbers(
    artefact: Path, made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _spoil(artefact)
    with pytest.raises(VerificationError, match="the compact graph differs from the masked model"):
        verify(artefact, made[0])
    assert run("verify", artefact, made[0], "-q") == 4
    assert capsys.readouterr().out == ""


def test_another_checkpoint_is_named_by_its_file(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = families.save(tmp_path / "other", "bert", seed=1)
    capsys.readouterr()
    assert run("verify", made[1], other, "-q") == 4
    said = capsys.readouterr().err
    assert "made from other files" in said
    assert "model.safetensors" in said
    with pytest.raises(VerificationError, match="differs from the masked model"):
        verify(made[1], other)


def test_a_failure_of_onnxruntime_is_told_as_one() -> None:
    with (
        pytest.raises(VerificationError, match="ONNX Runtime fails in the int8 graph: InvalidProtobuf") as caught,
        onnxruntime_failures("int8"),
    ):
        onnxruntime.InferenceSession(b"no model", providers=["CPUExecutionProvider"])
    assert f"onnxruntime {onnxruntime.__version__}" in caught.value.what
    with pytest.raises(KeyError), onnxruntime_failures("int8"):  # ours
        raise KeyError("name")


def test_progress_is_told_line_by_line(made: tuple[Path, Path]) -> None:
    lines: list[str] = []
    verify(made[1], made[0], progress=lines.append)
    assert len(lines) == 3
