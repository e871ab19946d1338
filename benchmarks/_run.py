"""What the benchmarks share: rows and how each is built, timing by the harness of ``compactor bench``, the check.

A row that cannot be built or run says why and has no numbers; one whose answers are too far from PyTorch's is marked as
failed, so that its times are quoted nowhere.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._graphs import BuildError
from benchmarks._workshop import Arrays, Outputs, Workshop, read_outputs, relative_error, say
from compactor.benching.plan import Case, EngineName, ProviderName, Scenario, Settings, Variant
from compactor.benching.processes import Measured, Measurements, abba, measure, run_worker
from compactor.runtime.sampling import Clock
from compactor.runtime.threads import explain_threads

MEASURED = "measured.json"  # in the work folder: the samples of the last run
EXACT = 1e-4
HALF = 2e-2
STATIC = 0.4  # of static int8, whose scales come from a few random sequences: lossy, not wrong (wrong is beyond 1)
LOOSE = 0.1  # of int8 and bfloat16: random weights make a harsh test; measured errors are 1 to 4 %
TOLERANCES = {"fp32": EXACT, "fp16": HALF, "bf16": LOOSE, "int8": LOOSE}

_ROOT = Path(__file__).resolve().parents[1]
_PLACES = (  # on one machine
    *(
        "--work",
        "--out",
        "--optimum-python",
        "--data",
        "--model",
        "--dense",
        "--peer",
        "--embedder",
        "--pairs",
        "--writer",
        "--reports",
    ),
)


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
        bound: Largest ``relative_error``; None takes that of its precision.
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
    bound: float | None = None
    missing: str | None = None
    adapt: Callable[[Arrays, Workshop], Arrays] | None = None

    @property
    def tolerance(self) -> float:
        """Largest ``relative_error``."""
        return TOLERANCES[self.precision] if self.bound is None else self.bound

    def make(self) -> Variant:
        """Build it, or find out why not."""
        path, reason = Path(), self.missing
        if reason is None:
            try:
                path = self.build()
            except BuildError as error:
                reason = str(error)
            except BrokenProcessPool:
                reason = "the process that built it was ended from outside: out of memory is the usual reason"
            if reason is not None:
                say(f"{self.name}: not run: {reason}")
        return Variant(
            id=self.id,
            name=self.name,
            target=self.shop.folder.name,
            engine=self.engine,
            provider=self.provider,
            precision=self.precision,
            path=path,
            options=self.options,
            reason=None if reason is None else f"not run: {reason}",
        )


@dataclasses.dataclass
class Run:
    """What came of all rows.

    Attributes:
        variants: As built.
        cases: What they are timed on.
        how: How.
        measurements: As timed; a row with wrong answers has an error here.
        errors: ``relative_error`` by row and case; None where that is no number.
        duration_s: Of the measurement, with building.
    """

    variants: list[Variant]
    cases: Sequence[Case]
    how: Settings
    measurements: Measurements = dataclasses.field(default_factory=lambda: Measurements({}))
    errors: dict[str, dict[str, float | None]] = dataclasses.field(default_factory=dict)
    duration_s: float = 0.0


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


@contextlib.contextmanager
def work_folder(given: Path | None, prefix: str) -> Iterator[Path]:
    """The one of ``--work``, or a new one that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix=prefix) as temporary:
        yield (given or Path(temporary)).resolve()


def settings(args: argparse.Namespace, *, scenario: Scenario = "single", clock: Clock | None = None) -> Settings:
    """How to measure, from the options."""
    plan = explain_threads(args.threads)
    if clock is None:
        warm_up_s = min(Clock.warm_up_s, args.measure_s)
        clock = Clock(measure_s=args.measure_s, warm_up_s=warm_up_s, warm_up_calls=1, min_samples=3)
    return Settings(
        scenario=scenario,
        threads=plan.threads,
        threads_reason=plan.reason,
        affinity=None,
        spinning=True,
        rounds=args.rounds,
        clock=clock,
        seed=0,
        quick=False,
    )


def build(rows: Sequence[Row], cases: Sequence[Case], how: Settings) -> Run:
    """Build every row, and the answers that it is checked against; nothing is measured yet."""
    variants = [row.make() for row in rows]
    for shop in dict.fromkeys(row.shop for row, variant in zip(rows, variants, strict=True) if variant.reason is None):
        shop.reference(cases)
    return Run(variants, cases, how)


def run(rows: Sequence[Row], cases: Sequence[Case], how: Settings) -> Run:
    """Build, time and check."""
    start = time.monotonic()
    found = build(rows, cases, how)
    with tempfile.TemporaryDirectory(prefix="compactor-outputs-") as temporary:
        outputs = Path(temporary)
        # For what a row makes of a model in the process that times it: ``_nn_pruning``.
        here = [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, here))
        found.measurements = measure(found.variants, cases, how, say=say, outputs=outputs)
        kept = {name: dataclasses.asdict(measured) for name, measured in found.measurements.variants.items()}
        (rows[0].shop.work / MEASURED).write_text(json.dumps(kept), encoding="utf-8")  # hours, if what follows fails
        check(rows, found, outputs)
    found.duration_s = time.monotonic() - start
    return found


def check(rows: Sequence[Row], found: Run, outputs: Path) -> None:
    """Compare the answers of what was timed, in ``outputs``, with PyTorch's; a row that is wrong gets an error."""
    for row, variant in zip(rows, found.variants, strict=True):
        measured = found.measurements.variants.get(row.id)
        if measured is None or measured.error is not None or not measured.load_ms:
            continue
        folder = outputs / row.id
        if not folder.exists():  # interrupted before its last round
            failed = run_worker("outputs", variant, found.cases, found.how, outputs=folder).get("error")
            if failed is not None:
                measured.error = failed
                continue
        reference = row.shop.reference(found.cases)
        errors = {case.id: _error(row, case, folder, reference[case.id]) for case in found.cases}
        found.errors[row.id] = {case: error if np.isfinite(error) else None for case, error in errors.items()}
        wrong = [f"{error:.2g} at {case}" for case, error in errors.items() if not error <= row.tolerance]
        if wrong:
            what = f"its answers are off PyTorch's by {', '.join(wrong)}, more than {row.tolerance:g}"
            mark_wrong(row, measured, what)


def _error(row: Row, case: Case, folder: Path, reference: Outputs) -> float:
    """``relative_error`` of one row on one case; infinite where an output is missing or no number."""
    found = read_outputs(folder, case)
    if row.adapt is not None:
        found = [row.adapt(arrays, row.shop) for arrays in found]
    try:
        error = relative_error(reference, found)
    except AssertionError as missing:
        say(f"{row.name}: {missing}")
        return float("inf")
    return error if np.isfinite(error) else float("inf")


def mark_wrong(row: Row, measured: Measured, what: str) -> None:
    """Take the times of a row that answered wrongly away from it."""
    say(f"{row.name} failed: {what}")
    measured.error = {"what": what, "where": None, "todo": "its times are not worth quoting"}


def turns(names: Sequence[str], rounds: int) -> Iterator[str]:
    """Each name in each round, in ABBA order; tells the user which."""
    for number, order in enumerate(abba(names, rounds)):
        for name in order:
            say(f"round {number + 1} of {rounds}: {name}")
            yield name


def command(script: str, argv: Sequence[str] | None = None) -> str:
    """The command that does it again, without the places of this machine.

    Args:
        script: Its file's name.
        argv: Its arguments; None takes what was typed.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    kept: list[str] = []
    while words:
        name, given, value = words.pop(0).partition("=")
        if name not in _PLACES:
            kept.append(f"{name}{given}{value}")
            continue
        value = value if given else words.pop(0) if words else ""
        if name == "--out":
            path = Path(value).resolve()
            kept += [name, path.relative_to(_ROOT).as_posix() if path.is_relative_to(_ROOT) else path.name]
        elif name != "--work":
            kept += [name, name.lstrip("-").upper().replace("-", "_")]
    return shlex.join(["python", f"benchmarks/{script}", *kept])
