"""What each command prints: results on stdout, whole and right; progress on stderr."""

from __future__ import annotations

import json
import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compactor.errors import VerificationError
from compactor.manifest import dump_manifest
from tests.compactor.fakes import Export, exported, replace_module, run
from tests.compactor.manifests import example_manifest


def test_export_passes_its_options_on(model: Path, tmp_path: Path, fake_export: Callable[[Export], None]) -> None:
    seen: dict[str, Any] = {}

    def export(model_dir: Path, out_dir: Path, **options: Any) -> types.SimpleNamespace:
        seen.update(options, model_dir=model_dir, out_dir=out_dir)
        return exported(model_dir, out_dir, **options)

    fake_export(export)
    out = tmp_path / "out"
    options = "--task fill-mask --target cuda --precision fp16,fp32 --layout triton --no-pack --int8-budget 0.5"
    options += " --model-name served --threads 3 --route query --embed --decoder merged --card none"
    assert run("export", model, out, *options.split(), "--allow-pickle") == 0
    seen.pop("progress")
    assert seen == {
        "model_dir": model,
        "out_dir": out,
        "task": "fill-mask",
        "target": "cuda",
        "precision": ("fp16", "fp32"),
        "layout": "triton",
        "overwrite": False,
        "allow_pickle": True,
        "pack": False,
        "int8": None,
        "calibrate": None,
        "keep": None,
        "int8_budget": 0.5,
        "model_name": "served",
        "threads": 3,
        "route": "query",
        "embed": True,
        "decoder": "merged",
        "card": False,
    }


def test_export_passes_the_scales_of_int8_on(
    model: Path, tmp_path: Path, fake_export: Callable[[Export], None]
) -> None:
    seen: dict[str, Any] = {}

    def export(model_dir: Path, out_dir: Path, **options: Any) -> types.SimpleNamespace:
        seen.update(options)
        return exported(model_dir, out_dir, **options)

    fake_export(export)
    assert run("export", model, tmp_path / "out", "--int8", "token") == 0
    assert seen["int8"] == "token"


def test_libraries_are_told_to_stay_off_the_network(
    model: Path, tmp_path: Path, fake_export: Callable[[Export], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    seen: dict[str, str] = {}

    def export(model_dir: Path, out_dir: Path, **options: Any) -> types.SimpleNamespace:
        seen.update(os.environ)
        return exported(model_dir, out_dir, **options)

    fake_export(export)
    run("export", model, tmp_path / "out", "-q")
    assert (seen["HF_HUB_OFFLINE"], seen["TRANSFORMERS_OFFLINE"], seen["HF_HUB_DISABLE_TELEMETRY"]) == ("1", "1", "1")


def test_export_json_is_one_document_and_progress_goes_to_stderr(
    model: Path, tmp_path: Path, fake_export: Callable[[Export], None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", model, tmp_path / "out", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"path": str(tmp_path / "out"), "manifest": example_manifest()}
    assert err.splitlines() == ["loading libraries", "tracing"]


def test_quiet_says_nothing_and_verbose_lets_libraries_speak(
    model: Path, tmp_path: Path, fake_export: Callable[[Export], None], capsys: pytest.CaptureFixture[str]
) -> None:
    run("export", model, tmp_path / "quiet", "-q")
    assert capsys.readouterr().err == ""
    run("export", model, tmp_path / "verbose", "-v")
    out, err = capsys.readouterr()
    assert "a library talks" in err
    assert "a library talks" not in out


def test_export_says_what_went_how_large_it_is_and_what_next(
    model: Path, tmp_path: Path, fake_export: Callable[[Export], None], capsys: pytest.CaptureFixture[str]
) -> None:
    run("export", model, tmp_path / "out")
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert (
        "removed 21 of 24 heads, 2885 of 6144 neurons, channels inside the heads of 1 layer, 1 whole sublayer" in lines
    )
    assert "layers.0 12 -> 3 64 -> 40 64 3072 -> 187" in lines
    assert "layers.1 12 -> 0 64 -> 0 64 -> 0 3072" in lines
    assert "masked - 4.00 MB 1.00x 1.00 M 1.00x 1.00 M" in lines
    assert "int8 onnx/model_quantized.onnx 300 kB 13.33x 250 k 4.00x 250 k" in lines
    assert "Verification against the masked model: passed" in lines
    assert "int8 1 0.02 0.1 75.0%" in lines
    assert any("ORTModelForSequenceClassification" in line and "model_quantized.onnx" in line for line in lines)


def test_export_for_triton_says_how_to_serve_it(
    model: Path, tmp_path: Path, fake_export: Callable[[Export], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def export(model_dir: Path, out_dir: Path, **options: Any) -> types.SimpleNamespace:
        result = exported(model_dir, out_dir, **options)
        result.manifest["recipe"]["layout"] = "triton"
        for stage, file in zip(result.manifest["stages"], (None, None, "reviews/1/model.onnx"), strict=True):
            stage["file"] = file
        return result

    fake_export(export)
    out = tmp_path / "my models"
    assert run("export", model, out, "--layout", "triton") == 0
    said = capsys.readouterr().out
    assert f"tritonserver --model-repository='{out}'" in said
    assert f"{out / 'reviews' / 'config.pbtxt'}" in said


def test_export_of_a_dense_model_says_so(
    model: Path, tmp_path: Path, fake_export: Callable[[Export], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def export(model_dir: Path, out_dir: Path, **options: Any) -> types.SimpleNamespace:
        result = exported(model_dir, out_dir, **options)
        result.manifest["layers"] = result.manifest["layers"][-1:]
        return result

    fake_export(export)
    run("export", model, tmp_path / "out")
    assert "nothing to remove: every head and neuron" in capsys.readouterr().out


def test_explain_tells_rules_refusals_and_operators(artefact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", artefact) == 0
    out, err = capsys.readouterr()
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert err == ""
    at = lines.index("layers.0.attention: 12 -> 3 heads, QK 64 -> 40, V 64, 1 averaging")
    assert lines[at + 1] == "9 x dead-head (remove-dead-heads)"
    at = lines.index("layers.1.feed_forward: 3072 neurons")
    assert lines[at - 2 : at + 2] == [
        "layers.1.attention: 12 -> 0 heads",
        "1 x all-heads-dead (remove-empty-sublayers)",
        "layers.1.feed_forward: 3072 neurons",
        "no rule applied",
    ]
    assert "unused-node 4 clean-up" in lines
    assert "remove-dead-neurons no neuron is dead layers.1.feed_forward" in lines
    assert "com.microsoft::DynamicQuantizeMatMul - - 5 5" in lines


def test_explain_json_gathers_what_concerns_a_layer(artefact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", artefact, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["layers"][0]["rules"] == [{"pass": "remove-dead-heads", "rule": "dead-head", "count": 9}]
    assert document["layers"][3]["refused"] == [{"pass": "remove-dead-neurons", "reason": "no neuron is dead"}]
    assert [rule["rule"] for rule in document["whole_model"]["rules"]] == ["unused-node"]


def test_explain_needs_an_artefact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", tmp_path) == 3
    assert "not a folder that compactor exported" in capsys.readouterr().err


def test_verify_runs_the_numeric_check(
    artefact: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verification = example_manifest()["verification"]
    replace_module(monkeypatch, "compactor.exporting.verifying", verify=lambda *arguments, **options: verification)
    assert run("verify", artefact, model) == 0
    assert "passed" in capsys.readouterr().out
    assert run("verify", artefact, model, "--json") == 0
    assert json.loads(capsys.readouterr().out) == verification


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda artefact, model: (model / "config.json").write_text("[]"), "'config.json' is not the", id="source"
        ),
        pytest.param(lambda artefact, model: (model / "config.json").unlink(), "'config.json' is missing", id="gone"),
        pytest.param(
            lambda artefact, model: (artefact / "onnx" / "model.onnx").write_bytes(b"x"), "has 1 bytes", id="artefact"
        ),
    ],
)
def test_verify_names_the_file_that_changed(
    change: Callable[[Path, Path], object],
    message: str,
    artefact: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(artefact, model)
    assert run("verify", artefact, model, "-q") == 4
    assert message in capsys.readouterr().err


def test_verify_fails_with_its_own_code(artefact: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(*arguments: object, **options: object) -> dict[str, Any]:
        raise VerificationError("numbers differ")

    replace_module(monkeypatch, "compactor.exporting.verifying", verify=verify)
    assert run("verify", artefact, model) == 4


def test_a_difference_that_is_not_finite_is_said_so(artefact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((artefact / "compactor.json").read_text())
    manifest["verification"]["cases"][1]["max_abs_diff"] = None
    (artefact / "compactor.json").write_text(dump_manifest(manifest))
    assert run("explain", artefact) == 0
    assert "not finite" in capsys.readouterr().out


def test_passes_lists_names_and_first_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class FoldPass:
        """Fold things.

        More about it.
        """

        name = "fold"

    replace_module(monkeypatch, "compactor.passes.pipeline", PASSES=(FoldPass,))
    assert run("passes", "--json") == 0
    assert json.loads(capsys.readouterr().out) == [{"name": "fold", "summary": "Fold things."}]
    assert run("passes") == 0
    assert "fold  Fold things." in capsys.readouterr().out
