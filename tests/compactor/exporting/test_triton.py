"""``--layout triton``: a repository that is still an artefact, of a checkpoint or of an earlier artefact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import compactor.exporting.serialization
from compactor.exporting.export import export
from compactor.exporting.verifying import verify
from compactor.manifest import artefact_file_problems, load_manifest
from compactor.runtime.artefacts import Artefact
from tests.compactor import families
from tests.compactor.exporting.traces import quantize_small_weights
from tests.compactor.fakes import run
from tests.conftest import PrunedBart

POOLING = {"pooling_mode_cls_token": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = families.save(tmp_path_factory.mktemp("pruned") / "bert", "bert")
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 32}')
    return folder


@pytest.fixture(autouse=True)
def _small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    quantize_small_weights(monkeypatch)


@pytest.fixture(scope="module")
def exported(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        quantize_small_weights(patch)
        return export(model, tmp_path_factory.mktemp("exported") / "out").path


@pytest.fixture
def artefact(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "artefact"))


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _kept(manifest: dict[str, Any]) -> dict[str, str]:
    return {stage["name"]: stage["file"] for stage in manifest["stages"] if stage["file"]}


def _run(graph: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph)
    ids = np.arange(10).reshape(2, 5)
    feeds = {entry.name: ids if entry.name == "input_ids" else np.ones_like(ids) for entry in session.get_inputs()}
    return np.asarray(session.run(None, feeds)[0])


def test_of_a_checkpoint(model: Path, tmp_path: Path) -> None:
    result = export(model, tmp_path / "out", layout="triton")
    companions = {"compactor.json", "config.json"}
    assert _files(result.path) == {*companions, "bert/config.pbtxt", "bert/1/model.onnx"}
    assert result.manifest == load_manifest(result.path)
    assert _kept(result.manifest) == {"int8": "bert/1/model.onnx"}
    assert result.manifest["recipe"]["layout"] == "triton"
    assert {case["stage"] for case in result.manifest["verification"]["cases"]} == {"compact", "int8"}


def test_of_an_artefact_is_the_same(model: Path, artefact: Path, tmp_path: Path) -> None:
    first = export(model, tmp_path / "first", layout="triton")
    second = export(artefact, tmp_path / "second", layout="triton")
    assert first.manifest == second.manifest
    assert _files(first.path) == _files(second.path)
    for name in _files(first.path):
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes(), name
    graph = artefact / "onnx" / "model_quantized.onnx"
    assert (second.path / "bert" / "1" / "model.onnx").read_bytes() == graph.read_bytes()
    assert artefact_file_problems(load_manifest(artefact), artefact) == []  # nothing was taken from it


def test_the_tokenizer_of_an_artefact_travels_as_it_is(
    artefact: Path, tmp_path: Path, example_checkpoint: Path
) -> None:
    shutil.copytree(artefact, tmp_path / "with a tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(example_checkpoint / name, tmp_path / "with a tokenizer")
    (tmp_path / "with a tokenizer" / "source.spm").write_bytes(b"pieces")
    made = export(tmp_path / "with a tokenizer", tmp_path / "models", layout="triton").path
    for name in ("tokenizer.json", "tokenizer_config.json", "source.spm"):
        assert (made / name).read_bytes() == (tmp_path / "with a tokenizer" / name).read_bytes()


def test_of_an_artefact_nothing_is_traced(artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compactor.exporting.export._compiler", None)
    assert export(artefact, tmp_path / "out", layout="triton").path.is_dir()


@pytest.mark.parametrize("layout", ["hf", "flat"])
def test_precision_name_and_threads_are_chosen(layout: Any, model: Path, tmp_path: Path) -> None:
    artefact = export(model, tmp_path / "artefact", layout=layout, precision=["fp32"]).path
    options: dict[str, Any] = {"layout": "triton", "precision": ["fp32"], "model_name": "onnx", "threads": 3}
    result = export(artefact, tmp_path / "out", **options)
    assert _kept(result.manifest) == {"compact": "onnx/1/model.onnx"}
    text = (result.path / "onnx" / "config.pbtxt").read_text()
    assert 'name: "onnx"' in text
    assert 'key: "intra_op_thread_count" value: { string_value: "3" }' in text
    place = "onnx/model.onnx" if layout == "hf" else "model.onnx"
    np.testing.assert_array_equal(_run(result.path / "onnx" / "1" / "model.onnx"), _run(artefact / place))


def test_of_a_repository(artefact: Path, tmp_path: Path) -> None:
    first = export(artefact, tmp_path / "first", layout="triton").path
    second = export(first, tmp_path / "second", layout="triton", model_name="other").path
    assert {name for name in _files(second) if "/" in name} == {"other/config.pbtxt", "other/1/model.onnx"}
    assert export(first, tmp_path / "third", layout="triton").manifest == load_manifest(first)


def test_a_repository_is_an_artefact(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = export(model, tmp_path / "out", layout="triton").path
    assert dict(Artefact.open(path).graphs) == {"int8": "bert/1/model.onnx"}
    verification = verify(path, model)
    assert {case["stage"] for case in verification["cases"]} == {"int8"}
    assert verification["max_abs_diff"] == max(case["max_abs_diff"] for case in verification["cases"])
    assert run("verify", path, model, "-q") == 0
    assert "largest error of the int8 model" in capsys.readouterr().out
    assert export(model, path, layout="triton", overwrite=True).path == path


def test_for_a_gpu(model: Path, tmp_path: Path) -> None:
    result = export(model, tmp_path / "out", layout="triton", target="cuda")
    text = (result.path / "bert" / "config.pbtxt").read_text()
    assert _kept(result.manifest) == {"fp16": "bert/1/model.onnx"}
    assert "KIND_GPU" in text and "KIND_CPU" not in text
    assert text.count("TYPE_FP32") == 1  # a client gets float32, which JSON can carry


def test_weights_in_a_file_of_their_own(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compactor.exporting.serialization, "_LARGEST_FILE", 100)
    artefact = export(model, tmp_path / "artefact").path
    assert (artefact / "onnx" / "model_quantized.onnx_data").is_file()
    result = export(artefact, tmp_path / "out", layout="triton")
    graph = "bert/1/model.onnx/model.onnx"
    assert {name for name in _files(result.path) if "/1/" in name} == {graph, f"{graph}_data"}
    assert artefact_file_problems(result.manifest, result.path) == []
    np.testing.assert_array_equal(_run(result.path / graph), _run(artefact / "onnx" / "model_quantized.onnx"))


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sentence-transformers."""
    folder = families.save(tmp_path_factory.mktemp("pruned") / "embedder", "bert", "Model")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(POOLING))
    modules = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    entries = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules.items()]
    (folder / "modules.json").write_text(json.dumps(entries))
    return folder


@pytest.mark.parametrize("from_artefact", [False, True])
def test_modules_of_sentence_transformers_are_no_models_or_versions(
    from_artefact: bool, embedder: Path, tmp_path: Path
) -> None:
    folder = embedder
    if from_artefact:
        folder = export(folder, tmp_path / "artefact", precision=["fp32"]).path
    path = export(folder, tmp_path / "out", precision=["fp32"], layout="triton").path
    assert [entry.name for entry in path.iterdir() if entry.is_dir()] == ["embedder"]
    assert [entry.name for entry in (path / "embedder").iterdir() if entry.is_dir()] == ["1"]
    found = [entry["path"] for entry in json.loads((path / "modules.json").read_text())]
    assert found == ["", "embedder/1/modules/1_Pooling", "embedder/1/modules/2_Normalize"]
    assert json.loads((path / found[1] / "config.json").read_text()) == POOLING
    assert (path / found[2]).is_dir()


# Refusals


@pytest.mark.parametrize("which", ["folder", "path"])
def test_an_encoder_decoder(which: str, pruned_bart: PrunedBart, ends: Callable[..., str]) -> None:
    said = ends(2, getattr(pruned_bart, which), "--layout", "triton", "--model-name", "bart")
    assert "three graphs" in said and "--layout hf" in said


@pytest.mark.parametrize("options", [(), ("--layout", "flat")])
def test_an_artefact_is_not_exported_again(options: tuple[str, ...], artefact: Path, ends: Callable[..., str]) -> None:
    said = ends(2, artefact, *options)
    assert "exported already" in said and "--layout triton" in said


@pytest.mark.parametrize("option", ["--task=fill-mask", "--target=cpu", "--pack", "--int8-budget=0.5"])
def test_an_artefact_is_not_compiled_again(option: str, artefact: Path, ends: Callable[..., str]) -> None:
    said = ends(2, artefact, "--layout", "triton", option)
    assert f"{option.partition('=')[0]} is for a checkpoint" in said


@pytest.mark.parametrize("asked", ["fp16", "fp32,fp16", "fp8"])
def test_a_precision_that_the_artefact_lacks(asked: str, artefact: Path, ends: Callable[..., str]) -> None:
    said = ends(2, artefact, "--layout", "triton", "--precision", asked)
    assert f"holds no {asked.rpartition(',')[2]} graph" in said and "fp32, int8" in said


def test_a_changed_artefact(artefact: Path, ends: Callable[..., str]) -> None:
    with (artefact / "onnx" / "model.onnx").open("ab") as file:
        file.write(b"x")
    assert "the artefact was changed: 'onnx/model.onnx'" in ends(4, artefact, "--layout", "triton")


def test_a_damaged_manifest(artefact: Path, ends: Callable[..., str]) -> None:
    (artefact / "compactor.json").write_text("{}")
    ends(3, artefact, "--layout", "triton")


def test_a_name_that_is_none(
    model: Path, ends: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compactor.exporting.export._compiler", None)  # it is refused before anything slow
    odd = tmp_path / "my model"
    shutil.copytree(model, odd)
    said = ends(2, odd, "--layout", "triton")
    assert "'my model' cannot be the name" in said and "--model-name" in said


def test_a_name_that_a_file_has(artefact: Path, ends: Callable[..., str]) -> None:
    said = ends(2, artefact, "--layout", "triton", "--model-name", "config.json")
    assert "'config.json' already" in said


@pytest.mark.parametrize("option", ["--model-name=x", "--threads=2"])
def test_what_is_for_triton_only(option: str, model: Path, ends: Callable[..., str]) -> None:
    assert "told to Triton only" in ends(2, model, option)


def test_an_output_that_exists(artefact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert run("export", artefact, tmp_path / "out", "--layout", "triton") == 5
    assert run("export", artefact, artefact, "--layout", "triton", "--overwrite") == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    capsys.readouterr()
