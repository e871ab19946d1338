"""What the layers of a model see on its texts: sums of squares of their inputs, one pass over the texts for all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compactor.speedup.subject import Batch, real_rows
from compactor.speedup.units import Unit


@torch.no_grad()
def gram_matrices(model: Any, units: Sequence[Unit], batches: Sequence[Batch]) -> dict[str, Tensor]:
    """By the name of each unit (N [+ 1], N [+ 1]): the sum of x xᵀ over the real tokens that its last layer reads.

    Args:
        model: Run once on every batch.
        units: Whose last layers are watched; one with a bias sees one more input, which is always 1.
        batches: Padded; padding is not counted.
    """
    sums: dict[str, Tensor] = {}

    def watch(unit: Unit, batch: Batch) -> Callable[[nn.Module, Any], None]:
        def see(module: nn.Module, inputs: Any) -> None:
            rows = with_constant(real_rows(inputs[0], batch), unit)
            found = rows.T @ rows
            if unit.name in sums:
                sums[unit.name] += found
            else:
                sums[unit.name] = found.double()

        return see

    for batch in batches:
        with hooked({unit.module: watch(unit, batch) for unit in units}):
            model(**batch)
    return sums


def with_constant(rows: Tensor, unit: Unit) -> Tensor:
    """(T, N + 1) the inputs of a layer with a bias and the 1 that it is a weight of; (T, N) of one without."""
    return rows if unit.module.bias is None else torch.cat([rows, rows.new_ones(len(rows), 1)], 1)


@contextlib.contextmanager
def hooked(watchers: Mapping[nn.Module, Callable[[nn.Module, Any], None]]) -> Iterator[None]:
    """Each of ``watchers`` is told what goes into its module, before the module runs."""
    handles = [module.register_forward_pre_hook(watcher) for module, watcher in watchers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
