"""Time variants of a model fairly: one variant a fresh process, rounds in ABBA order."""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORKER = Path(__file__).resolve().parent / "_worker.py"

Outputs = list[dict[str, NDArray[Any]]]  # of each batch of a case


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to run the model.

    Attributes:
        name: For tables and options.
        model: The graph's file.
        reference: Which reference outputs it must reproduce.
        tolerance: Largest ``relative_error`` it may have.
        engine: ``onnxruntime`` or ``openvino``.
        python: The interpreter to run it with; None takes this one.
        properties: OpenVINO properties.
    """

    name: str
    model: Path
    reference: str
    tolerance: float
    engine: str = "onnxruntime"
    python: str | None = None
    properties: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Clock:
    """How long to warm up and to sample, in each process and for each case."""

    warm_up_s: float = 0.3
    warm_up_calls: int = 2
    measure_s: float = 1.0
    min_samples: int = 5
    max_samples: int = 100


@dataclasses.dataclass
class Measured:
    """What a variant took.

    Attributes:
        rounds_ms: For each case, the samples of each round in milliseconds.
        outputs: For each case, what the graph gave in the last round.
        engine: Versions and settings that the engine reports.
    """

    rounds_ms: dict[str, list[list[float]]] = dataclasses.field(default_factory=dict)
    outputs: dict[str, Outputs] = dataclasses.field(default_factory=dict)
    engine: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Summary:
    """Milliseconds: the median of the rounds' medians; p10 and p90 of all samples."""

    median: float
    p10: float
    p90: float
    samples: int

    @property
    def spread(self) -> float:
        """The width of the middle 80 % as a share of the median."""
        return (self.p90 - self.p10) / self.median


def summarise(rounds: Sequence[Sequence[float]]) -> Summary:
    """Sum up the samples of several rounds."""
    pooled = np.concatenate([np.asarray(samples) for samples in rounds])
    p10, p90 = np.percentile(pooled, (10, 90))
    median = statistics.median(statistics.median(samples) for samples in rounds)
    return Summary(float(median), float(p10), float(p90), len(pooled))


def abba(names: Sequence[str], rounds: int) -> list[list[str]]:
    """The order of each round: forwards, backwards, forwards, so that a slow drift favours none."""
    return [list(names) if i % 2 == 0 else list(reversed(names)) for i in range(rounds)]


def measure(
    variants: Sequence[Variant],
    cases: Mapping[str, Sequence[Path]],
    *,
    threads: int,
    rounds: int,
    clock: Clock,
    say: Callable[[str], None],
) -> dict[str, Measured]:
    """Time every variant on every case, ``rounds`` times, each time in a new process."""
    by_name = {variant.name: variant for variant in variants}
    measured = {name: Measured() for name in by_name}
    for number, order in enumerate(abba(list(by_name), rounds)):
        for name in order:
            say(f"round {number + 1} of {rounds}: {name}")
            _run_worker(by_name[name], cases, measured[name], threads, clock, keep=number == rounds - 1)
    return measured


def relative_error(reference: Outputs, candidate: Outputs) -> float:
    """The root mean square of the difference, as a share of that of the reference, over all outputs together.

    Raises:
        AssertionError: The candidate lacks an output.
    """
    difference = size = 0.0
    for expected, got in zip(reference, candidate, strict=True):
        missing = expected.keys() - got.keys()
        if missing:
            raise AssertionError(f"expected the outputs {sorted(expected)}, got {sorted(got)}")
        for name, array in expected.items():
            difference += float(np.square(got[name].astype(np.float64) - array).sum())
            size += float(np.square(array.astype(np.float64)).sum())
    return float(np.sqrt(difference / size))


def relative_errors(reference: Mapping[str, Outputs], outputs: Mapping[str, Outputs]) -> dict[str, float]:
    """``relative_error`` of each case."""
    return {case: relative_error(reference[case], found) for case, found in outputs.items()}


def _run_worker(
    variant: Variant, cases: Mapping[str, Sequence[Path]], into: Measured, threads: int, clock: Clock, *, keep: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spec = {
            "engine": variant.engine,
            "model": str(variant.model),
            "threads": threads,
            "cases": {name: [str(file) for file in files] for name, files in cases.items()},
            "outputs": folder if keep else None,
            "properties": dict(variant.properties),
            **dataclasses.asdict(clock),
        }
        file = Path(folder) / "spec.json"
        file.write_text(json.dumps(spec), encoding="utf-8")
        command = [variant.python or sys.executable, str(WORKER), str(file)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        result = json.loads(done.stdout.splitlines()[-1])
        for name, samples in result["samples_ms"].items():
            into.rounds_ms.setdefault(name, []).append(samples)
        into.engine = result["engine"]
        if keep:
            for name, files in cases.items():
                into.outputs[name] = [dict(np.load(Path(folder) / f"{name}.{i}.npz")) for i in range(len(files))]
