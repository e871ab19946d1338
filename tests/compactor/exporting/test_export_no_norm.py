"""Models as nn_pruning's "-opt" checkpoints are: NoNorm, ReLU, heads taken out; equal numbers, no norm in the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from compactor.exporting.export import export
from compactor.exporting.inspecting import inspect
from compactor.exporting.verifying import verify
from compactor.runtime.verification import compare
from tests.compactor import families
from tests.compactor.exporting.traces import quantize_small_weights, treat_small_as_large
from tests.compactor.families import OUTPUTS
from tests.compactor.stock import change_config, change_weights
from tests.independence import assert_independent_of_mates

# Beside the norms, what a graph with packed tokens holds.
NORMS = {"LayerNormalization", "SkipLayerNormalization", "Mul", "Div", "Sqrt", "ReduceMean", "Pow"}


class Affine(torch.nn.Module):
    """What stands for each norm, written here once more."""

    def __init__(self, norm: torch.nn.LayerNorm) -> None:
        super().__init__()
        self.w, self.b = norm.weight.detach(), norm.bias.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.b, x, self.w)


@torch.no_grad()
def opt_model(head: str) -> Any:
    """A model with planted zeros; its norms are still LayerNorms, whose scales have every sign."""
    model = families.build("bert", head, seed=3)
    model.config.hidden_act = "relu"
    torch.manual_seed(4)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.weight.uniform_(0.2, 0.7).mul_(torch.where(torch.rand_like(module.weight) < 0.2, -1, 1))
            module.bias.normal_(std=0.3)
        if hasattr(module, "intermediate_act_fn"):
            module.intermediate_act_fn = torch.nn.ReLU()
        if hasattr(module, "transform_act_fn"):
            module.transform_act_fn = torch.nn.ReLU()
    return model


def save_opt(model: Any, folder: Path) -> Path:
    """As nn_pruning saves it: the first head of the first layer is not in the file."""
    model.save_pretrained(folder)
    change_config(folder, layer_norm_type="no_norm", pruned_heads={"0": [0]})
    gone = families.channels(0)

    def without_head(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        stem = next(name for name in tensors if name.endswith("layer.0.attention.self.query.weight"))
        stem = stem.removesuffix("self.query.weight")
        kept = [at for at in range(len(tensors[f"{stem}self.query.bias"])) if at not in gone]
        for role in ("query", "key", "value"):
            for part in ("weight", "bias"):
                tensors[f"{stem}self.{role}.{part}"] = tensors[f"{stem}self.{role}.{part}"][kept]
        tensors[f"{stem}output.dense.weight"] = tensors[f"{stem}output.dense.weight"][:, kept]
        return tensors

    return change_weights(folder, without_head)


def without_norms(model: Any) -> Any:
    """The same model with ``Affine`` for each norm."""
    for module in tuple(model.modules()):
        for name, child in tuple(module.named_children()):
            if isinstance(child, torch.nn.LayerNorm):
                setattr(module, name, Affine(child))
    return model


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}


@pytest.mark.parametrize(
    ("head", "int8"), [("ForSequenceClassification", "token"), ("ForQuestionAnswering", "tensor"), ("Model", "token")]
)
def test_exports_without_a_norm(
    head: str, int8: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model = opt_model(head)
    folder = save_opt(model, tmp_path / "model")
    without_norms(model)
    quantize_small_weights(monkeypatch)

    result = export(folder, tmp_path / "out", int8=int8)

    manifest = result.manifest
    assert manifest["source"]["format"] == "head_pruned"
    assert manifest["layers"] == families.PLANTED
    assert manifest["recipe"]["pack"]
    assert not [refusal for refusal in manifest["refused"] if refusal["pass"] == "absorb-norms"]
    graph = result.path / "onnx" / "model.onnx"
    assert not operators(graph) & NORMS
    session = onnxruntime.InferenceSession(graph)
    for case in families.odd_cases("bert", [entry.name for entry in session.get_inputs()]):
        outputs = dict(zip(OUTPUTS[head], session.run(None, case.feeds), strict=True))
        for comparison in compare(case, families.run_masked(model, head, case), outputs):
            assert comparison.max_abs_diff < 1e-4, comparison
    quantized = result.path / "onnx" / "model_quantized.onnx"
    assert not operators(quantized) & {"LayerNormalization", "SkipLayerNormalization"}
    if int8 == "token":
        assert_independent_of_mates(quantized, vocabulary=families.VOCABULARY)
    assert verify(result.path, folder)["passed"]


def test_a_tied_head_keeps_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is stored once. The norm of the head, between a ReLU and the table, cannot go anywhere and stays."""
    model = opt_model("ForMaskedLM")
    folder = save_opt(model, tmp_path / "model")
    without_norms(model)
    treat_small_as_large(monkeypatch)

    result = export(folder, tmp_path / "out", precision=["fp32"])

    graph = result.path / "onnx" / "model.onnx"
    model_proto = onnx.load(graph)
    assert [node.op_type for node in model_proto.graph.node if node.op_type in NORMS] == ["Mul"]
    (refused,) = [refusal for refusal in result.manifest["refused"] if refusal["pass"] == "absorb-norms"]
    assert "both sides are wanted as they are" in refused["reason"]
    sizes = {families.VOCABULARY, families.WIDTH}
    assert len([tensor for tensor in model_proto.graph.initializer if set(tensor.dims) == sizes]) == 1
    session = onnxruntime.InferenceSession(graph)
    for case in families.odd_cases("bert", [entry.name for entry in session.get_inputs()]):
        outputs = dict(zip(["logits"], session.run(None, case.feeds), strict=True))
        for comparison in compare(case, families.run_masked(model, "ForMaskedLM", case), outputs):
            assert comparison.max_abs_diff < 1e-4, comparison


def test_inspect_knows_what_an_export_removes(tmp_path: Path) -> None:
    found = inspect(save_opt(opt_model("ForSequenceClassification"), tmp_path))
    assert found.format == "head_pruned"
    assert found.removed.heads > 0
    assert not found.skipped


@pytest.mark.parametrize("int8", ["tensor", "token"])
def test_the_case_that_was_written_down(shared_dir: Path, tmp_path: Path, int8: str) -> None:
    folder = shared_dir / "cases" / "nonorm"
    if not folder.is_dir():
        pytest.skip("needs the cases beside the checkout")
    expected = dict(np.load(folder / "expected.npz"))
    result = export(folder, tmp_path / "out", int8=int8)

    feeds = {name: expected[name] for name in ("input_ids", "attention_mask")}
    feeds["token_type_ids"] = np.zeros_like(feeds["input_ids"])
    graph = result.path / "onnx" / "model.onnx"
    assert not operators(graph) & NORMS
    (logits,) = onnxruntime.InferenceSession(graph).run(None, feeds)
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-5)
    assert result.manifest["verification"]["max_abs_diff"] < 1e-5
