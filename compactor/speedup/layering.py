"""The layers of a model, run one at a time: what stands before a layer need not be computed again for each block in it.

Found by watching one batch, never by names: a list of modules, each called once and in order, each with the output of
the one before as its first input. All else that a layer is called with (masks, positions) is kept from that run. None
of it may depend on the states: with other states the chain has to give what the whole model gives.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compactor.speedup.subject import Batch


class Stop(Exception):
    """What is wanted has been seen: the rest of the model need not run."""


@dataclasses.dataclass(frozen=True)
class _Call:
    """One call of a layer: its inputs, without the states."""

    name: str | None  # of the input that holds the states, where it is not the first
    others: tuple[Any, ...]
    named: Mapping[str, Any]

    def run(self, layer: nn.Module, states: Tensor) -> Any:
        if self.name is None:
            return _states(layer(states, *self.others, **self.named))
        return _states(layer(**{**self.named, self.name: states}))


class WholeModel:
    """A model that is run from the start for every block.

    Args:
        model: The model.
        batches: What it is run on.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch]) -> None:
        self._model, self._batches = model, batches

    def restart(self) -> None:
        """Nothing is kept."""

    def move_to(self, module: nn.Module) -> None:
        """Nothing is kept."""

    def run(self, place: int) -> None:
        """Run it on one batch, as far as no hook stops it."""
        with contextlib.suppress(Stop):
            self._model(**self._batches[place])


class Layers:
    """The layers of a model, with the states that go into one of them now, for every batch.

    Args:
        layers: In order.
        calls: By batch and layer.
        first: By batch, the states that go into the first layer.
    """

    def __init__(self, layers: Sequence[nn.Module], calls: Sequence[Sequence[_Call]], first: Sequence[Tensor]) -> None:
        self._layers, self._calls = layers, calls
        self._first = first
        self._owner = {module: number for number, layer in enumerate(layers) for module in layer.modules()}
        self.restart()

    def restart(self) -> None:
        """Begin with the first layer again."""
        self._states, self._at = list(self._first), 0

    def move_to(self, module: nn.Module) -> None:
        """Compute the states that go into the layer of ``module``, which is this one or a later one."""
        while self._at < self._owner[module]:
            layer = self._layers[self._at]
            for place, calls in enumerate(self._calls):
                self._states[place] = calls[self._at].run(layer, self._states[place])
            self._at += 1

    def run(self, place: int) -> None:
        """Run the layer on one batch, as far as no hook stops it."""
        with contextlib.suppress(Stop):
            self._calls[place][self._at].run(self._layers[self._at], self._states[place])


@torch.no_grad()
def open_layers(model: nn.Module, batches: Sequence[Batch], modules: Sequence[nn.Module]) -> Layers | WholeModel:
    """The model's layers, if all of ``modules`` are in them; else the whole model.

    Args:
        model: As it was: in evaluation mode.
        batches: It is run once on each.
        modules: What will be asked for.
    """
    smallest = min(batches, key=lambda batch: next(iter(batch.values())).numel())
    for chain in model.modules():
        if not isinstance(chain, nn.ModuleList) or len(chain) < 2:
            continue
        layers = list(chain)
        inside = {module for layer in layers for module in layer.modules()}
        if not set(modules) <= inside or not _is_chain(model, layers, smallest):
            continue
        calls, first = [], []
        for batch in batches:
            with _watching(layers) as seen:
                model(**batch)
            calls.append([call for call, _, _ in seen])
            first.append(seen[0][1])
        return Layers(layers, calls, first)
    return WholeModel(model, batches)


def _is_chain(model: nn.Module, layers: Sequence[nn.Module], batch: Batch) -> bool:
    """Whether each layer takes what the one before gives, and the chain alone gives the same."""
    with _watching(layers) as seen:
        model(**batch)
    if len(seen) != len(layers):
        return False
    for (_, _, given), (_, taken, _) in itertools.pairwise(seen):
        if given is None or taken.shape != given.shape or not torch.equal(taken, given):
            return False
    if not seen[0][1].is_floating_point():
        return False
    calls = [call for call, _, _ in seen]
    # What the first layer gives is moved, so that a mask or a bias that is made of the states would show.
    moved = layers[0].register_forward_hook(lambda module, inputs, output: _move(output))
    try:
        with _watching(layers) as seen:
            model(**batch)
        states = seen[0][1]
        for layer, call in zip(layers, calls, strict=True):
            states = call.run(layer, states)
    finally:
        moved.remove()
    return torch.equal(states, seen[-1][2])


def _move(output: Any) -> Any:
    states = _states(output)
    states = states + 0.1 * torch.linspace(-1, 1, states.numel(), dtype=states.dtype).reshape(states.shape)
    return states if isinstance(output, Tensor) else (states, *output[1:])


@contextlib.contextmanager
def _watching(layers: Sequence[nn.Module]) -> Iterator[list[Any]]:
    """Filled, while the model runs, with each layer's call, its states, and what it gave."""
    seen: list[Any] = []

    def see(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            seen.append((_Call(None, inputs[1:], dict(named)), inputs[0], _states(output)))
            return
        name = next((name for name, value in named.items() if isinstance(value, Tensor)), None)
        if name is not None and not inputs:
            others = {key: value for key, value in named.items() if key != name}
            seen.append((_Call(name, (), others), named[name], _states(output)))

    handles = [layer.register_forward_hook(see, with_kwargs=True) for layer in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _states(output: Any) -> Any:
    """The states among what a layer gives."""
    return output if isinstance(output, Tensor) else output[0]
