from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.lowering.write_residuals_as_sum import WriteResidualsAsSumPass
from tests.models import Architecture, build
from tests.running import assert_rewrites_once, assert_same, assert_untouched, operators, random_feeds, run32, run64


@pytest.mark.parametrize(("norm", "residuals"), [("post", 4), ("pre", 3)])
def test_writes_each_addition_that_a_normalisation_reads_as_sum(norm, residuals):
    arch = Architecture(layers=2, norm=norm)  # pre: the last sum is the output, no normalisation reads it
    model = build(arch)
    feeds = random_feeds(model)
    before = run64(model, feeds)
    adds = operators(model)["Add"]
    assert_rewrites_once(WriteResidualsAsSumPass(), model, residual_as_sum=residuals)
    assert operators(model)["Sum"] == residuals
    assert operators(model)["Add"] == adds - residuals
    assert_same(run64(model, feeds), before, tolerance=0)


def test_a_bias_that_a_normalisation_reads_stays():
    """As behind the dense layer of a masked language model's head."""
    model = build(Architecture(norm="pre"))
    residual = next(node for node in model.graph if node.name == "0.residual")
    norm = residual.outputs[0].uses()[0].node
    assert norm.op_type == "LayerNormalization"
    norm.replace_input_with(0, residual.inputs[0])  # Wo's product and its bias
    WriteResidualsAsSumPass()(model)
    assert residual.inputs[0].producer().op_type == "Add"


def test_leaves_a_graph_without_such_an_addition_alone():
    model = build(Architecture(norm="pre"))
    for node in [node for node in model.graph if node.op_type == "LayerNormalization"]:
        node.outputs[0].replace_all_uses_with(node.inputs[0])
        model.graph.remove(node, safe=True)
    RemoveUnusedNodesPass()(model)
    assert_untouched(WriteResidualsAsSumPass(), model)


@pytest.mark.parametrize("as_sum", [False, True])
def test_onnx_runtime_keeps_the_pair_apart(as_sum, tmp_path):
    """The reason of this pass: with Add it runs SkipLayerNormalization. Should that end, the pass can go."""
    model = build(Architecture(layers=2, dtype=np.float32))
    feeds = random_feeds(model)
    before = run32(model, feeds)
    if as_sum:
        WriteResidualsAsSumPass()(model)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    ran = {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}
    assert ("SkipLayerNormalization" in ran) == (not as_sum)
    assert ("LayerNormalization" in ran) and (("Sum" in ran) == as_sum)
    assert_same(run32(model, feeds, optimize=True), before, tolerance=1e-5)
