from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from compactor.passes.lowering.fuse_cuda_rotary import FuseCudaRotaryPass
from tests.models import Architecture, build
from tests.running import assert_rewrites_once, assert_same, assert_untouched, padding_mask, random_feeds, run32

ARCH = Architecture(layers=2, qk=6, rotary="half", dtype=np.float32)


@pytest.mark.parametrize("rotary", ["half", "interleaved"])
@pytest.mark.parametrize("rotated", [0, 4])
def test_is_the_same_operator_in_another_domain(rotary, rotated):
    model = build(dataclasses.replace(ARCH, rotary=rotary, rotated=rotated))
    feeds = random_feeds(model, padding_mask("left"))
    before = run32(model, feeds)

    assert_rewrites_once(FuseCudaRotaryPass(), model, fused_rotary=4)

    nodes = [node for node in model.graph if node.op_type == "RotaryEmbedding"]
    assert {node.domain for node in nodes} == {"com.microsoft"}
    assert model.graph.opset_imports["com.microsoft"] == 1
    assert_same(run32(model, feeds), before, tolerance=1e-5)  # its CPU kernel


def test_the_4d_form_stays():
    assert_untouched(FuseCudaRotaryPass(), build(dataclasses.replace(ARCH, form="4d")), "not in the 3-D form")
