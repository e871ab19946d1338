from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compactor.passes.canonical.fold_transposed_weights import FoldTransposedWeightsPass
from compactor.passes.finishing.share_transposed_weights import ShareTransposedWeightsPass
from tests.builder import Builder
from tests.running import assert_rewrites_once, assert_untouched, operators, run32


def tied(*, perm=(1, 0), left=False, output=False):
    """A table that is read by row, and multiplied with as ``Transpose`` gives it."""
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch"]))
    b = Builder([ids], np.float32)
    table = b.constant(np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32))
    rows = b.node("Gather", table, ids)
    turned = b.node("Transpose", table, perm=perm)
    result = b.node("MatMul", turned, rows) if left else b.node("MatMul", rows, turned)
    b.graph.outputs.append(result)
    if output:
        b.graph.outputs.append(turned)
    return ir.Model(b.graph, ir_version=11)


def test_the_weight_is_stored_as_it_is_multiplied_and_shared_again():
    model, feeds = tied(), {"ids": np.array([4, 0, 5])}
    before = run32(model, feeds)

    assert_rewrites_once(FoldTransposedWeightsPass(), model, stored_transposed=1)
    assert "Transpose" not in operators(model)
    for name, array in run32(model, feeds).items():
        np.testing.assert_array_equal(array, before[name])

    assert_rewrites_once(ShareTransposedWeightsPass(min_elements=0), model, shared_table=1)
    assert operators(model)["Transpose"] == 1
    for name, array in run32(model, feeds).items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("options", [{"perm": (0, 1)}, {"left": True}, {"output": True}])
def test_another_transposition_is_left_alone(options):
    assert_untouched(FoldTransposedWeightsPass(), tied(**options))
