"""A study of SST-2 that nobody made: the rows of all its runs, and their times."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import _record, sst2
from benchmarks._run import Row
from benchmarks._workshop import Given
from tests.benchmarks.made_up import MACHINE, run_of

SENTENCES = 400
DENSITY = {"dense": 1.0, "nn-pruning": 0.429, "hybrid-filled-0.30": 0.41, "hybrid-filled-0.15": 0.24}
RIGHT = {"dense": 360, "hybrid-0.45": 358, "hybrid-0.30": 350, "magnitude-0.30": 300, "hybrid-0.15": 330}
MS = {"dense": 20.0, "hybrid-0.30": 8.0, "struct-0.30": 4.0, "block-32-0.30": 6.0, "block-4-0.30": 16.0}


def options(*arguments: str) -> argparse.Namespace:
    """As if they were typed."""
    parser = argparse.ArgumentParser()
    sst2.add_options(parser)
    return parser.parse_args(["--data", "data", *arguments])


def answers(right: int) -> str:
    """Of which the first ``right`` are right, where 1 is the right answer to all."""
    return "1" * right + "0" * (SENTENCES - right)


def made(run: sst2.Run) -> dict[str, Any]:
    """The row of a run that nobody made."""
    right = RIGHT.get(run.id, 340)
    texts = {"masked": right, "fp32": right, "int8": right - 2, "int8 alone": right - 1}
    judged = {
        "answers": {way: answers(count) for way, count in texts.items()},
        "bytes": {"fp32": 88_000_000, "int8": 22_000_000},
        "graphs": {"fp32": None, "int8": None},
    }
    name = re.search(r"0\.\d\d$", run.id)
    density = DENSITY.get(run.id, 0.75 if name is None else float(name[0]))
    facts = {
        "steps": 600,
        "settings": {"method": "hybrid"},
        "other_settings": [],
        "dev": {"accuracy": {"value": right / SENTENCES, "se": 0.01, "n": 1000}},
        "density": density,
        "density_attention": 0.3,
        "lambda": None if run.id == "dense" else 21.5,
        "seconds": 600.0,
        "weights": [round(density * 1000), 1000],
        "heads": [40 if run.id == "attention-32x32" else 60, 72],
        "neurons": [3000, 9216],
        "heads_by_layer": [7, 7, 7, 7, 6, 6],
        "warnings": [],
    }
    return sst2.make_row(run, facts, judged, "1" * SENTENCES, answers(RIGHT["dense"]))


def run_called(name: str) -> sst2.Run:
    return next(run for run in sst2.RUNS if run.id == name)


def make_result(*, rows: Mapping[str, Mapping[str, Any]] | None = None, timed: bool = True) -> dict[str, Any]:
    """Of all runs, those in ``rows`` changed."""
    found = [{**made(run), **(rows or {}).get(run.id, {})} for run in (*sst2.RUNS, sst2.OTHERS)]
    report = None
    if timed:
        shop = Given(Path("work"), Path("model"))
        names = ["dense-plain", "dense-fp32", *(f"{row['id']}-int8" for row in found)]
        variants = [Row(name, name, shop, lambda: Path("model.onnx")) for name in names]
        times = {"dense-plain": 40.0, "dense-fp32": 38.0}
        times |= {f"{row['id']}-int8": MS.get(row["id"], 10.0) for row in found if row["status"] == "measured"}
        report = _record.make_report(
            "A title",
            variants,
            run_of(variants, times),
            baseline="dense-plain",
            command="python benchmarks/sst2.py",
        )
    return {
        "kind": "compactor-sst2",
        "command": "python benchmarks/sst2.py",
        "machine": MACHINE,
        "budget": {**sst2.common_settings(options()), "dense_steps": 1250, "threads": 2},
        "data": {"train.tsv": {"sentences": 60_614}},
        "references": "1" * SENTENCES,
        "rows": found,
        "latency": report,
        "relative_error": {},
    }
