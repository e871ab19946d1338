"""Layers that become simpler while a model is trained: a LayerNorm without statistics, a GELU that is a ReLU.

With m from 1 to 0 over ``steps`` steps, and mean and variance of each token mixed with sums a (3,) over training:

    norm(x) = (x - μ) / sqrt(σ² + e) * w + b,    μ = m mean(x) + (1 - m) a0 / a2,    σ² = m var(x) + (1 - m) a1 / a2
    act(x)  = m gelu(x) + (1 - m) relu(x)

The sums of the batches' mean, variance and 1 decay by d from 0.99 to 1; at 1 they stand, and the norm is an affine map,
NoNorm. Evaluations and what is written take that map, and ReLU, at every step: they are what the run is for.
Padding counts in the sums, as in the paper's code.

Source: nn_pruning, ``layer_norm_patch`` and ``gelu_patch``; Lagunas et al. (2021), Section 4 (the "opt" models).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compactor.checkpoint.config import NO_NORM, NORM_TYPE, has_no_norm
from compactor.errors import UsageError

_FIRST_DECAY = 0.99
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation", "activation_function")


class Fading(nn.Module):
    """A layer that is another one after ``steps`` steps.

    Attributes:
        steps: How many.
        mix: m now.
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps, self.mix = steps, 1.0

    def advance(self, step: int) -> None:
        """Set m for ``step``, from 0."""
        self.mix = max(0.0, 1 - step / self.steps) if self.steps else 0.0


class FadingNorm(Fading):
    """A LayerNorm that becomes a NoNorm.

    Attributes:
        weight: ``(D,)``, the LayerNorm's own.
        bias: ``(D,)``.
        sums: ``(3,)`` decayed sums of mean, variance and 1.
    """

    sums: Tensor

    def __init__(self, norm: nn.LayerNorm, steps: int) -> None:
        super().__init__(steps)
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.register_buffer("sums", torch.zeros(3, device=norm.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """Of x (..., D); in training the sums move until m is 0."""
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        mix = self.mix if self.training else 0.0
        if self.training and mix:
            decay = _FIRST_DECAY * mix + (1 - mix)
            batch = torch.stack([mean.detach().mean(), variance.detach().mean(), mean.new_ones(())]).to(self.sums)
            self.sums.copy_(torch.lerp(batch, self.sums, decay))
        met = self.sums[2] > 0  # nothing yet: the norm is its own
        sums = self.sums / self.sums[2].clamp(min=torch.finfo(self.sums.dtype).tiny)
        mean = torch.where(met, mix * mean + (1 - mix) * sums[0], mean)
        variance = torch.where(met, mix * variance + (1 - mix) * sums[1], variance)
        return (x - mean) / (variance + self.eps).sqrt() * self.weight + self.bias

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias (D,) of the NoNorm that it is by its sums, computed in float64."""
        mean, variance, count = self.sums.double()
        if not count > 0:
            return self.weight, self.bias
        weight = self.weight.double() / (variance / count + self.eps).sqrt()
        bias = self.bias.double() - mean / count * weight
        return weight.to(self.weight.dtype), bias.to(self.bias.dtype)


class FadingActivation(Fading):
    """An activation that becomes ReLU."""

    def __init__(self, own: nn.Module, steps: int) -> None:
        super().__init__(steps)
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        """Pointwise."""
        simple = nn.functional.relu(x)
        return torch.lerp(simple, self.own(x), self.mix) if self.training and self.mix else simple


class Fader:
    """All layers of a model that fade."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = [module for module in model.modules() if isinstance(module, Fading)]

    def advance(self, step: int) -> None:
        """Set m for ``step``, from 0, in each of them."""
        for layer in self.layers:
            layer.advance(step)


def simplify(model: Any, *, norm: bool, activation: bool, steps: int) -> list[str]:
    """Let the norms or activations of a stock model fade, and say in its config what it will be.

    Args:
        model: Changed in place. What it has of NoNorm and ReLU already is left alone.
        norm: Whether its LayerNorms become NoNorms.
        activation: Whether its GELUs become ReLUs.
        steps: Over how many steps.

    Returns:
        Notes for the user.

    Raises:
        UsageError: It has no such layers.
    """
    notes = []
    if norm and not has_no_norm(model.config.to_dict()):
        count = _replace(model, _is_norm, lambda child: FadingNorm(child, steps))
        if not count:
            raise UsageError("MODEL has no LayerNorm that could become simpler", todo="leave out --norm")
        setattr(model.config, NORM_TYPE, NO_NORM)
        notes.append(f"{count} norms lose their statistics over {steps} steps")
    keys = [key for key in _ACTIVATIONS if "gelu" in str(getattr(model.config, key, "")).lower()]
    if activation and not any(getattr(model.config, key, None) == "relu" for key in _ACTIVATIONS):
        count = _replace(
            model, lambda child: "gelu" in type(child).__name__.lower(), lambda c: FadingActivation(c, steps)
        )
        if not count or not keys:
            raise UsageError("MODEL has no GELU that could become a ReLU", todo="leave out --activation")
        for key in keys:
            setattr(model.config, key, "relu")
        notes.append(f"{count} activations become ReLU over {steps} steps")
    return notes


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm) and module.weight is not None and module.bias is not None


def _replace(model: nn.Module, fits: Any, make: Any) -> int:
    """Put ``make(child)`` in the place of every child that fits. Returns how many."""
    made: dict[nn.Module, nn.Module] = {}  # one that stands in several places stays one
    for module in tuple(model.modules()):
        for name, child in tuple(module.named_children()):
            if fits(child) and not isinstance(module, Fading):
                if child not in made:
                    made[child] = make(child)
                setattr(module, name, made[child])
    return len(made)
