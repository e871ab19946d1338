from __future__ import annotations

import numpy as np
import pytest

from compactor.passes.lowering.fuse_bias_gelu import FuseBiasGeluPass
from tests.models import Architecture, build, random_weights
from tests.running import assert_rewrites_once, assert_same, assert_untouched, operators, random_feeds, run32


@pytest.mark.parametrize(("activation", "op_type"), [("gelu", "BiasGelu"), ("tanh-gelu", "FastGelu")])
def test_fuses_the_bias_and_keeps_which_gelu_it_is(activation, op_type):
    model = build(Architecture(layers=2, activation=activation, dtype=np.float32))
    feeds = random_feeds(model)
    before = run32(model, feeds)

    assert_rewrites_once(FuseBiasGeluPass(), model, fused_gelu=2)

    assert operators(model)[op_type] == 2 and "Gelu" not in operators(model)
    node = next(node for node in model.graph if node.op_type == op_type)
    assert node.inputs[0].producer().op_type == "MatMul"
    assert_same(run32(model, feeds), before, 1e-5)


def test_a_gelu_without_a_bias_is_left_alone():
    arch = Architecture(dtype=np.float32)
    weights = random_weights(arch)
    del weights["0.up.bias"]
    assert_untouched(FuseBiasGeluPass(), build(arch, weights), "expected Add, found 'MatMul'")


def test_a_bias_that_a_caller_may_override_is_left_alone():
    model = build(Architecture(dtype=np.float32), inputs=["0.up.bias"])
    assert_untouched(FuseBiasGeluPass(), model, "no constant vector")


def test_a_sum_that_is_read_elsewhere_is_left_alone():
    assert_untouched(FuseBiasGeluPass(), build(Architecture(dtype=np.float32), outputs=["0.up"]), "used outside")


def test_another_activation_is_none_of_its_business():
    assert_untouched(FuseBiasGeluPass(), build(Architecture(activation="relu", dtype=np.float32)))
