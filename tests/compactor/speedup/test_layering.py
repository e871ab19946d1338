"""Layers run one at a time see what they see in the whole model, also when the layers before them have changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compactor.speedup.layering import Layers, Stop, WholeModel, open_layers
from compactor.speedup.observing import hooked
from compactor.speedup.units import find_units
from tests.compactor import encoders
from tests.compactor.speedup import subjects

FAMILIES = ["bert", "modernbert", "gte", "nomic", "eurobert-grouped", "esm", "deberta"]


def seen_by(road, module, count):
    """What goes into ``module`` on each batch."""
    found = []

    def stop(_, inputs):
        found.append(inputs[0].clone())
        raise Stop

    with torch.no_grad(), hooked({module: stop}):
        road.move_to(module)
        for place in range(count):
            road.run(place)
    return found


@pytest.mark.parametrize("left", [False, True], ids=["right padding", "left padding"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_layer_is_followed_by_the_same_states(family, left):
    model = subjects.bert() if family == "bert" else encoders.build(family).double().requires_grad_(False)
    batches = subjects.batches(left=left)
    units = find_units(model, {name: tensor[:1] for name, tensor in batches[0].items()})
    layers = open_layers(model, batches, [unit.module for unit in units])
    assert isinstance(layers, Layers)
    for unit in units:
        with torch.no_grad():
            unit.module.weight.mul_(0.7)
    for _ in range(2):
        for unit in units:
            expected = seen_by(WholeModel(model, batches), unit.module, len(batches))
            for right, own in zip(expected, seen_by(layers, unit.module, len(batches)), strict=True):
                assert torch.equal(right, own)
        layers.restart()


class Biased(nn.Module):
    """A layer that is given a bias which the model makes of the states."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, states, bias):
        return self.linear(states) + bias


class Model(nn.Module):
    """Layers in a row, each with a bias that is made of the states, or of the input alone."""

    def __init__(self, *, of_states: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Biased() for _ in range(3))
        self.of_states = of_states

    def forward(self, input_ids):
        first = states = input_ids[:, :, None].float().expand(-1, -1, 8) / 9
        for layer in self.layers:
            states = layer(states, (states if self.of_states else first).mean(1, keepdim=True))
        return states


@pytest.mark.parametrize(("of_states", "kind"), [(True, WholeModel), (False, Layers)])
def test_what_is_made_of_the_states_is_no_chain(of_states, kind):
    torch.manual_seed(0)
    model = Model(of_states=of_states).eval()
    batches = [{"input_ids": torch.arange(12).reshape(2, 6)}]
    assert isinstance(open_layers(model, batches, [model.layers[1].linear]), kind)


def test_a_module_outside_of_the_layers_takes_the_whole_model():
    model = subjects.bert()
    assert isinstance(open_layers(model, subjects.batches(), [model.classifier]), WholeModel)
