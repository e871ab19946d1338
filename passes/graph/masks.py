"""What an attention mask computes, told from its graph: a symbolic evaluation over the padding mask.

Each element of a mask is a function of at most one element of ``attention_mask`` (B, S), which is 0 or 1 (in a decoder,
of ``encoder_attention_mask``). So a value is
summed up by two numbers, what it is where the token is padding and where it is real, and by which of its axes run over
the batch and the keys. Exporters spell the same mask in very different ways (additive or boolean, expanded, gathered
through an index grid); they all come out as the same summary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from compactor.passes.graph.matching import attribute, constant, same_size, scalar

PADDING_MASK = "attention_mask"
ENCODER_PADDING_MASK = "encoder_attention_mask"  # of the tokens that a decoder's cross-attention looks at
PADDING_MASKS = (PADDING_MASK, ENCODER_PADDING_MASK)
HIDDEN = -1e9  # an additive mask at or below this is as good as False: exp(HIDDEN) is 0 in every float type

_BATCH, _KEY, _INDEX, _ONE, _ANY = "batch", "key", "index", "1", "any"


@dataclasses.dataclass(frozen=True)
class MaskSummary:
    """What a mask element is for a padded and for a real key.

    Attributes:
        padded: Its value where ``attention_mask`` is 0.
        real: Its value where ``attention_mask`` is 1.
        boolean: Whether the value is a bool (True: visible) and not an additive term.
        axes: One role an axis: ``batch``, ``key``, ``1`` (size one), ``any`` (the same along the axis), ``index``
            (the value is the position along this axis, not a mask).
    """

    padded: float
    real: float
    boolean: bool
    axes: tuple[str, ...]

    @property
    def is_index(self) -> bool:
        """Whether the value is a position, 0, 1, 2, … along one axis."""
        return _INDEX in self.axes

    @property
    def keeps_everything(self) -> bool:
        """Whether the mask hides nothing."""
        return not self.is_index and self.padded == self.real == (1.0 if self.boolean else 0.0)

    @property
    def is_padding_mask(self) -> bool:
        """Whether the mask hides exactly the padded keys: (B, 1, S or 1, S), True or 0 where real."""
        return len(self.axes) == 4 and self.hides_keys

    @property
    def hides_keys(self) -> bool:
        """Whether it hides exactly the padded keys, with any number of axes between examples and keys."""
        if self.is_index or self.axes[:1] != (_BATCH,) or self.axes[-1] != _KEY or len(self.axes) < 3:
            return False
        return set(self.axes[1:-1]) <= {_ONE, _ANY} and self._hides

    @property
    def _hides(self) -> bool:
        if self.boolean:
            return self.padded == 0 and self.real == 1
        return self.padded <= HIDDEN and self.real == 0


def hides_padding(value: ir.Value | None) -> bool:
    """Whether a mask (B, 1 or H, 1 or S, S) is proven to hide every padded key, whatever else it adds to the logits."""
    if value is not None and value.shape is not None and len(value.shape) != 4:
        return False
    return _hides_keys(value, 4)


def _hides_keys(value: ir.Value | None, rank: int) -> bool:
    """The same of a value of ``rank`` axes; with fewer, its examples would be taken for heads."""
    summary = summarize(value)
    if summary is not None:
        return len(summary.axes) == rank and summary.hides_keys
    node = value.producer() if value is not None else None
    if node is None:
        return False
    if node.op_type in ("Add", "And"):
        return any(_hides_keys(v, rank) for v in node.inputs)
    if node.op_type == "Gather" and attribute(node, "axis", 0) not in (1, 1 - rank):
        return False  # it may choose heads, but not examples or keys
    if node.op_type in ("Gather", "Expand", "Identity"):
        return _hides_keys(node.inputs[0], rank)
    if node.op_type == "Reshape":
        new = _new_axes(node)
        return new is not None and 0 not in new and rank - 1 not in new and _hides_keys(node.inputs[0], rank - len(new))
    if node.op_type == "Where":
        condition, yes, no = node.inputs
        chosen = [_is_hidden(branch) or _hides_keys(branch, rank) for branch in (yes, no)]
        return all(chosen) or (_is_hidden(no) and _zero_where_padded(condition, rank))
    return _zero_where_padded(value, rank) if node.op_type == "Cast" else False


def _is_hidden(value: ir.Value | None) -> bool:
    number = scalar(value)
    return number is not None and number <= HIDDEN


def _zero_where_padded(value: ir.Value | None, rank: int = 4, *, axis: int = -1) -> bool:
    """Whether a condition (B, .., S, S) is False, or a number that it is cast from 0, for every padded key.

    Args:
        value: The condition; axes of size one may stand for those it does not depend on.
        rank: How many axes it has.
        axis: -1, or -2 to ask the same of queries.
    """
    summary = summarize(value)
    if summary is not None:
        roles = summary.axes
        fits = len(roles) == rank > 2 and roles[0] == _BATCH and roles[axis] == _KEY and not summary.is_index
        return fits and summary.padded == 0
    node = value.producer() if value is not None else None
    if node is None or node.domain:
        return False
    if node.op_type in ("And", "Mul"):
        return any(_zero_where_padded(v, rank, axis=axis) for v in node.inputs)
    return node.op_type in ("Cast", "Expand", "Identity") and _zero_where_padded(node.inputs[0], rank, axis=axis)


def weighs_hidden_evenly(mask: ir.Value | None) -> bool:
    """Whether a mask that hides padding may hide every key from a query in a way that leaves it all keys alike.

    That is a float which hides more than padding, by numbers that are finite.
    """
    if mask is None or mask.dtype == ir.DataType.BOOL:
        return False
    node = mask.producer()
    if node is not None and node.op_type == "Add":
        hides = [hides_padding(v) for v in node.inputs]
        evenly = any(weighs_hidden_evenly(v) for v, each in zip(node.inputs, hides, strict=True) if each)
        return evenly or (any(hides) and any(map(_hides_more, node.inputs)))
    if node is not None and node.op_type in ("Gather", "Expand", "Identity"):
        return weighs_hidden_evenly(node.inputs[0])
    if summarize(mask) is not None or not hides_padding(mask):
        return False
    condition = summarize(node.inputs[0]) if node is not None and node.op_type == "Where" else None
    return condition is None or not condition.hides_keys


def _hides_more(value: ir.Value | None) -> bool:
    """Whether a term holds numbers that hide, by something else than padding alone."""
    array = constant(value)
    if array is not None:
        return bool((array <= HIDDEN).any()) and array.dtype != np.bool_
    node = value.producer() if value is not None else None
    if node is None or node.domain or node.op_type not in _OF_TERMS or summarize(value) is not None:
        return False
    return any(map(_hides_more, node.inputs))


_OF_TERMS = ("Add", "Cast", "Expand", "Gather", "Identity", "Mul", "Reshape", "Slice", "Sub", "Unsqueeze", "Where")


def hides_all_from_padding(mask: ir.Value | None) -> bool:
    """Whether a float mask is proven to hide every key from padded queries, which are all alike then."""
    node = mask.producer() if mask is not None else None
    if node is not None and node.op_type == "Add":
        return any(map(hides_all_from_padding, node.inputs))
    if node is None or node.op_type != "Where":
        return False
    hidden = scalar(node.inputs[2])
    return hidden is not None and hidden <= HIDDEN and _zero_where_padded(node.inputs[0], axis=-2)


def zeroes_padding(node: ir.Node) -> bool:
    """Whether a node multiplies rows (B, S, W) by a mask (B, S, 1) that is 0 where padded: nothing of them is left."""
    return node.op_type == "Mul" and any(
        summary is not None
        and not summary.boolean
        and summary.padded == 0
        and not summary.is_index
        and summary.axes == (_BATCH, _KEY, _ONE)
        for summary in map(summarize, node.inputs)
    )


def summarize(value: ir.Value | None) -> MaskSummary | None:
    """Summarise ``value``; None where it is not such a function of the padding mask."""
    if value is None:
        return None
    if value.is_graph_input():
        if value.name in PADDING_MASKS and value.shape is not None and len(value.shape) == 2:
            return MaskSummary(0.0, 1.0, False, (_BATCH, _KEY))
        return None
    array = constant(value)
    if array is not None:
        if array.size == 0 or not (array == array.reshape(-1)[0]).all():
            return None
        number = float(array.reshape(-1)[0])
        return MaskSummary(
            number, number, array.dtype == np.bool_, tuple(_ONE if n == 1 else _ANY for n in array.shape)
        )
    node = value.producer()
    rule = _RULES.get(node.op_type) if node is not None and node.domain == "" else None
    return rule(node) if node is not None and rule is not None else None


Rule = Callable[[ir.Node], MaskSummary | None]


def _merge_axes(*operands: tuple[str, ...]) -> tuple[str, ...] | None:
    rank = max(map(len, operands))
    padded = [(_ONE,) * (rank - len(axes)) + axes for axes in operands]
    merged = []
    for roles in zip(*padded, strict=True):
        varying = {role for role in roles if role not in (_ONE, _ANY)}
        if len(varying) > 1:
            return None
        merged.append(varying.pop() if varying else (_ANY if _ANY in roles else _ONE))
    if merged.count(_KEY) > 1 or merged.count(_BATCH) > 1:
        return None  # a function of two elements of the padding mask, as "query and key are both real"
    return tuple(merged)


def _elementwise(function: Callable[..., float], *, boolean: bool) -> Rule:
    def rule(node: ir.Node) -> MaskSummary | None:
        operands = [summarize(v) for v in node.inputs]
        if any(o is None or o.is_index for o in operands):
            return None
        known = [o for o in operands if o is not None]
        axes = _merge_axes(*(o.axes for o in known))
        if axes is None:
            return None
        with np.errstate(all="ignore"):
            padded, real = (float(function(*(getattr(o, side) for o in known))) for side in ("padded", "real"))
        return MaskSummary(padded, real, boolean, axes)

    return rule


def _cast(node: ir.Node) -> MaskSummary | None:
    source = summarize(node.inputs[0])
    if source is None or source.is_index:
        return source
    if attribute(node, "to", 0) == ir.DataType.BOOL:
        return MaskSummary(float(source.padded != 0), float(source.real != 0), True, source.axes)
    return dataclasses.replace(source, boolean=False)


def _where(node: ir.Node) -> MaskSummary | None:
    condition, yes, no = (summarize(v) for v in node.inputs)
    if condition is None or yes is None or no is None or any(o.is_index for o in (condition, yes, no)):
        return None
    axes = _merge_axes(condition.axes, yes.axes, no.axes)
    if axes is None:
        return None
    padded = yes.padded if condition.padded else no.padded
    real = yes.real if condition.real else no.real
    return MaskSummary(padded, real, yes.boolean, axes)


def _unsqueeze(node: ir.Node) -> MaskSummary | None:
    source, new = summarize(node.inputs[0]), constant(node.inputs[1])
    if source is None or new is None:
        return None
    rank = len(source.axes) + new.size
    inserted = {int(axis) % rank for axis in new.reshape(-1)}
    rest = iter(source.axes)
    return dataclasses.replace(source, axes=tuple(_ONE if i in inserted else next(rest) for i in range(rank)))


def _squeeze(node: ir.Node) -> MaskSummary | None:
    source, gone = summarize(node.inputs[0]), constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if source is None or gone is None:
        return None
    taken = {int(axis) % len(source.axes) for axis in gone.reshape(-1)}
    if any(source.axes[axis] != _ONE for axis in taken):
        return None
    return dataclasses.replace(source, axes=tuple(role for axis, role in enumerate(source.axes) if axis not in taken))


def _reshape(node: ir.Node) -> MaskSummary | None:
    source, new = summarize(node.inputs[0]), _new_axes(node)
    if source is None or new is None:
        return None
    rest = iter(source.axes)
    return dataclasses.replace(
        source, axes=tuple(_ONE if i in new else next(rest) for i in range(len(source.axes) + len(new)))
    )


def _new_axes(reshape: ir.Node) -> set[int] | None:
    """The axes of size one that a Reshape puts in; None where it does anything else."""
    before = reshape.inputs[0].shape if reshape.inputs[0] is not None else None
    after = reshape.outputs[0].shape
    if before is None or after is None:
        return None
    new, old = set(), list(before)
    for axis, size in enumerate(after):
        if old and same_size(old[0], size):
            old.pop(0)
        elif size == 1:
            new.add(axis)
        else:
            return None
    return None if old else new


def _expand(node: ir.Node) -> MaskSummary | None:
    source, shape = summarize(node.inputs[0]), node.inputs[1]
    if source is None or shape is None or shape.shape is None or not isinstance(shape.shape[0], int):
        return None
    axes = (_ONE,) * (shape.shape[0] - len(source.axes)) + source.axes
    return dataclasses.replace(source, axes=tuple(_ANY if role == _ONE else role for role in axes))


def _range(node: ir.Node) -> MaskSummary | None:
    start, step = constant(node.inputs[0]), constant(node.inputs[2])
    if start is None or step is None or start.item() != 0 or step.item() != 1:
        return None
    return MaskSummary(0.0, 0.0, False, (_INDEX,))


def _greater_or_equal(node: ir.Node) -> MaskSummary | None:
    left, right = (summarize(v) for v in node.inputs)
    if (
        left is not None
        and right is not None
        and left.is_index
        and not right.is_index
        and right.padded == right.real <= 0
    ):
        axes = _merge_axes(tuple(_ANY if role == _INDEX else role for role in left.axes), right.axes)
        return None if axes is None else MaskSummary(1.0, 1.0, True, axes)  # a position is never negative
    return _elementwise(lambda a, b: a >= b, boolean=True)(node)


def _gather_nd(node: ir.Node) -> MaskSummary | None:
    """``mask[rows, columns]`` through a grid of all positions: rows run over one axis, columns over another."""
    source, grid = summarize(node.inputs[0]), node.inputs[1].producer() if node.inputs[1] is not None else None
    if source is None or source.axes != (_BATCH, _KEY) or grid is None or attribute(node, "batch_dims", 0):
        return None
    if grid.op_type != "Concat" or len(grid.inputs) != 2:
        return None
    rows, columns = (summarize(v) for v in grid.inputs)
    if rows is None or columns is None or not (rows.is_index and columns.is_index):
        return None
    if rows.axes[-1] != _ONE or columns.axes[-1] != _ONE or not _cover(grid, node.inputs[0]):
        return None
    axes: list[str] = []
    for row, column in zip(rows.axes[:-1], columns.axes[:-1], strict=True):
        if row == column == _INDEX:
            return None
        axes.append(_BATCH if row == _INDEX else _KEY if column == _INDEX else _ANY)
    return dataclasses.replace(source, axes=tuple(axes))


def _cover(grid: ir.Node, mask: ir.Value | None) -> bool:
    """Whether the index ranges behind ``grid`` are as long as the axes of ``mask``, by their symbolic sizes."""
    for axis, index in enumerate(grid.inputs):
        node = index.producer() if index is not None else None
        while node is not None and node.op_type != "Range":
            node = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if node is None or mask is None or mask.shape is None or node.outputs[0].shape is None:
            return False
        if node.outputs[0].shape[0] != mask.shape[axis]:
            return False
    return True


_RULES: Mapping[str, Rule] = {
    "Add": _elementwise(lambda a, b: a + b, boolean=False),
    "And": _elementwise(lambda a, b: bool(a) and bool(b), boolean=True),
    "Cast": _cast,
    "Equal": _elementwise(lambda a, b: a == b, boolean=True),
    "Expand": _expand,
    "GatherND": _gather_nd,
    "Greater": _elementwise(lambda a, b: a > b, boolean=True),
    "GreaterOrEqual": _greater_or_equal,
    "Identity": lambda node: summarize(node.inputs[0]),
    "Mul": _elementwise(lambda a, b: a * b, boolean=False),
    "Not": _elementwise(lambda a: not a, boolean=True),
    "Or": _elementwise(lambda a, b: bool(a) or bool(b), boolean=True),
    "Range": _range,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Sub": _elementwise(lambda a, b: a - b, boolean=False),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
