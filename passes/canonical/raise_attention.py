"""Raise attention that is spelled out as MatMul and Softmax into one ``Attention`` node.

    softmax( s * (q k^T) + bias + mask ) v   ==>   Attention(q, k, v, bias + mask; scale=s)
    softmax( Where(visible, s * (q k^T) + bias, lowest) ) v   ==>   Attention(q, k, v, bias + Where(visible, 0, EVEN))

Models with a position bias inside attention (MPNet, for one) export this way, because their code adds the bias
between the two products. q, k and v are (B, H, S, d).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compactor.passes.base import Applied, NoMatch, Refused, RewritePass, RewriteResult
from compactor.passes.graph.additive_masks import EVEN_LOGIT, hide_where_false
from compactor.passes.graph.heads import without_factors
from compactor.passes.graph.masks import HIDDEN
from compactor.passes.graph.matching import attribute, last_dim, new_node, producer, redirect, scalar, sole_consumer


@dataclasses.dataclass(frozen=True)
class _Choice:
    """A bool, and what it is where logits are left; elsewhere they are hidden."""

    condition: ir.Value
    left: bool


@dataclasses.dataclass(frozen=True)
class _SpelledOut:
    """``q``, ``k`` (not transposed), ``v``, terms added to the logits, the factor, the last MatMul, what is hidden."""

    q: ir.Value
    k: ir.Value
    v: ir.Value
    terms: tuple[ir.Value, ...]
    scale: float
    merge: ir.Node
    choice: _Choice | None


@dataclasses.dataclass(frozen=True)
class RaiseAttentionPass(RewritePass):
    """Replace MatMul, Softmax, MatMul by ``Attention``.

    Left alone, with the reason: a Softmax whose input is not a scaled product of two (B, H, S, d) values plus
    additive terms, one whose probabilities are read elsewhere, and one that is not over the last axis.
    """

    name: ClassVar[str] = "raise-attention"

    def call(self, model: ir.Model) -> RewriteResult:
        """Raise every spelled-out attention of the main graph."""
        applied, refused = [], []
        masks = _Masks(model.graph)
        for node in tuple(model.graph):
            if node.op_type != "Softmax":
                continue
            try:
                found = _match(node)
            except NoMatch as reason:
                refused.append(Refused(node.name or "Softmax", str(reason)))
                continue
            _rewrite(model.graph, found, masks)
            applied.append(Applied("graph", "raised-attention", 1))
        RemoveUnusedNodesPass()(model)  # or the blocks' inner values would seem to have other readers
        return RewriteResult.of(model, applied, refused)


def _match(softmax: ir.Node) -> _SpelledOut:
    if attribute(softmax, "axis", -1) not in (-1, 3):
        raise NoMatch("its softmax is not over the keys")
    merge = sole_consumer(softmax.outputs[0])
    if merge.op_type != "MatMul" or merge.inputs[0] is not softmax.outputs[0]:
        raise NoMatch("its probabilities do not multiply a value matrix")
    terms: list[ir.Value] = []
    scale = 1.0
    value, choice = _chosen(softmax.inputs[0])
    while True:
        node = producer(value, "Add", "Mul", "Div", "MatMul")
        if node.op_type == "MatMul":
            break
        if node.op_type == "Add":
            index = next((i for i in (0, 1) if _leads_to_product(node.inputs[i])), None)
            if index is None or scale != 1.0:
                raise NoMatch("its logits are not a scaled product plus additive terms")
            term = node.inputs[1 - index]
            assert term is not None
            terms.append(term)
            value = node.inputs[index]
            continue
        left, right = node.inputs
        factor = scalar(right)
        value = left
        if factor is None and node.op_type == "Mul":
            factor, value = scalar(left), right
        if not factor:
            raise NoMatch("its scale is not a constant")
        scale *= factor if node.op_type == "Mul" else 1 / factor
    q, k_transposed = node.inputs
    k_transposed, factor = without_factors(k_transposed)
    scale *= factor
    transpose = producer(k_transposed, "Transpose")
    assert q is not None and merge.inputs[1] is not None
    last_dim(q)
    source = transpose.inputs[0]
    assert source is not None
    perm = tuple(attribute(transpose, "perm", ()))
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    if perm == (0, 1, 3, 2):
        k = source
    elif perm == (0, 2, 3, 1):  # one Transpose for (B, S, H, d) -> (B, H, d, S)
        straight = new_node("Transpose", [source], perm=[0, 2, 1, 3])
        straight.outputs[0].type = source.type
        if source.shape is not None:
            straight.outputs[0].shape = ir.Shape([source.shape[i] for i in (0, 2, 1, 3)])
        graph.insert_before(node, straight)
        k = straight.outputs[0]
    else:
        raise NoMatch(f"its keys are transposed by {perm}")
    return _SpelledOut(q, k, merge.inputs[1], tuple(terms), scale, merge, choice)


def _chosen(logits: ir.Value | None) -> tuple[ir.Value | None, _Choice | None]:
    """The logits before a number hid some of them, and what said which."""
    node = logits.producer() if logits is not None else None
    if node is None or node.domain or node.op_type != "Where" or node.inputs[0] is None:
        return logits, None
    condition, (yes, no) = node.inputs[0], node.inputs[1:]
    assert condition is not None
    for hidden, left, value in ((yes, False, no), (no, True, yes)):
        number = scalar(hidden)
        if number is not None and number <= HIDDEN:
            return value, _choice(condition, left)
    raise NoMatch("its logits are chosen by a condition")


def _choice(condition: ir.Value, left: bool) -> _Choice:
    """A choice by what a ``Not`` negates, where the condition is one: layers negate a mask each for itself."""
    node = condition.producer()
    if node is not None and node.op_type == "Not" and node.inputs[0] is not None:
        return _choice(node.inputs[0], not left)
    return _Choice(condition, left)


def _leads_to_product(value: ir.Value | None) -> bool:
    """Whether ``value`` is a product of two activations, possibly scaled or with terms added."""
    node = value.producer() if value is not None else None
    if node is None:
        return False
    if node.op_type == "MatMul":
        return all(v is not None and v.const_value is None for v in node.inputs)
    if node.op_type in ("Add", "Mul", "Div"):
        return any(_leads_to_product(v) for v in node.inputs)
    return False


class _Masks:
    """Bool masks as terms, each made once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[_Choice, ir.Value] = {}

    def of(self, choice: _Choice, dtype: ir.DataType) -> ir.Value:
        """The term that hides what is not left."""
        if choice not in self._made:
            visible, nodes = choice.condition, list[ir.Node]()
            source = visible.producer()
            if not choice.left:
                nodes = [new_node("Not", [visible])]
                nodes[0].outputs[0].type, nodes[0].outputs[0].shape = visible.type, visible.shape
                visible = nodes[0].outputs[0]
            nodes.append(hide_where_false(self._graph, visible, dtype, EVEN_LOGIT))
            if source is None:
                self._graph.insert_before(self._graph[0], nodes)
            else:
                self._graph.insert_after(source, nodes)
            self._made[choice] = nodes[-1].outputs[0]
        return self._made[choice]


def _rewrite(graph: ir.Graph, found: _SpelledOut, masks: _Masks) -> None:
    mask: ir.Value | None = None
    terms = list(found.terms)
    if found.choice is not None:
        terms.append(masks.of(found.choice, found.merge.outputs[0].dtype or ir.DataType.FLOAT))
    for term in terms:
        if mask is None:
            mask = term
            continue
        add = new_node("Add", [mask, term])
        add.outputs[0].type = term.type
        add.outputs[0].shape = _broadcast(mask.shape, term.shape)
        graph.insert_before(found.merge, add)
        mask = add.outputs[0]
    inputs = [found.q, found.k, found.v] + ([mask] if mask is not None else [])
    attention = new_node("Attention", inputs, scale=found.scale)
    attention.name = found.merge.name  # what is said of it later must be told from what is said of others
    attention.outputs[0].type = found.merge.outputs[0].type
    attention.outputs[0].shape = found.merge.outputs[0].shape
    graph.insert_before(found.merge, attention)
    redirect(found.merge.outputs[0], attention.outputs[0])
    graph.remove(found.merge, safe=True)


def _broadcast(a: ir.Shape | None, b: ir.Shape | None) -> ir.Shape | None:
    if a is None or b is None or len(a) != len(b):
        return None
    return ir.Shape([y if x == 1 else x for x, y in zip(a, b, strict=True)])
