"""A wrong operator count, saved or executed, is a failure."""

from __future__ import annotations

from typing import Any

import pytest

from compactor.errors import VerificationError
from compactor.exporting.emission import check_emission

GOOD = {
    "Attention": 3,
    "com.microsoft::DynamicQuantizeMatMul": 6,
    "com.microsoft::MatMulIntegerToFloat": 9,
    "LayerNormalization": 7,
}


def _stage(**changes: dict[str, int]) -> dict[str, Any]:
    return {"name": "int8", "file": "onnx/m.onnx", "operators": GOOD, "executed_operators": GOOD, **changes}


def test_the_right_counts_pass() -> None:
    check_emission(_stage(), target="cpu", attentions=3, quantized=15)


@pytest.mark.parametrize("kind", ["operators", "executed_operators"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Attention": 2}, "3 fused attention operators, but has 2"),
        ({"Attention": 4}, "3 fused attention operators, but has 4"),
        ({"com.microsoft::MatMulIntegerToFloat": 8}, "15 int8 matrix products, but has 14"),
        ({"MatMulInteger": 1}, "15 int8 matrix products, but has 16"),
    ],
)
def test_a_wrong_count_fails(kind: str, changes: dict[str, int], message: str) -> None:
    place = "the saved file" if kind == "operators" else "the graph ONNX Runtime runs"
    with pytest.raises(VerificationError, match=f"{place} of stage 'int8' should have {message}"):
        check_emission(_stage(**{kind: GOOD | changes}), target="cpu", attentions=3, quantized=15)


def test_the_slow_fused_norm_is_refused_on_cpu_alone() -> None:
    stage = _stage(executed_operators=GOOD | {"com.microsoft::SkipLayerNormalization": 2})
    check_emission(stage, target="cuda", attentions=3, quantized=15)
    with pytest.raises(VerificationError, match="SkipLayerNormalization', but has 2"):
        check_emission(stage, target="cpu", attentions=3, quantized=15)


def test_portable_graphs_have_no_fused_attention() -> None:
    stage = _stage(operators={"MatMulInteger": 15}, executed_operators={"MatMulInteger": 15})
    check_emission(stage, target="portable", attentions=3, quantized=15)
    with pytest.raises(VerificationError, match="14 int8 matrix products, but has 15"):
        check_emission(stage, target="portable", attentions=3, quantized=14)
