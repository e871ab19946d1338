"""The surgery of a whole model: an order of removal for every block, and what any choice of sizes costs."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from compactor.speedup.observing import gram_matrices
from compactor.speedup.subject import Subject
from compactor.speedup.surgery import Order, damp, order_removals, solve_kept
from compactor.speedup.units import Linears, Unit

_STEP = 0.9  # each size of a feed-forward layer is this part of the one before, as in ZipLM's Section 3.2
_MULTIPLE = 16  # neurons: what int8 kernels take at a time
_ALONE = (0.5, 0.25)  # parts of a block that are left where it is judged alone
_CACHE_BYTES = 1_500_000_000  # of solved weights


class Surgeon:
    """Orders of removal, solved weights, and losses.

    Args:
        subject: The model, as it was.
        units: Its blocks.
        linears: Their weights.
        say: Told of the progress.

    Attributes:
        orders: Of each unit.
    """

    def __init__(self, subject: Subject, units: Sequence[Unit], linears: Linears, say: Callable[[str], None]) -> None:
        self._subject, self._units, self._linears = subject, units, linears
        say("what the layers see")
        self._grams: Mapping[str, Tensor] = gram_matrices(subject.model, units, subject.statistics)
        self._weights = [unit.weight() for unit in units]
        self._solved: collections.OrderedDict[tuple[int, int], Tensor] = collections.OrderedDict()
        self.orders: list[Order] = []
        for number, unit in enumerate(units):
            say(f"order of removal: {unit.name}, {number + 1} of {len(units)}")
            self.orders.append(order_removals(self._weights[number], self.hessian(number), unit.width, unit.count))
        self._before = subject.answers(subject.search)

    def hessian(self, number: int) -> Tensor:
        """H of one unit."""
        unit = self._units[number]
        return damp(self._grams[unit.name], fixed=int(unit.module.bias is not None))

    def sizes(self, number: int) -> tuple[int, ...]:
        """What a unit may be left with: any number of heads; of neurons nothing, or a power of ``_STEP`` of all."""
        count = self._units[number].count
        if self._units[number].is_attention:
            return tuple(range(count + 1))
        multiple = _MULTIPLE if count >= 16 * _MULTIPLE else max(1, count // 16)
        found, size = {0, count}, float(count)
        while size * _STEP >= multiple:
            size *= _STEP
            found.add(max(multiple, round(size / multiple) * multiple))
        return tuple(sorted(size for size in found if size <= count))

    def errors(self, number: int, sizes: Sequence[int]) -> Tensor:
        """(K,) squared errors of a unit that is left with these sizes."""
        removed = self._units[number].count - torch.tensor(sizes)
        return self.orders[number].errors[removed]

    def solved(self, number: int, size: int) -> Tensor:
        """(D, size * width [+ 1]) what reads the heads or neurons that are left, in float32."""
        key = (number, size)
        if key not in self._solved:
            inputs = self.inputs(number, size)
            solution = solve_kept(self._weights[number], self.hessian(number), inputs).float()
            self._solved[key] = solution
            while sum(tensor.nbytes for tensor in self._solved.values()) > _CACHE_BYTES and len(self._solved) > 1:
                self._solved.popitem(last=False)
        self._solved.move_to_end(key)
        return self._solved[key]

    def inputs(self, number: int, size: int) -> Tensor:
        """The inputs of the last layer that are left: of the heads or neurons, and the bias's constant."""
        unit = self._units[number]
        inputs = unit.inputs_of(self.orders[number].kept(size))
        if unit.module.bias is None:
            return inputs
        return torch.cat([inputs, torch.tensor([unit.module.in_features])])

    def operate(self, sizes: Sequence[int]) -> None:
        """Leave every unit with its size; the layers that make what went are left as they are."""
        self._linears.restore()
        for number, (unit, size) in enumerate(zip(self._units, sizes, strict=True)):
            if size < unit.count:
                self._linears.write(unit, self.orders[number].kept(size), self.solved(number, size))

    def loss(self, sizes: Sequence[int]) -> float:
        """Of the model with these sizes; it is left so."""
        self.operate(sizes)
        return self.loss_now()

    def sensitivities(self, say: Callable[[str], None]) -> list[float]:
        """How much the model's loss rises with each unit's own error, measured with the unit changed alone."""
        whole = [unit.count for unit in self._units]
        found = []
        for number, unit in enumerate(self._units):
            say(f"what {unit.name} matters: {number + 1} of {len(self._units)}")
            losses, errors = 0.0, 0.0
            for share in _ALONE:
                size = min(self.sizes(number), key=lambda size: abs(size - share * unit.count))
                losses += self.loss([*whole[:number], size, *whole[number + 1 :]])
                errors += float(self.errors(number, [size])[0])
            found.append(max(losses, 1e-9) / max(errors, 1e-9))
        self._linears.restore()
        return found

    def loss_now(self) -> float:
        """Of the model as it is."""
        return self._subject.loss(self._before, self._subject.search)
