"""The training runs of ``sst2.py``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

DENSE, PEER = "dense", "nn-pruning"
ATTENTION = 1 / 3  # of BERT's linear weights: four square matrices beside two of four times their size


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        id: Its folder, and what ``--only`` calls it.
        family: What it is compared as: a colour in the figure.
        settings: What sets it apart, by field of ``PruneConfig``; all else is the same in every run.
        first: The run it goes on from, of filled ones.
        budget: How many times the steps of the others it has.
    """

    id: str
    family: str
    settings: Mapping[str, Any]
    first: str | None = None
    budget: int = 1


def _attention_only(block: str) -> dict[str, Any]:
    """30 % of the attention's weights, all of the others."""
    target = 1 - ATTENTION + 0.30 * ATTENTION
    return {"method": "hybrid", "attention_block": block, "feed_forward_block": "none", "target_density": target}


def _blocks(size: int) -> dict[str, Any]:
    block = f"{size}x{size}"
    return {"method": "block", "attention_block": block, "feed_forward_block": block, "target_density": 0.30}


RUNS = (  # the most telling first
    Run(DENSE, "dense", {"method": "dense"}),
    Run("hybrid-0.45", "hybrid", {"method": "hybrid", "target_density": 0.45}),
    Run("hybrid-0.30", "hybrid", {"method": "hybrid", "target_density": 0.30}),
    Run("hybrid-longer-0.30", "hybrid, longer", {"method": "hybrid", "target_density": 0.30}, budget=3),
    Run("magnitude-0.30", "magnitude", {"method": "magnitude", "target_density": 0.30}),
    Run("hybrid-0.15", "hybrid", {"method": "hybrid", "target_density": 0.15}),
    Run("struct-0.30", "struct", {"method": "struct", "target_density": 0.30}),
    Run("hybrid-nt-0.15", "hybrid, no teacher", {"method": "hybrid-nt", "target_density": 0.15}),
    Run("attention-32x32", "attention only", _attention_only("32x32")),
    Run("attention-head", "attention only", _attention_only("head")),
    Run("attention-dim", "attention only", _attention_only("dim")),
    Run("block-32-0.30", "block", _blocks(32)),
    Run("block-16-0.30", "block", _blocks(16)),
    Run("block-8-0.30", "block", _blocks(8)),
    Run("block-4-0.30", "block", _blocks(4)),
    Run("hybrid-filled-0.30", "hybrid, filled", {"method": "hybrid-filled"}, first="hybrid-0.30"),
    Run("hybrid-filled-0.15", "hybrid, filled", {"method": "hybrid-filled"}, first="hybrid-0.15"),
    Run("hybrid-lambda-10", "hybrid, by λ", {"method": "hybrid", "strength": 10.0}),
    Run("hybrid-lambda-20", "hybrid, by λ", {"method": "hybrid", "strength": 20.0}),
    Run("hybrid-lambda-40", "hybrid, by λ", {"method": "hybrid", "strength": 40.0}),
    Run("hybrid-nt-0.45", "hybrid, no teacher", {"method": "hybrid-nt", "target_density": 0.45}),
    Run("magnitude-0.45", "magnitude", {"method": "magnitude", "target_density": 0.45}),
    Run("struct-0.45", "struct", {"method": "struct", "target_density": 0.45}),
)
OTHERS = Run(PEER, "nn_pruning's own code", {})  # trained elsewhere; judged where it is given


def chosen_runs(only: str | None) -> list[Run]:
    """Those that ``--only`` names, in the order of the list; the dense model always. Exits where it names none."""
    if only is None:
        return list(RUNS)
    wanted = tuple(name.strip() for name in only.split(",") if name.strip())
    for name in wanted:
        if not any(run.id.startswith(name) for run in RUNS):
            sys.exit(f"error: no run is called '{name}'; there are: {', '.join(run.id for run in RUNS)}")
    return [run for run in RUNS if run.id == DENSE or run.id.startswith(wanted)]
