"""Assert that the operators we meant are in the saved file and in the graph that ONNX Runtime really runs."""

from __future__ import annotations

from typing import Any

from compactor.errors import VerificationError

_INT8 = ("com.microsoft::DynamicQuantizeMatMul", "com.microsoft::MatMulIntegerToFloat", "MatMulInteger")
_ATTENTION = ("Attention", "com.microsoft::MultiHeadAttention", "com.microsoft::Attention")
_SLOW_ON_CPU = "com.microsoft::SkipLayerNormalization"


def check_emission(stage: dict[str, Any], *, target: str, attentions: int, quantized: int) -> None:
    """Compare a stage's operator counts, saved and executed, with what was emitted.

    Args:
        stage: The manifest's entry.
        target: ``cpu``, ``cuda`` or ``portable``.
        attentions: Attention blocks that are left.
        quantized: Linear layers that were quantized; 0 for fp32.

    Raises:
        VerificationError: An operator is missing, or ONNX Runtime replaced it by one that is slow on the target.
    """
    for kind in ("operators", "executed_operators"):
        counts = stage[kind]
        seen = sum(counts.get(name, 0) for name in _ATTENTION)
        if target != "portable" and seen != attentions:
            _fail(stage, kind, f"{attentions} fused attention operators", seen)
        seen = sum(counts.get(name, 0) for name in _INT8)
        if seen != quantized:
            _fail(stage, kind, f"{quantized} int8 matrix products", seen)
    foreign = sorted(name for name in stage["operators"] if "::" in name)
    if target == "portable" and foreign:
        _fail(stage, "operators", "standard operators alone", len(foreign))
    if target == "cpu" and stage["executed_operators"].get(_SLOW_ON_CPU):
        _fail(stage, "executed_operators", f"no '{_SLOW_ON_CPU}'", stage["executed_operators"][_SLOW_ON_CPU])


def _fail(stage: dict[str, Any], kind: str, expected: str, seen: int) -> None:
    place = "the saved file" if kind == "operators" else "the graph ONNX Runtime runs"
    raise VerificationError(
        f"{place} of stage '{stage['name']}' should have {expected}, but has {seen}",
        where=str(stage["file"]),
        todo="nothing was published; this onnxruntime rewrites graphs in its own way: report 'compactor env'",
    )
