"""Every family and every task: the planted zeros go, the numbers stay, and nothing is said on stdout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from compactor.exporting.export import export
from compactor.passes.lowering.pack_tokens import FILL_LOGITS
from compactor.runtime.verification import Case, compare
from tests.compactor import families
from tests.compactor.exporting.traces import quantize_small_weights
from tests.compactor.families import LABELS, OUTPUTS, PLANTED, VOCABULARY, WIDTH
from tests.independence import assert_independent_of_mates

TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForImageClassification": "image-classification",
    "Model": "feature-extraction",
}
MODELS = [
    ("bert", "ForSequenceClassification"),
    ("bert", "ForMaskedLM"),
    ("bert", "Model"),
    ("roberta", "ForTokenClassification"),
    ("xlm-roberta", "ForQuestionAnswering"),
    ("distilbert", "ForSequenceClassification"),
    ("electra", "ForTokenClassification"),
    ("mpnet", "ForMaskedLM"),
    ("vit", "ForImageClassification"),
]


@pytest.mark.parametrize(("family", "head"), MODELS)
def test_exports_compact_and_exact(
    family: str,
    head: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = families.build(family, head)
    model.save_pretrained(tmp_path / "model")
    quantize_small_weights(monkeypatch)
    capfd.readouterr()

    result = export(tmp_path / "model", tmp_path / "out", int8="token")

    assert capfd.readouterr().out == ""
    manifest = result.manifest
    assert manifest["task"] == TASKS[head]
    assert manifest["layers"] == PLANTED
    assert manifest["verification"]["passed"]
    assert manifest["verification"]["max_abs_diff"] < 1e-4
    session = onnxruntime.InferenceSession(result.path / "onnx" / "model.onnx")
    _check_signature(session, family, head)
    names = [entry.name for entry in session.get_inputs()]
    cases = families.image_batches() if family == "vit" else families.odd_cases(family, names)
    for case in cases:
        outputs = dict(zip(OUTPUTS[head], session.run(None, case.feeds), strict=True))
        for comparison in compare(case, families.run_masked(model, head, case), outputs):
            assert comparison.max_abs_diff < 1e-4, comparison
        _check_padding(case, head, outputs)
    assert_independent_of_mates(result.path / "onnx" / "model_quantized.onnx", vocabulary=VOCABULARY)


def _check_signature(session: Any, family: str, head: str) -> None:
    """Names and axes as the ecosystem has them."""
    inputs = {entry.name: entry.shape for entry in session.get_inputs()}
    tokens = ["batch_size", "sequence_length"]
    if family == "vit":
        assert inputs == {"pixel_values": ["batch_size", 3, families.IMAGE, families.IMAGE]}
    else:
        names = ["input_ids", "attention_mask"] + (["token_type_ids"] if family in ("bert", "electra") else [])
        assert inputs == dict.fromkeys(names, tokens)
    shapes = {
        "ForSequenceClassification": ["batch_size", LABELS],
        "ForImageClassification": ["batch_size", LABELS],
        "ForTokenClassification": [*tokens, LABELS],
        "ForMaskedLM": [*tokens, VOCABULARY],
        "ForQuestionAnswering": tokens,
        "Model": [*tokens, WIDTH],
    }
    expected = dict.fromkeys(OUTPUTS[head], shapes[head])
    if head == "Model":
        expected["pooler_output"] = ["batch_size", WIDTH]
    assert {entry.name: entry.shape for entry in session.get_outputs()} == expected


def _check_padding(case: Case, head: str, outputs: dict[str, Any]) -> None:
    """Padded positions hold zeros in hidden states and a very low number in logits."""
    if case.valid is None or head == "ForSequenceClassification":
        return
    for name, array in outputs.items():
        assert np.isfinite(array).all()
        if name == "pooler_output":
            continue
        padded = array[~case.valid]
        assert (padded == (0 if head == "Model" else np.float32(FILL_LOGITS))).all()
        if head == "ForQuestionAnswering":
            assert case.valid[np.arange(len(array)), array.argmax(1)].all()


def test_a_layer_emptied_of_both_halves(tmp_path: Path) -> None:
    model = families.build("bert", planted=families.empty_middle)
    model.save_pretrained(tmp_path / "model")
    result = export(tmp_path / "model", tmp_path / "out", precision=["fp32"])
    left = {layer["path"]: layer.get("heads", layer.get("width")) for layer in result.manifest["layers"]}
    assert (left["layers.1.attention"], left["layers.1.feed_forward"]) == ([4, 0], [24, 0])
    assert [left[f"layers.{layer}.attention"] for layer in (0, 2)] == [[4, 4], [4, 4]]
    session = onnxruntime.InferenceSession(result.path / "onnx" / "model.onnx")
    for case in families.odd_cases("bert", [entry.name for entry in session.get_inputs()]):
        outputs = {"logits": session.run(None, case.feeds)[0]}
        (comparison,) = compare(case, families.run_masked(model, "ForSequenceClassification", case), outputs)
        assert comparison.max_abs_diff < 1e-4, comparison
