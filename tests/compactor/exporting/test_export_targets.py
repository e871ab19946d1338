"""Targets, precisions, layouts and packing: what is written for each, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest

import compactor
from compactor.exporting.export import export
from compactor.passes.lowering.pack_tokens import FILL_LOGITS
from compactor.passes.pipeline import PASSES
from compactor.runtime.verification import compare
from tests.compactor import families
from tests.compactor.exporting.traces import quantize_small_weights
from tests.compactor.fakes import run
from tests.compactor.families import PLANTED

HEAD = "ForTokenClassification"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.save(tmp_path_factory.mktemp("pruned") / "bert", "bert", HEAD)


@pytest.fixture(autouse=True)
def _small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    quantize_small_weights(monkeypatch)


def _stages(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {stage["name"]: stage for stage in manifest["stages"]}


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _check_numbers(path: Path, tolerance: float) -> None:
    model = families.build("bert", HEAD)
    session = onnxruntime.InferenceSession(path)
    names = [entry.name for entry in session.get_inputs()]
    for case in families.odd_cases("bert", names):
        outputs = {"logits": session.run(None, case.feeds)[0]}
        (comparison,) = compare(case, families.run_masked(model, HEAD, case), outputs)
        assert comparison.max_abs_diff < tolerance * max(1, comparison.max_reference), comparison


def test_cpu(model: Path, tmp_path: Path) -> None:
    result = export(model, tmp_path / "out")
    stages = _stages(result.manifest)
    assert list(stages) == ["masked", "compact", "int8"]
    assert _files(result.path) == {
        "README.md",
        "config.json",
        "compactor.json",
        "onnx/model.onnx",
        "onnx/model_quantized.onnx",
    }
    assert (result.manifest["recipe"]["pack"], result.manifest["recipe"]["opset"]) == (True, 23)
    assert any(rule["pass"] == "pack-tokens" for rule in result.manifest["rules"])

    # Two attentions are left: Q, K and V share one quantization, and O and both FFNs' four matrices have their own.
    # The classifier is a linear layer on tokens too.
    for kind in ("operators", "executed_operators"):
        counts = stages["int8"][kind]
        assert counts["Attention"] == 2
        assert counts["com.microsoft::MatMulIntegerToFloat"] == 6
        assert counts["com.microsoft::DynamicQuantizeMatMul"] == 2 + 4 + 1
        assert "com.microsoft::SkipLayerNormalization" not in counts
        assert stages["compact"][kind]["Attention"] == 2
        assert "Sum" not in stages["compact"][kind]  # packed residuals need it not
        assert "com.microsoft::SkipLayerNormalization" not in stages["compact"][kind]


def test_the_manifest_tells_the_truth(model: Path, tmp_path: Path) -> None:
    result = export(model, tmp_path / "out")
    manifest = json.loads((result.path / "compactor.json").read_text())
    assert manifest == result.manifest
    schema = json.loads((Path(compactor.__file__).parent / "manifest.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(manifest)
    for stage in manifest["stages"]:
        if stage["file"] is None:
            continue
        file = result.path / stage["file"]
        assert stage["bytes"] == file.stat().st_size
        saved = onnx.load(file)
        weights = [tensor for tensor in saved.graph.initializer if tensor.data_type not in (6, 7, 9)]
        assert stage["parameters"] == sum(int(np.prod(tensor.dims)) for tensor in weights)
    masked, compact, int8 = manifest["stages"]
    assert masked["macs_per_token"] > compact["macs_per_token"] == int8["macs_per_token"]
    assert masked["parameters"] > compact["parameters"]

    names = [text.partition("{")[0] for text in manifest["recipe"]["passes"]]
    assert names.index("fold-value-biases") < names.index("remove-dead-heads") < names.index("trim-head-channels")
    assert names.index("pack-tokens") < names.index("quantize-linears") < names.index("name-nodes")
    assert len(set(manifest["recipe"]["passes"])) == len(names)
    known = {entry.name for entry in PASSES}
    assert set(names) <= known
    assert {rule["pass"] for rule in manifest["rules"]} <= set(names)
    cases = manifest["verification"]["cases"]
    assert {(case["stage"], case["optimizations"]) for case in cases} == {
        (stage, on) for stage in ("compact", "int8") for on in (True, False)
    }
    for side in ("right", "left", "holes"):
        assert len({case["case"] for case in cases if case["case"].startswith(side)}) == 3  # three lengths


def test_cpu_unpacked(model: Path, tmp_path: Path) -> None:
    result = export(model, tmp_path / "out", pack=False, precision=["fp32"])
    assert result.manifest["recipe"]["pack"] is False
    assert not any(rule["pass"] == "pack-tokens" for rule in result.manifest["rules"])
    assert "NonZero" not in _stages(result.manifest)["compact"]["operators"]
    assert result.manifest["layers"] == PLANTED
    _check_numbers(result.path / "onnx" / "model.onnx", 1e-4)


def test_a_model_that_packing_refuses_is_exported_unpacked(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compactor.passes.lowering.pack_tokens, "hides_padding", lambda value: False)
    manifest = export(model, tmp_path / "out", precision=["fp32"]).manifest
    (refusal,) = (entry for entry in manifest["refused"] if entry["pass"] == "pack-tokens")
    assert "not proven to hide padding" in refusal["reason"]
    for kind in ("operators", "executed_operators"):
        assert "com.microsoft::SkipLayerNormalization" not in _stages(manifest)["compact"][kind]


def test_packed_outputs_do_not_depend_on_what_padding_holds(model: Path, tmp_path: Path) -> None:
    result = export(model, tmp_path / "out")
    for name in ("model.onnx", "model_quantized.onnx"):
        session = onnxruntime.InferenceSession(result.path / "onnx" / name)
        for case in families.odd_cases("bert", [entry.name for entry in session.get_inputs()]):
            assert case.valid is not None
            (before,) = session.run(None, case.feeds)
            assert (before[~case.valid] == np.float32(FILL_LOGITS)).all()
            if not case.valid[:, 0].all():
                continue  # position 0 is computed even where it is padding, so it takes part in int8's ranges
            noise = {**case.feeds, "input_ids": np.where(case.valid, case.feeds["input_ids"], 11)}
            np.testing.assert_array_equal(session.run(None, noise)[0], before)


def test_cuda(model: Path, tmp_path: Path) -> None:
    result = export(model, tmp_path / "out", target="cuda")
    stages = _stages(result.manifest)
    assert list(stages) == ["masked", "compact", "fp16"]
    assert stages["fp16"]["file"] == "onnx/model_fp16.onnx"
    assert result.manifest["layers"] == PLANTED
    for name in ("compact", "fp16"):
        counts = stages[name]["operators"]
        fused = counts.get("com.microsoft::MultiHeadAttention", 0) + counts.get("com.microsoft::Attention", 0)
        assert (fused, counts.get("Attention", 0)) == (2, 0)
        assert counts["com.microsoft::SkipLayerNormalization"] > 0
    floats = {t.data_type for t in onnx.load(result.path / "onnx" / "model_fp16.onnx").graph.initializer if t.dims}
    assert onnx.TensorProto.FLOAT16 in floats
    _check_numbers(result.path / "onnx" / "model.onnx", 1e-4)
    _check_numbers(result.path / "onnx" / "model_fp16.onnx", 2e-2)


def test_portable(model: Path, tmp_path: Path) -> None:
    result = export(model, tmp_path / "out", target="portable")
    for name in ("model.onnx", "model_quantized.onnx"):
        saved = onnx.load(result.path / "onnx" / name)
        onnx.checker.check_model(saved, full_check=True)
        assert {node.domain for node in saved.graph.node} == {""}
        assert {entry.domain: entry.version for entry in saved.opset_import} == {"": 17}
        assert not saved.functions
    stages = _stages(result.manifest)
    assert result.manifest["recipe"]["opset"] == 17
    assert "Attention" not in stages["compact"]["operators"]
    assert stages["int8"]["operators"]["MatMulInteger"] == 13
    assert stages["int8"]["operators"]["DynamicQuantizeLinear"] == 2 + 2 + 4 + 1
    _check_numbers(result.path / "onnx" / "model.onnx", 1e-4)


def test_flat_layout(model: Path, tmp_path: Path) -> None:
    result = export(model, tmp_path / "out", layout="flat")
    assert _files(result.path) == {"README.md", "config.json", "compactor.json", "model.onnx", "model_quantized.onnx"}
    assert [stage["file"] for stage in result.manifest["stages"]] == [None, "model.onnx", "model_quantized.onnx"]


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        pytest.param(["--precision", "fp32"], ["masked", "compact"], id="fp32"),
        pytest.param(["--precision", "int8"], ["masked", "compact", "int8"], id="int8-brings-fp32"),
        pytest.param(["--precision", "fp16", "--target", "cuda"], ["masked", "compact", "fp16"], id="fp16"),
        pytest.param(["--precision", "int8,fp32", "--target", "portable"], ["masked", "compact", "int8"], id="order"),
    ],
)
def test_precisions(
    options: list[str], stages: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", model, tmp_path / "out", "--json", "-q", *options) == 0
    document = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in document["manifest"]["stages"]] == stages
    assert document["path"] == str(tmp_path / "out")


@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_int8_budget_that_holds(target: str, model: Path, tmp_path: Path) -> None:
    result = export(model, tmp_path / "out", target=target, int8_budget=0.9)
    assert result.manifest["verification"]["tolerance"]["int8"] == {"atol": 0.0, "rtol": 0.9}


def test_a_dense_model_is_exported_and_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = families.save(tmp_path / "dense", "bert", planted=None)
    capsys.readouterr()
    assert run("export", folder, tmp_path / "out", "-q") == 0
    assert "nothing to remove" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "out" / "compactor.json").read_text())
    for layer in manifest["layers"]:
        before, after = layer.get("heads") or layer["width"]
        assert before == after
    masked, compact, int8 = manifest["stages"]
    assert masked["macs_per_token"] == compact["macs_per_token"]
    assert int8["operators"]["com.microsoft::DynamicQuantizeMatMul"] == 3 * 3 + 2
