"""What prunes a model: its groups of scores, how they are thresholded at each step, and what is left.

A ``Pruner`` is a submodule of the model that it prunes. Before each step it is told the step, sets threshold and λ by
the schedule and switches the blocks; in the cool-down it settles: masks stay as they are and scores are no longer
trained.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compactor.errors import UsageError
from compactor.trainer.choosing import Choices, by_norm, by_score, sizes_left
from compactor.trainer.following import Part
from compactor.trainer.masks import (
    FAMILIES,
    Group,
    Mask,
    MaskedBias,
    MaskedWeight,
    Member,
    keep_at_least,
    live_elements,
)
from compactor.trainer.methods import Block, Scoring, Shape, Unit
from compactor.trainer.pacing import CLOSE, LOOKS, Look, Timed, densest
from compactor.trainer.schedule import Schedule, Steering
from compactor.trainer.structure import AttentionMatrices, FeedForwardMatrices, Matrices
from compactor.trainer.survivors import live_heads, live_neurons

SUBMODULE = "compactor_pruning"  # its name in the model
_RANKED_AT_ONCE = 1_000_000  # scores that are ranked at every step
LEAST = 0.005  # the part of each group's scores that is kept, whatever they are


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to prune.

    Attributes:
        attention: What a score of Q, K and V covers; blocks of O are the transposed ones.
        feed_forward: What a score of feed-forward matrices covers.
        schedule: When.
        scoring: By what.
        strength: λ_f.
        target_density: The part of the linear weights to reach; None leaves it to λ, or to ``timed``.
        timed: The time to reach; None where none is promised.
        attention_lambda: Multiple of λ for attention.
        feed_forward_lambda: Multiple of λ for feed-forward layers.
        decoder_lambda: Multiple of both in a decoder.
        least: The part of each group's scores that stays, at least.
    """

    attention: Unit
    feed_forward: Unit
    schedule: Schedule
    scoring: Scoring = Scoring.MOVEMENT
    strength: float = 20.0
    target_density: float | None = None
    timed: Timed | None = None
    attention_lambda: float = 1.0
    feed_forward_lambda: float = 1.0
    decoder_lambda: float = 2.0
    least: float = LEAST

    @property
    def aims(self) -> bool:
        """Whether a density or a time is to be reached, and λ steered there."""
        return self.target_density is not None or self.timed is not None


@dataclasses.dataclass(frozen=True)
class Layer:
    """What is left of one block.

    Attributes:
        name: ``layers.0.attention``.
        stack: ``encoder`` or ``decoder``.
        kind: ``attention``, ``cross_attention`` or ``feed_forward``.
        density: The part of its weights that lives.
        heads: Which of its heads live, as an export would judge it; None of a feed-forward block.
        neurons: How many live, and how many there are; None of attention.
    """

    name: str
    stack: str
    kind: str
    density: float
    heads: tuple[bool, ...] | None
    neurons: tuple[int, int] | None


class Pruner(nn.Module):
    """Masks on the blocks of a model. Make one with ``install``."""

    def __init__(self, blocks: Sequence[Matrices], plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.blocks = tuple(blocks)
        self.groups = nn.ModuleList()
        self.notes: tuple[str, ...] = ()
        self.threshold = 0.0
        self.strength = 0.0  # λ now
        self.settled = False
        self.fixed = False  # masks that were given, and never change
        self.steering: Steering | None = None
        self.looks: list[Look] = []  # measurements on the way to a time
        self._linears: dict[str, nn.Linear] = {}
        if plan.aims and plan.scoring is Scoring.MOVEMENT:
            self.steering = Steering(plan.strength, plan.strength)

    @classmethod
    def install(cls, model: nn.Module, blocks: Sequence[Matrices], plan: Plan) -> Pruner:
        """Put masks on ``model``, all of them on.

        Args:
            model: Becomes the pruner's parent, as ``compactor_pruning``.
            blocks: What ``find_blocks`` found in it.
            plan: How to prune.

        Raises:
            UsageError: A magnitude is to be pruned without a density, or a neuron in attention.
        """
        if plan.scoring is Scoring.MAGNITUDE and not plan.aims:
            raise UsageError("magnitude pruning needs a density to reach", todo="pass --target-density, such as 0.3")
        pruner = cls(blocks, plan)
        linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        pruner._linears = {part.module: linears[part.module] for block in blocks for part in block.matrices}
        padded: list[str] = []
        for block in pruner.blocks:
            unit = plan.attention if isinstance(block, AttentionMatrices) else plan.feed_forward
            for members in _members(block, unit, linears):
                group = _make_group(block, members)
                group.to(members[0].module.weight.device)
                pruner.groups.append(group)
                padded += [member.name for member in members if member._grid() is None]
        if padded:
            pruner.notes = (
                f"blocks do not divide {len(padded)} matrices, such as {padded[0]}: those at the edges are smaller",
            )
        for masks in pruner.masks().values():  # after all shapes are read
            module = masks[0][1].module
            parametrize.register_parametrization(module, "weight", MaskedWeight(*masks))
            if module.bias is not None:
                parametrize.register_parametrization(module, "bias", MaskedBias(*masks))
        if plan.scoring is Scoring.MAGNITUDE:
            for group in pruner.all_groups:
                group.scores.requires_grad_(False)
        model.add_module(SUBMODULE, pruner)
        return pruner

    @property
    def all_groups(self) -> Iterator[Group]:
        """The groups, typed."""
        for group in self.groups:
            assert isinstance(group, Group)
            yield group

    def members(self) -> Iterator[Mask]:
        """Every masked matrix, with its group."""
        for group in self.all_groups:
            for member in group.members:
                yield group, member

    def masks(self) -> dict[str, tuple[Mask, ...]]:
        """The same by the name of the linear layer, which may be fused of several matrices."""
        found: dict[str, tuple[Mask, ...]] = {}
        for group, member in self.members():
            found[member.name] = (*found.get(member.name, ()), (group, member))
        return found

    # Step by step

    @torch.no_grad()
    def advance(self, step: int) -> None:
        """Set threshold, λ and masks for ``step``, from 0; settle in the cool-down."""
        if self.settled:
            return
        schedule, plan = self.plan.schedule, self.plan
        self.threshold = schedule.threshold(step)
        if schedule.phase(step) == "cool-down":
            self._settle()
        elif plan.aims and schedule.phase(step) == "pruning":
            self._keep_up(step)
        else:
            self._keep_passing()
        if not self.settled and plan.scoring is Scoring.MOVEMENT:
            self.strength = schedule.strength(step) * (plan.strength if self.steering is None else self.steering.value)

    def _keep_up(self, step: int) -> None:
        """Let live what the schedule has by ``step``, no more and no less: the largest norms, or the highest scores."""
        plan = self.plan
        # Millions of scores take seconds to rank: their masks move only every few steps.
        if step % (1 + sum(group.scores.numel() for group in self.all_groups) // _RANKED_AT_ONCE):
            return
        choose = self._choices()
        if plan.timed is not None:
            density = self._density_in(plan.schedule.density(step, plan.timed.wanted), choose)
        else:
            assert plan.target_density is not None
            density = self._masked_target(plan.schedule.density(step, plan.target_density))
        kept, cut = choose(density)
        if self.steering is not None:
            self.steering.move(cut, plan.schedule, step)
        self._keep(kept)  # also where the threshold would take more: what comes back at the end has stale weights

    def _keep_passing(self) -> None:
        for group in self.all_groups:
            group.set_live(group.passing(self.threshold, self.plan.least))

    @torch.no_grad()
    def refresh(self) -> None:
        """Switch the blocks by the scores of now, such as before an evaluation; on the way to a target they stay."""
        if not self.settled and not self.plan.aims:
            self._keep_passing()

    @torch.no_grad()
    def fix(self, live: Mapping[str, Tensor]) -> None:
        """Settle on given masks at once, by name of group."""
        for group in self.all_groups:
            group.set_live(live[group.name])
        self.fixed = True
        self._freeze()

    @torch.no_grad()
    def _settle(self) -> None:
        self.threshold = self.plan.schedule.final_threshold
        if not self.plan.aims:
            self._keep_passing()
        else:
            choose = self._choices()
            if self.plan.timed is not None:
                density = self._look(self.plan.timed, choose)
            else:
                assert self.plan.target_density is not None
                density = self._masked_target(self.plan.target_density)
            kept, cut = choose(density)
            self._keep(kept)
            if self.steering is not None:
                self.threshold = 1 / (1 + math.exp(-cut))
        self._freeze()

    def _look(self, timed: Timed, choose: Choices) -> float:
        """The density at which the model takes the wanted time: predicted, measured, and predicted better."""
        wanted = timed.wanted
        while True:
            density = self._density_in(wanted, choose)
            self._keep(choose(density)[0])
            predicted = timed.share(self._sizes([group.live for group in self.all_groups]))
            self.looks.append(Look(density, predicted, timed.measure()))
            closest = min(self.looks, key=lambda look: abs(look.measured / timed.wanted - 1))
            if len(self.looks) >= LOOKS or abs(closest.measured / timed.wanted - 1) <= CLOSE:
                return closest.density
            wanted = timed.wanted * predicted / self.looks[-1].measured

    def _density_in(self, wanted: float, choose: Choices) -> float:
        """The largest density of the masked matrices with which the model is predicted to take ``wanted``."""
        timed = self.plan.timed
        assert timed is not None
        return densest(lambda density: timed.share(self._sizes(self._lived(choose(density)[0]))), wanted)

    def _freeze(self) -> None:
        self.settled = True
        self.strength = 0.0
        for group in self.all_groups:
            group.scores.requires_grad_(False)

    def _masked_target(self, target: float) -> float:
        """The density of the masked matrices at which all linear weights together have ``target``."""
        masked, everything = sum(group.count for group in self.all_groups), self.all_weights()
        return min(1.0, max(0.0, (target * everything - (everything - masked)) / masked)) if masked else 1.0

    def _choices(self) -> Choices:
        groups = list(self.all_groups)
        return by_norm(groups) if self.plan.scoring is Scoring.MAGNITUDE else by_score(groups)

    def _keep(self, kept: Sequence[Tensor]) -> None:
        for group, live in zip(self.all_groups, self._lived(kept), strict=True):
            group.set_live(live)

    def _lived(self, kept: Sequence[Tensor]) -> list[Tensor]:
        """What would really live where ``kept`` was asked for, by group: the least part, and what is protected."""
        return [
            keep_at_least(part.reshape(group.scores.shape), group.scores, self.plan.least) | group.protected
            for group, part in zip(self.all_groups, kept, strict=True)
        ]

    def _sizes(self, lives: Sequence[Tensor]) -> dict[str, int]:
        features = {name: linear.in_features for name, linear in self._linears.items()}
        return sizes_left(self.blocks, list(self.all_groups), lives, features)

    def penalty(self) -> Tensor | None:
        """λ times the mean sigmoid of the scores, summed over families and stacks; None where nothing is pushed down.

        Reference: Lagunas et al. (2021), Section 3: each norm is a mean over its scores.
        """
        if self.settled or self.strength == 0:
            return None
        terms = []
        for family, stack in sorted({(group.family, group.stack) for group in self.all_groups}):
            groups = [group for group in self.all_groups if (group.family, group.stack) == (family, stack)]
            count = sum(group.scores.numel() for group in groups)
            mean = torch.stack([group.scores.sigmoid().sum() for group in groups]).sum() / count
            factor = self.plan.attention_lambda if family == "attention" else self.plan.feed_forward_lambda
            terms.append(mean * factor * (self.plan.decoder_lambda if stack == "decoder" else 1.0))
        return self.strength * torch.stack(terms).sum()

    # What is left

    def all_weights(self, family: str | None = None) -> int:
        """Elements of all linear layers in blocks, masked or not; of one family, or of both."""
        return sum(
            self._linears[part.module].in_features * part.rows
            for block in self.blocks
            if family in (None, _family(block))
            for part in block.matrices
        )

    @torch.no_grad()
    def live_weights(self, family: str | None = None) -> int:
        """Of these, the ones that no mask hides."""
        groups = [group for group in self.all_groups if family in (None, group.family)]
        if not groups:
            return self.all_weights(family)
        live = int(torch.stack([group.live_weights for group in groups]).sum())
        return self.all_weights(family) - sum(group.count for group in groups) + live

    def density(self, family: str | None = None) -> float:
        """The part of the linear weights that lives."""
        return self.live_weights(family) / max(self.all_weights(family), 1)

    @torch.no_grad()
    def layers(self) -> list[Layer]:
        """What is left of each block; heads and neurons by the rules of the export (``passes.graph.liveness``)."""
        masks = self.masks()
        found = []
        for block in self.blocks:
            live = {part: self._live_elements(part, masks) for part in block.matrices}
            kept = sum(int(mask.sum()) for mask in live.values())
            density = kept / sum(mask.size for mask in live.values())
            name = f"layers.{block.index}.{block.kind}"
            if isinstance(block, AttentionMatrices):
                heads = tuple(bool(head) for head in live_heads(block, live))
                found.append(Layer(name, block.stack, block.kind, density, heads, None))
            else:
                neurons = live_neurons(block, live)
                counts = (int(neurons.sum()), neurons.size)
                found.append(Layer(name, block.stack, block.kind, density, None, counts))
        return found

    def heads(self) -> tuple[int, int]:
        """How many heads live, and how many there are."""
        heads = [head for layer in self.layers() if layer.heads is not None for head in layer.heads]
        return sum(heads), len(heads)

    def _live_elements(self, part: Part, masks: Mapping[str, tuple[Mask, ...]]) -> NDArray[np.bool_]:
        """``(in, out)`` bool, as the algebra of the passes writes matrices."""
        if part.module not in masks:
            return np.ones((self._linears[part.module].in_features, part.rows), np.bool_)
        live: NDArray[np.bool_] = live_elements(masks[part.module])[part.start : part.stop].T.cpu().numpy()
        return live

    # What resuming needs beside the scores

    def state(self) -> dict[str, Any]:
        """Threshold, λ, whether the masks have settled, and how λ is steered; JSON."""
        return {
            "threshold": self.threshold,
            "strength": self.strength,
            "settled": self.settled,
            "fixed": self.fixed,
            "steering": None if self.steering is None else self.steering.to_json(),
            "looks": [dataclasses.asdict(look) for look in self.looks],
        }

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any], live: Mapping[str, Tensor]) -> None:
        """Go on from ``state`` and the masks of then, by name of group; the scores are the model's parameters."""
        self.threshold, self.strength = float(state["threshold"]), float(state["strength"])
        self.fixed = bool(state["fixed"])
        if state["steering"] is not None:
            self.steering = Steering.from_json(state["steering"])
        self.looks = [Look(**look) for look in state.get("looks", ())]
        for group in self.all_groups:
            group.live.copy_(live[group.name])
        if state["settled"]:
            self._freeze()


def _family(block: Matrices) -> str:
    return FAMILIES[0] if isinstance(block, AttentionMatrices) else FAMILIES[1]


def _members(block: Matrices, unit: Unit, linears: Mapping[str, nn.Linear]) -> Iterator[list[Member]]:
    """The matrices of a block, those together that share scores."""
    if unit is Shape.NONE:
        return
    if isinstance(block, FeedForwardMatrices):
        if unit is Shape.HEAD:
            raise UsageError("feed-forward layers have no heads", todo="use dim or a block such as 32x32 for them")
        if unit is Shape.DIM:
            group = block.inputs[0].name
            pair = [_member(linears, part, group, 1, linears[part.module].in_features) for part in block.inputs]
            yield [*pair, _member(linears, block.output, group, block.output.rows, 1, transposed=True)]
            return
    for part in block.matrices:
        inside = linears[part.module].in_features
        turned = isinstance(block, AttentionMatrices) and part == block.output
        if isinstance(unit, Block):
            rows, cols = (unit.cols, unit.rows) if turned else (unit.rows, unit.cols)
            rows, cols = min(rows, part.rows), min(cols, inside)
        else:
            assert isinstance(block, AttentionMatrices)
            thick = (inside if turned else part.rows) // block.heads_of(part) if unit is Shape.HEAD else 1
            rows, cols = (part.rows, thick) if turned else (thick, inside)
        yield [_member(linears, part, part.name, rows, cols)]


def _member(
    linears: Mapping[str, nn.Linear], part: Part, group: str, rows: int, cols: int, *, transposed: bool = False
) -> Member:
    start, stop = (0, None) if part.whole else (part.start, part.stop)
    return Member(linears[part.module], part.module, group, rows, cols, transposed, start, stop)


def _make_group(block: Matrices, members: Sequence[Member]) -> Group:
    """Scores for ``members``, and what each of them stands for."""
    first = members[0]
    shape = (-(-first.shape[0] // first.rows), -(-first.shape[1] // first.cols))
    weights = torch.zeros(shape)
    for member in members:
        weights += member.block_sums(torch.ones(member.shape))
    group = Group(first.group, _family(block), block.stack, shape, weights)
    group.members = list(members)
    return group
