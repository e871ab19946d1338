"""What the benchmarks share: rows and how each is built, timing by the harness of ``compactor bench``, the check.

A row that cannot be built or run says why and has no numbers; one whose answers are too far from PyTorch's is marked as
failed, so that its times are quoted nowhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._graphs import BuildError
from benchmarks._workshop import Outputs, Workshop, read_arrays, relative_error, say
from compactor.benching.plan import Case, EngineName, ProviderName, Scenario, Settings, Variant
from compactor.benching.processes import Measurements, measure, run_worker
from compactor.runtime.sampling import Clock
from compactor.runtime.threads import explain_threads

MEASURED = "measured.json"  # in the work folder: the samples of the last run
EXACT = 1e-4
HALF = 2e-2
STATIC = 0.4  # of static int8, whose scales come from a few random sequences: lossy, not wrong (wrong is beyond 1)
LOOSE = 0.1  # of int8 and bfloat16: random weights make a harsh test; measured errors are 1 to 4 %

_ROOT = Path(__file__).resolve().parents[1]
_PLACES = ("--work", "--out", "--optimum-python", "--data", "--model", "--dense", "--peer")  # on one machine

Arrays = dict[str, NDArray[Any]]
Adapt = Callable[[Arrays, Workshop], Arrays]


@dataclasses.dataclass(frozen=True)
class Row:
    """A variant and how to make it.

    Attributes:
        id: Unique within a run.
        name: For tables.
        shop: Whose PyTorch model gives the right answers.
        build: Makes what runs, and returns its path.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        engine: What runs it.
        provider: Where that runs it.
        options: The engine's own.
        tolerance: Largest ``relative_error``.
        missing: Why it cannot be built or run here; None where it can.
        adapt: Makes the task's outputs of the engine's.
    """

    id: str
    name: str
    shop: Workshop
    build: Callable[[], Path]
    precision: str = "fp32"
    engine: EngineName = "onnxruntime"
    provider: ProviderName = "cpu"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tolerance: float = EXACT
    missing: str | None = None
    adapt: Adapt | None = None

    def make(self) -> Variant:
        """Build it, or find out why not."""
        path, reason = Path(), None if self.missing is None else f"not run: {self.missing}"
        if reason is None:
            try:
                path = self.build()
            except BuildError as error:
                reason = f"not run: {error}"
                say(f"{self.name}: {reason}")
        return Variant(
            id=self.id,
            name=self.name,
            target=self.shop.folder.name,
            engine=self.engine,
            provider=self.provider,
            precision=self.precision,
            path=path,
            options=self.options,
            reason=reason,
        )


@dataclasses.dataclass
class Run:
    """What came of all rows.

    Attributes:
        variants: As built.
        measurements: As timed; a row with wrong answers has an error here.
        errors: ``relative_error`` by row and case.
        duration_s: Of the measurement, with building.
    """

    variants: list[Variant]
    measurements: Measurements
    errors: dict[str, dict[str, float]]
    duration_s: float


def add_run_options(parser: argparse.ArgumentParser, *, shapes: str) -> None:
    """Options of every benchmark that times models."""
    parser.add_argument("--shapes", default=shapes, help="batch x length, without padding (default: %(default)s)")
    parser.add_argument(
        "--measure-s", type=float, default=1.0, help="time to sample each case in each process (default: %(default)s)"
    )
    add_common_options(parser)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Options of every benchmark that uses the harness."""
    parser.add_argument("--threads", type=int, help="of each variant (default: one for each core)")
    parser.add_argument("--rounds", type=int, default=8, help="processes of each variant (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="keep built models here (default: a temporary folder)")
    parser.add_argument("--build-only", action="store_true", help="build into --work, measure later")
    parser.add_argument("--out", type=Path, help="result, JSON; its tables and figures are written beside it")


def settings(args: argparse.Namespace, *, scenario: Scenario = "single", clock: Clock | None = None) -> Settings:
    """How to measure, from the options."""
    plan = explain_threads(args.threads)
    return Settings(
        scenario=scenario,
        threads=plan.threads,
        threads_reason=plan.reason,
        affinity=None,
        spinning=True,
        rounds=args.rounds,
        clock=clock
        or Clock(
            measure_s=args.measure_s, warm_up_s=min(Clock.warm_up_s, args.measure_s), warm_up_calls=1, min_samples=3
        ),
        seed=0,
        quick=False,
    )


def build(rows: Sequence[Row], cases: Sequence[Case]) -> list[Variant]:
    """Build every row, and the answers that it is checked against."""
    variants = [row.make() for row in rows]
    for shop in dict.fromkeys(row.shop for row, variant in zip(rows, variants, strict=True) if variant.reason is None):
        shop.reference(cases)
    return variants


def rehearse(rows: Sequence[Row]) -> Run:
    """A run in which nothing was measured: to see that all can be reported before hours are spent on it."""
    return Run([row.make() for row in rows], Measurements({}), {}, 0.0)


def run(rows: Sequence[Row], cases: Sequence[Case], how: Settings) -> Run:
    """Build, time and check."""
    start = time.monotonic()
    variants = build(rows, cases)
    with tempfile.TemporaryDirectory(prefix="compactor-outputs-") as temporary:
        outputs = Path(temporary)
        # For what a row makes of a model in the process that times it: ``_nn_pruning``.
        here = [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, here))
        measurements = measure(variants, cases, how, say=say, outputs=outputs)
        kept = {name: dataclasses.asdict(found) for name, found in measurements.variants.items()}
        (rows[0].shop.work / MEASURED).write_text(json.dumps(kept), encoding="utf-8")  # hours, if what follows fails
        errors = check(rows, variants, cases, how, measurements, outputs)
    return Run(variants, measurements, errors, time.monotonic() - start)


def check(
    rows: Sequence[Row],
    variants: Sequence[Variant],
    cases: Sequence[Case],
    how: Settings,
    measurements: Measurements,
    outputs: Path,
) -> dict[str, dict[str, float]]:
    """Compare the answers of what was timed with PyTorch's. A row that is wrong gets an error in ``measurements``."""
    errors: dict[str, dict[str, float]] = {}
    for row, variant in zip(rows, variants, strict=True):
        measured = measurements.variants.get(row.id)
        if measured is None or measured.error is not None or not measured.load_ms:
            continue
        folder = outputs / row.id
        if not folder.exists():  # interrupted before its last round
            failed = run_worker("outputs", variant, cases, how, outputs=folder).get("error")
            if failed is not None:
                measured.error = failed
                continue
        reference = row.shop.reference(cases)
        errors[row.id] = {case.id: _error(row, case, folder, reference[case.id]) for case in cases}
        wrong = [f"{error:.2g} at {case}" for case, error in errors[row.id].items() if not error <= row.tolerance]
        if wrong:
            what = f"its answers are off PyTorch's by {', '.join(wrong)}, more than {row.tolerance:g}"
            say(f"{row.name} failed: {what}")
            measured.error = {"what": what, "where": None, "todo": "its times are not worth quoting"}
    return errors


def _error(row: Row, case: Case, folder: Path, reference: Outputs) -> float:
    """``relative_error`` of one row on one case; infinite where an output is missing or no number."""
    found = [read_arrays(folder / f"{case.id}.{i}.npz") for i in range(len(case.files))]
    if row.adapt is not None:
        found = [row.adapt(arrays, row.shop) for arrays in found]
    try:
        error = relative_error(reference, found)
    except AssertionError as missing:
        say(f"{row.name}: {missing}")
        return float("inf")
    return error if np.isfinite(error) else float("inf")


def command_line(argv: Sequence[str]) -> str:
    """The command that does it again, without the places of this machine."""
    script, words = argv[0], list(argv[1:])
    kept: list[str] = []
    while words:
        name, given, value = words.pop(0).partition("=")
        if name not in _PLACES:
            kept.append(f"{name}{given}{value}")
            continue
        value = value if given else words.pop(0) if words else ""
        if name == "--out":
            kept += [name, _within_repository(value)]
        elif name != "--work":
            kept += [name, name.lstrip("-").upper().replace("-", "_")]
    return shlex.join(["python", _within_repository(script), *kept])


def _within_repository(path: str) -> str:
    """``path`` from the root of the repository; the bare name of what is elsewhere."""
    found = Path(path).resolve()
    return found.relative_to(_ROOT).as_posix() if found.is_relative_to(_ROOT) else found.name


def script_argv(argv: Sequence[str] | None, name: str) -> list[str]:
    """What was typed: ``sys.argv``, or the same as it would be for ``argv``."""
    return list(sys.argv) if argv is None else [str(_ROOT / "benchmarks" / name), *argv]
