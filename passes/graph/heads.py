"""How the heads of an attention are split from one matrix: (B, S, H*d) -> (B, H, S, d)."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from compactor.passes.base import NoMatch
from compactor.passes.graph.matching import attribute, constant, producer, scalar

SWAP = (0, 2, 1, 3)  # (B, S, H, d) <-> (B, H, S, d)

HEAD_NORMS = {"RMSNormalization": "HeadRMSNormalization", "LayerNormalization": "HeadLayerNormalization"}
"""Norms over the channels of a head, and the canonical operators (B, S, H*d) -> (B, S, H*d) that they become."""


@dataclasses.dataclass(frozen=True)
class SplitHeads:
    """A (B, H, S, d) operand.

    Attributes:
        source: The (B, S, H*d) value behind it.
        heads: H.
        width: d.
        factor: What it is multiplied by on its way.
        rotary: The rotary embedding on its way, if there is one.
        norm: The norm of each head on its way, if there is one, in front of ``rotary`` and the factor.
    """

    source: ir.Value
    heads: int
    width: int
    factor: float = 1.0
    rotary: ir.Node | None = None
    norm: ir.Node | None = None


def scaled_heads(value: ir.Value | None) -> SplitHeads:
    """An operand behind numbers that it is multiplied or divided by, or none. Raises NoMatch."""
    value, factor = without_factors(value)
    return dataclasses.replace(split_heads(value), factor=factor)


def normed_heads(value: ir.Value | None) -> SplitHeads:
    """The same of an operand whose heads may each have been normalised before. Raises NoMatch."""
    value, factor = without_factors(value)
    norm = value.producer() if value is not None else None
    if norm is None or norm.op_type not in HEAD_NORMS or norm.domain:
        return dataclasses.replace(split_heads(value), factor=factor)
    found = split_heads(norm.inputs[0])
    numbers = [constant(value) for value in norm.inputs[1:] if value is not None]
    of_channels = bool(numbers) and all(each is not None and each.shape == (found.width,) for each in numbers)
    if attribute(norm, "axis", -1) not in (-1, 3) or not of_channels:
        raise NoMatch("queries or keys are normalised by something else than numbers for the channels of a head")
    return dataclasses.replace(found, factor=factor, norm=norm)


def without_factors(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """A value before numbers multiply or divide it, and their product."""
    factor = 1.0
    while True:
        node = value.producer() if value is not None else None
        if node is None or node.domain or node.op_type not in ("Mul", "Div"):
            return value, factor
        left, right = node.inputs
        number = scalar(right)
        if number:
            value, factor = left, factor * (number if node.op_type == "Mul" else 1 / number)
            continue
        number = scalar(left)
        if not number or node.op_type == "Div":
            return value, factor
        value, factor = right, factor * number


def split_heads(value: ir.Value | None) -> SplitHeads:
    """The (B, S, H*d) value behind a (B, H, S, d) operand, with H and d. Raises NoMatch."""
    transpose = producer(value, "Transpose")
    if tuple(attribute(transpose, "perm", ())) != SWAP:
        raise NoMatch("the heads are not split by a Transpose of (0, 2, 1, 3)")
    reshape = producer(transpose.inputs[0], "Reshape")
    split, source = reshape.outputs[0], reshape.inputs[0]
    if split.shape is None or len(split.shape) != 4 or source is None or source.shape is None or len(source.shape) != 3:
        raise NoMatch("the heads are not split by a Reshape of (B, S, H*d)")
    heads, width, total = split.shape[2], split.shape[3], source.shape[2]
    if isinstance(width, int) and isinstance(total, int) and width and not isinstance(heads, int):
        heads = total // width
    if not isinstance(heads, int) or not isinstance(width, int) or heads * width != total:
        raise NoMatch(f"the head count of '{split.name}' is not static")
    return SplitHeads(source, heads, width)


def before_repeats(value: ir.Value | None) -> ir.Value | None:
    """The (B, G, S, d) heads of which each is repeated for as many queries, one behind the other: (B, H, S, d).

    Anything else is given back as it is. Raises NoMatch where heads are repeated in another order or number.
    """
    merge = value.producer() if value is not None else None
    if merge is None or merge.op_type != "Reshape" or merge.inputs[0] is None:
        return value
    repeat = merge.inputs[0].producer()
    if repeat is None or repeat.op_type != "Expand":
        return value
    apart = producer(repeat.inputs[0], "Unsqueeze")
    axes = constant(apart.inputs[1])
    sizes, merged = repeat.outputs[0].shape, merge.outputs[0].shape
    if axes is None or axes.reshape(-1).tolist() != [2] or sizes is None or merged is None:
        raise NoMatch("keys or values are reshaped in a way that is not known")
    groups, times = sizes[1], sizes[2]
    if not isinstance(groups, int) or not isinstance(times, int) or merged[1] != groups * times:
        raise NoMatch("keys or values are reshaped in a way that is not known")
    return apart.inputs[0]
