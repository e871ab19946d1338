"""Least squares again, block after block, on what the smaller model really sees.

Surgery solves each layer on the inputs that it had in the whole model. Once the blocks before it are smaller, it sees
others. So the blocks are solved once more, in the order in which the model computes them: the layer that reads the
heads or neurons that are left, and its bias, are those whose output is closest to

    t = y + (r - r')

with y what it gave in the whole model, r what the residual stream brought there, and r' what it brings now: what the
blocks before got wrong is made up for where that can be done. Where no residual stream is found, t is y.

Reference: Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", 2022, arXiv:2204.09656, Section 3.3
(mask tuning), here for whole matrices and biases.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compactor.speedup.layering import Stop, open_layers
from compactor.speedup.observing import hooked, with_constant
from compactor.speedup.subject import Batch, Subject, real_rows
from compactor.speedup.surgeon import Surgeon
from compactor.speedup.surgery import solve_kept
from compactor.speedup.units import Linears, Unit

_DAMPING = 1e-2  # of the mean square of an input, towards what surgery found: these are fewer texts
_MOST_VALUES = 250_000_000  # of all targets together


class Repair:
    """What the blocks of a model gave, to be asked again of a smaller one.

    Args:
        subject: The model, as it was.
        units: Its blocks.
    """

    def __init__(self, subject: Subject, units: Sequence[Unit]) -> None:
        self._model, self._units = subject.model, units
        self._batches = _few(subject.repair, sum(unit.module.out_features for unit in units))
        smallest = min(self._batches, key=lambda batch: next(iter(batch.values())).numel())
        self._streams = [find_residual(self._model, unit, smallest) for unit in units]
        self._targets = self._observe()
        self._layers = open_layers(self._model, self._batches, [unit.module for unit in units])

    @property
    def follows(self) -> int:
        """Of how many blocks the residual stream was found."""
        return sum(stream is not None for stream in self._streams)

    @torch.no_grad()
    def run(self, surgeon: Surgeon, linears: Linears, sizes: Sequence[int], say: Callable[[str], None]) -> None:
        """Solve every block anew; the model holds the result, with zeros for all that went.

        Args:
            surgeon: Whose orders say which heads and neurons are left.
            linears: The model's.
            sizes: Of each unit.
            say: Told of the progress.
        """
        surgeon.operate(sizes)
        self._layers.restart()
        for number, (unit, size) in enumerate(zip(self._units, sizes, strict=True)):
            say(f"least squares: {unit.name}, {number + 1} of {len(self._units)}")
            kept = surgeon.orders[number].kept(size)
            inputs = surgeon.inputs(number, size)
            before = surgeon.solved(number, size).double()
            gram = torch.zeros(len(inputs), len(inputs), dtype=torch.float64)
            cross = torch.zeros(len(before), len(inputs), dtype=torch.float64)
            self._layers.move_to(unit.module)
            for place in range(len(self._batches)):
                seen, brought = self._see(unit, self._streams[number], place)
                rows = with_constant(seen, unit)[:, inputs]
                target = self._targets[number][place]
                target = target if brought is None else target - brought
                gram += (rows.T @ rows).double()
                cross += (target.T @ rows).double()
            free = len(inputs) - int(unit.module.bias is not None)
            if free:
                pull = _DAMPING * float(gram.diagonal()[:free].mean()) or 1.0
                gram.diagonal()[:free] += pull
                cross[:, :free] += pull * before[:, :free]
            linears.write(unit, kept, solve_kept(before, gram, torch.arange(len(inputs)), cross))
        for unit, order, size in zip(self._units, surgeon.orders, sizes, strict=True):
            linears.clear(unit, order.kept(size))

    def _see(self, unit: Unit, stream: nn.Module | None, place: int) -> tuple[Tensor, Tensor | None]:
        """What the unit's last layer reads now, and what the residual stream brings; the model runs no further."""
        batch = self._batches[place]
        brought: list[Tensor] = []
        seen: list[Tensor] = []

        def carry(module: nn.Module, inputs: Any) -> None:
            brought[:] = [real_rows(inputs[0], batch)]

        def stop(module: nn.Module, inputs: Any) -> None:
            seen[:] = [real_rows(inputs[0], batch)]
            raise Stop

        with hooked({unit.module: stop, **({} if stream is None else {stream: carry})}):
            self._layers.run(place)
        return seen[0], brought[0] if brought else None

    @torch.no_grad()
    def _observe(self) -> list[list[Tensor]]:
        """By unit and batch (T, D): what each last layer gives and its residual stream brings, added."""
        found: list[list[Tensor]] = [[] for _ in self._units]
        for batch in self._batches:
            with _outputs(self._units, self._streams, batch) as added:
                self._model(**batch)
            for number, tensor in enumerate(added):
                found[number].append(tensor)
        return found


@contextlib.contextmanager
def _outputs(units: Sequence[Unit], streams: Sequence[nn.Module | None], batch: Batch) -> Iterator[list[Tensor]]:
    """Filled, while the model runs, with what each unit gives and its stream brings."""
    brought: dict[nn.Module, Tensor] = {}
    added: list[Tensor] = [torch.empty(0)] * len(units)

    def carry(module: nn.Module, inputs: Any) -> None:
        brought[module] = real_rows(inputs[0], batch)

    def give(number: int, stream: nn.Module | None) -> Callable[[nn.Module, Any, Tensor], None]:
        def see(module: nn.Module, inputs: Any, output: Tensor) -> None:
            rows = real_rows(output, batch)
            added[number] = rows.clone() if stream is None else rows + brought[stream]

        return see

    pairs = list(zip(units, streams, strict=True))
    handles = [unit.module.register_forward_hook(give(place, stream)) for place, (unit, stream) in enumerate(pairs)]
    try:
        with hooked({stream: carry for stream in streams if stream is not None}):
            yield added
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def find_residual(model: Any, unit: Unit, batch: Batch) -> nn.Module | None:
    """The module whose input is what the residual stream brings to the block; None where there is none to be found.

    It is a module that ran before the block's last layer, with an input r for which r + y, with y what that layer
    gives, is what a later module reads: the block's own projections where norms come behind the sum, and the norm
    before them where norms come first. The last such module is taken: the stream as it is when the block adds to it.

    Args:
        model: Run once.
        unit: The block.
        batch: A small one.
    """
    before: list[tuple[nn.Module, Tensor]] = []
    given: list[Tensor] = []
    later: list[Tensor] = []

    def see(module: nn.Module, inputs: Any, output: Any) -> None:
        read = next((item for item in inputs if isinstance(item, Tensor)), None)
        if module is unit.module:
            given[:] = [output]
        elif not given and read is not None and read.shape[-1] == unit.module.out_features:
            before.append((module, read))
        elif given and read is not None and read.shape == given[0].shape:
            later.append(read)

    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [module.register_forward_hook(see) for module in leaves]
    try:
        model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    if not given:
        return None
    for module, read in reversed(before):
        if read.shape == given[0].shape and any(
            torch.allclose(read + given[0], other, rtol=1e-4, atol=1e-5) for other in later
        ):
            return module
    return None


def _few(batches: Sequence[Batch], width: int) -> list[Batch]:
    """As many of ``batches`` as leave all targets together in memory, one at least, spread over all lengths."""
    tokens = [int(batch["attention_mask"].sum()) for batch in batches]
    step = max(1, -(-sum(tokens) * width // _MOST_VALUES))
    return list(batches[::step])
