"""Which attention blocks with logits of distances are seen as one, and which are not."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
import pytest

from compactor.passes.base import NoMatch
from compactor.passes.graph.blocks import attention_blocks
from tests.models import Architecture, build
from tests.planting import attention_node, read_elsewhere

ARCH = Architecture(width=16, mask="both_real", relative="both")


def block(model):
    return next(block for _, block in attention_blocks(model.graph))


def term(model, side):
    return next(node for node in model.graph if node.name == f"0.{side}")


@pytest.mark.parametrize(("relative", "sides"), [("c2p", (1, 0)), ("p2c", (0, 1)), ("both", (1, 1)), ("", (0, 0))])
def test_terms_are_those_of_queries_and_those_of_keys(relative, sides):
    found = block(build(dataclasses.replace(ARCH, relative=relative)))
    assert (len(found.query_terms), len(found.key_terms)) == sides
    assert found.per_head_mask is False
    assert {each.node.name for each in found.terms} <= set(map(lambda node: node.name, found.nodes))


def turn_again(model):
    """Of the keys it is turned round once: twice is not at all."""
    way = term(model, "p2c").outputs[0].uses()[0].node
    again = ir.Node("", "Transpose", [way.outputs[0]], attributes=[ir.AttrInt64s("perm", [0, 1, 3, 2])], name="again")
    again.outputs[0].name, again.outputs[0].type = "again", way.outputs[0].type
    again.outputs[0].shape = way.outputs[0].shape
    model.graph.insert_after(way, again)
    for usage in tuple(way.outputs[0].uses()):
        if usage.node is not again:
            usage.node.replace_input_with(usage.idx, again.outputs[0])
    return model


def of_the_keys(model):
    term(model, "c2p").replace_input_with(0, term(model, "p2c").inputs[0])
    return model


def of_what_is_not_projected(model):
    value = next(node for node in model.graph if node.name == "first").outputs[0]
    term(model, "c2p").replace_input_with(0, value)
    return model


def expose(name):
    def change(model):
        value = next(value for node in model.graph for value in node.outputs if value.name == name)
        model.graph.outputs.append(value)
        return model

    return change


def expose_the_sum(model):
    model.graph.outputs.append(attention_node(model).inputs[3])
    return model


def mask_of_heads(model):
    mask = next(node for node in model.graph if node.op_type == "Where").outputs[0]
    mask.shape = ir.Shape(["batch", 4, "sequence", "sequence"])
    return model


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(turn_again, "the mask has values per head", id="turned-twice"),
        pytest.param(of_the_keys, "logits of distances are of another value", id="of-the-keys"),
        pytest.param(of_what_is_not_projected, "logits of distances are of another value", id="of-another-value"),
        pytest.param(lambda model: read_elsewhere(model, "0.c2p"), "used outside the block", id="read-elsewhere"),
        pytest.param(expose("0.c2p"), "used outside the block", id="is-an-output"),
        pytest.param(expose_the_sum, "used outside the block", id="sum-is-an-output"),
        pytest.param(mask_of_heads, "the mask has values per head beside logits of distances", id="mask-of-heads"),
    ],
)
def test_anything_else_is_no_block(change, reason):
    found = block(change(build(ARCH)))
    assert isinstance(found, NoMatch) and reason in str(found), found


def test_shared_keys_beside_logits_of_distances_are_no_block():
    model = build(Architecture(heads=4, kv_heads=2, mask="both_real", relative="c2p"))
    found = block(model)
    assert isinstance(found, NoMatch) and "query heads share keys beside logits of distances" in str(found)


def test_sizes_of_shared_heads_are_checked():
    model = build(Architecture(heads=4, kv_heads=2))
    assert block(model).shared and block(model).kv_heads == 2
    attention_node(model).attributes["kv_num_heads"] = ir.AttrInt64("kv_num_heads", 4)
    assert isinstance(block(model), NoMatch)
    attention_node(model).attributes["kv_num_heads"] = ir.AttrInt64("kv_num_heads", 3)
    assert isinstance(block(model), NoMatch)


# Norms of each head


@pytest.mark.parametrize("rotary", ["", "half"])
def test_norms_of_queries_and_keys_are_a_part_of_their_block(rotary):
    arch = Architecture(head_norm="rms", rotary=rotary, kv_heads=2)
    model = build(arch)
    found = block(model)
    assert (found.query_norm.name, found.key_norm.name) == ("0.query_norm", "0.key_norm")
    assert found.normed and {found.query_norm, found.key_norm} <= set(found.nodes)
    assert found.query.output.name == "0.query" and found.key.output.name == "0.key"
    assert found.liveness.qk.all(), "every channel counts in a norm"
    found.set_heads(2, 1)
    assert [node.attributes["num_heads"].value for node in (found.query_norm, found.key_norm)] == [2, 1]


def test_without_norms_a_block_has_none():
    found = block(build(Architecture()))
    assert (found.query_norm, found.key_norm, found.normed) == (None, None, False)


@pytest.mark.parametrize("role", ["query", "key"])
def test_a_norm_that_is_read_elsewhere_is_no_part_of_a_block(role):
    found = block(read_elsewhere(build(Architecture(head_norm="layer")), f"0.{role}_norm"))
    assert isinstance(found, NoMatch) and f"'0.{role}_norm' is used outside the block" in str(found)
