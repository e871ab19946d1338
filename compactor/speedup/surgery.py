"""Second-order surgery on one linear layer: which inputs to remove, in which order, and what the others become.

A layer ``y = W x`` whose inputs x are seen on real data loses inputs S. What it then gives differs least in the square,
summed over the data, where the inputs that are left take over:

    H    = sum of x xᵀ + damping                                   (N, N)
    ρ_S  = tr(W_S ((H⁻¹)_SS)⁻¹ W_Sᵀ)                               what removing S costs
    W   -= W_S ((H⁻¹)_SS)⁻¹ (H⁻¹)_S,:                              the others take over
    H⁻¹ -= (H⁻¹)_:,S ((H⁻¹)_SS)⁻¹ (H⁻¹)_S,:                        the inverse without S, by elimination

They go one group after another, the cheapest first. The weights after any number of removals are the least squares over
the inputs that are kept, so an order and H are all that has to be remembered (``solve_kept``).

Reference: Kurtić, Frantar and Alistarh, "ZipLM: Inference-Aware Structured Pruning of Language Models", 2023,
arXiv:2302.04089, Section 3.1, equations 2 to 4; Hassibi and Stork, "Second order derivatives for network pruning:
Optimal Brain Surgeon", 1992.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

DAMPING = 1e-3  # of the mean square of an input: it keeps apart what the data does not
_DELAYED = 64  # removals that are added up before the large matrices are touched


@dataclasses.dataclass(frozen=True)
class Order:
    """The order in which groups of inputs go.

    Attributes:
        groups: (G,) numbers of the groups, the cheapest first.
        errors: (G + 1,) squared error of the output after so many removals, as a share of the output's own square; both
            summed over the data, damping included.
    """

    groups: Tensor
    errors: Tensor

    def kept(self, count: int) -> Tensor:
        """(count,) the groups that are left when all but ``count`` have gone, in ascending order."""
        return self.groups[len(self.groups) - count :].sort().values


def damp(gram: Tensor, fixed: int = 0) -> Tensor:
    """H: ``gram`` with damping on its diagonal.

    Args:
        gram: (N, N) sum of x xᵀ over the data.
        fixed: How many of the last inputs are constants, such as the one that carries the bias: they need none.

    Returns:
        (N, N) in float64, positive definite; also where an input was always zero.
    """
    hessian = gram.to(torch.float64).clone()
    diagonal = hessian.diagonal()
    free = len(hessian) - fixed
    scale = float(diagonal[:free].mean())
    diagonal[:free] += DAMPING * scale if scale > 0 else 1.0
    diagonal[free:] *= 1 + 1e-9
    return hessian


def order_removals(weight: Tensor, hessian: Tensor, width: int, count: int) -> Order:
    """The order in which ``count`` groups go; the inputs behind them stay to the end.

    Args:
        weight: (D, N) of the layer.
        hessian: (N, N) H, positive definite.
        width: Neighbouring inputs of a group: 1 for neurons, the channels of a head's value for heads.
        count: Groups: the first ``width * count`` inputs.

    Raises:
        ValueError: Shapes do not fit.
    """
    if weight.ndim != 2 or hessian.shape != (weight.shape[1],) * 2 or width * count > weight.shape[1]:
        raise ValueError(f"{width} x {count} inputs of a {tuple(weight.shape)} weight, H is {tuple(hessian.shape)}")
    weight, hessian = weight.to(torch.float64), hessian.to(torch.float64)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    groups, costs = (
        _remove_singly(weight, inverse, count) if width == 1 else _remove_groups(weight, inverse, width, count)
    )
    whole = float(((weight @ hessian) * weight).sum())
    errors = torch.cat([torch.zeros(1, dtype=torch.float64), costs.cumsum(0)])
    return Order(groups, errors / whole if whole > 0 else errors)


def solve_kept(weight: Tensor, hessian: Tensor, kept: Tensor, cross: Tensor | None = None) -> Tensor:
    """(D, K) weights of the inputs ``kept`` with the least squared error over the data.

    Args:
        weight: (D, N) of the layer as it was.
        hessian: (N, N) H of the inputs as they are now.
        kept: (K,) numbers of the inputs that are left.
        cross: (D, N) sum of t xᵀ over the data, with what the layer should give as t, and the damping's own part: W
            times it. None where that is what it gave on the same inputs: W H.
    """
    weight, hessian = weight.to(torch.float64), hessian.to(torch.float64)
    wanted = weight @ hessian if cross is None else cross.to(torch.float64)
    factor = torch.linalg.cholesky(hessian[kept][:, kept])
    return torch.cholesky_solve(wanted[:, kept].T, factor).T


def _remove_groups(weight: Tensor, inverse: Tensor, width: int, count: int) -> tuple[Tensor, Tensor]:
    """Groups of ``width`` inputs: few and wide, so every cost is computed anew at each removal."""
    weight, inverse = weight.clone(), inverse.clone()
    left, order, costs = list(range(count)), [], []
    while left:
        found = []
        for group in left:
            own = slice(group * width, (group + 1) * width)
            factor = torch.linalg.cholesky(inverse[own, own])
            found.append(float(torch.linalg.solve_triangular(factor, weight[:, own].T, upper=False).square().sum()))
        cheapest = min(range(len(left)), key=found.__getitem__)
        group = left.pop(cheapest)
        own = slice(group * width, (group + 1) * width)
        factor = torch.linalg.cholesky(inverse[own, own])
        rows = torch.linalg.solve_triangular(factor, inverse[own], upper=False)  # (width, N)
        weight -= torch.linalg.solve_triangular(factor, weight[:, own].T, upper=False).T @ rows
        inverse -= rows.T @ rows
        # What is gone keeps an inverse of one and no weight, so that rounding cannot make it come back.
        weight[:, own] = 0
        inverse[own], inverse[:, own] = 0, 0
        order.append(group)
        costs.append(found[cheapest])
    return torch.tensor(order), torch.tensor(costs, dtype=torch.float64)


def _remove_singly(weight: Tensor, inverse: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """One input at a time, of thousands: the matrices are changed once in ``_DELAYED`` removals, their norms always.

    With u = (H⁻¹)_j,: / √(H⁻¹)_jj and c = W_j / √(H⁻¹)_jj, a removal is W -= c uᵀ and H⁻¹ -= u uᵀ, of which it takes
    only the squared norms of W's columns and the diagonal of H⁻¹ to find the next.
    """
    order, costs = [], []
    names = torch.arange(weight.shape[1])  # what is left, by the inputs' own numbers
    may_go = names < count
    while bool(may_go.any()):
        diagonal = inverse.diagonal().clone()
        norms = weight.square().sum(0)
        rows = inverse.new_zeros(_DELAYED, len(names))
        columns = weight.new_zeros(_DELAYED, len(weight))
        alive = may_go.clone()
        done = 0
        while done < _DELAYED and bool(alive.any()):
            scores = torch.where(alive, norms.clamp(min=0) / diagonal.clamp(min=1e-300), torch.inf)
            cheapest = int(scores.argmin())
            root = float(diagonal[cheapest].clamp(min=1e-300)) ** 0.5
            row = (inverse[cheapest] - rows[:done, cheapest] @ rows[:done]) / root
            column = (weight[:, cheapest] - columns[:done].T @ rows[:done, cheapest]) / root
            product = column @ weight - (columns[:done] @ column) @ rows[:done]  # cᵀ W, before W changes
            norms = norms - 2 * row * product + row.square() * column.square().sum()
            diagonal = diagonal - row.square()
            rows[done], columns[done] = row, column
            done += 1
            alive[cheapest] = False
            order.append(int(names[cheapest]))
            costs.append(float(scores[cheapest]))
        stays = ~may_go | alive
        weight = (weight - columns[:done].T @ rows[:done])[:, stays]
        inverse = (inverse - rows[:done].T @ rows[:done])[stays][:, stays]
        names, may_go = names[stays], may_go[stays]
    return torch.tensor(order), torch.tensor(costs, dtype=torch.float64)
