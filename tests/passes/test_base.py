from __future__ import annotations

import onnx_ir as ir
import pytest

from compactor.passes.base import Applied, Refused, RewritePass, RewriteResult
from compactor.passes.precision.quantize_linears import QuantizeLinearsPass
from compactor.passes.structure.remove_dead_heads import RemoveDeadHeadsPass


def model():
    return ir.Model(ir.Graph([], [], nodes=[]), ir_version=11)


def test_modified_follows_from_what_was_applied():
    applied = [Applied("layers.0.attention", "dead-head", 2), Applied("layers.1.attention", "dead-head", 0)]
    result = RewriteResult.of(model(), applied, [Refused("layers.2.attention", "why not")])
    assert result.modified
    assert result.applied == (applied[0],)
    assert result.refused == (Refused("layers.2.attention", "why not"),)


@pytest.mark.parametrize("applied", [(), (Applied("layers.0.attention", "dead-head", 0),)])
def test_a_refusal_alone_modifies_nothing(applied):
    assert not RewriteResult.of(model(), applied, [Refused("graph", "why not")]).modified


def test_a_pass_is_written_as_its_name_and_options():
    assert str(RemoveDeadHeadsPass()) == "remove-dead-heads"
    assert str(QuantizeLinearsPass(min_elements=7)) == "quantize-linears{min-elements=7}"


def test_a_pass_without_call_blames_its_developer():
    class HalfAPass(RewritePass):
        name = "half"

    with pytest.raises(TypeError, match="pass developer: 'HalfAPass'"):
        HalfAPass().call(model())
