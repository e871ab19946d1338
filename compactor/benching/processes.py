"""Start the processes that measure: one for each variant and round, in ABBA order.

A variant that fails is out of the later rounds and keeps its error; the others go on. An interrupt ends the process
that is running and keeps what the finished ones measured.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from compactor.benching.plan import Case, Settings, Variant
from compactor.benching.worker import RESULT

Say = Callable[[str], None]
Failure = dict[str, str | None]  # what, where, todo

_T = TypeVar("_T")

_STDERR_LINES = 3


@dataclasses.dataclass
class Measured:
    """What one variant gave, a process after the other.

    Attributes:
        environment: What its engine says of itself.
        load_ms: Time to open it.
        rss_before_bytes: Resident memory before it was opened: the interpreter's own.
        peak_rss_bytes: The largest resident memory at the end.
        cases: For each case the results of its processes: ``samples_ms``, ``first_ms``, ``usage``.
        serve: The results of the server scenario.
        error: Why it failed; None where it did not.
    """

    environment: dict[str, Any] = dataclasses.field(default_factory=dict)
    load_ms: list[float] = dataclasses.field(default_factory=list)
    rss_before_bytes: list[int] = dataclasses.field(default_factory=list)
    peak_rss_bytes: list[int] = dataclasses.field(default_factory=list)
    cases: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    serve: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    error: Failure | None = None

    def add(self, result: Mapping[str, Any]) -> None:
        """Take in what one process measured."""
        self.environment = result["environment"]
        if "load_ms" in result:  # an endpoint runs already, and its memory is its own
            self.load_ms.append(result["load_ms"])
            self.rss_before_bytes.append(result["rss_before_bytes"])
            self.peak_rss_bytes.append(result["peak_rss_bytes"])
        for case, found in result.get("cases", {}).items():
            self.cases.setdefault(case, []).append(found)
        if "serve" in result:
            self.serve.append(result["serve"])


@dataclasses.dataclass
class Measurements:
    """What all variants gave, and whether the user stopped it early."""

    variants: dict[str, Measured]
    interrupted: bool = False


def abba(names: Sequence[_T], rounds: int) -> list[list[_T]]:
    """The order of each round: forwards, backwards, forwards, so that a slow drift favours none."""
    return [list(names) if i % 2 == 0 else list(reversed(names)) for i in range(rounds)]


def measure(
    variants: Sequence[Variant],
    cases: Sequence[Case],
    settings: Settings,
    *,
    say: Say,
    serve: Mapping[str, Any] | None = None,
    outputs: Path | None = None,
) -> Measurements:
    """Measure every variant in every round, each time in a new process.

    Args:
        variants: Those that can run; one with a ``reason`` is left out.
        cases: What each is timed on, in every process.
        settings: How.
        say: Told what is going on and how long it will take.
        serve: The block of the server scenario; given, no case is timed.
        outputs: A folder for what each variant gave in the last round: ``<variant>/<case>.<batch>.npz``.
    """
    able = [variant for variant in variants if variant.reason is None]
    measured = {variant.id: Measured() for variant in able}
    mode = "time" if serve is None else "serve"
    start, done, steps = time.monotonic(), 0, settings.rounds * len(able)
    try:
        for number, order in enumerate(abba(able, settings.rounds)):
            for variant in order:
                mine = measured[variant.id]
                if mine.error is not None:
                    steps -= 1
                    continue
                left = _time_left(start, done, steps)
                say(f"round {number + 1} of {settings.rounds}: {variant.name}{left}")
                kept = outputs / variant.id if outputs is not None and number == settings.rounds - 1 else None
                result = run_worker(mode, variant, cases, settings, outputs=kept, serve=serve)
                if "error" in result:
                    mine.error = result["error"]
                    say(f"{variant.name} failed: {result['error']['what']}")
                else:
                    mine.add(result)
                done += 1
    except KeyboardInterrupt:
        say("interrupted: keeping what is measured so far")
        return Measurements(measured, interrupted=True)
    return Measurements(measured)


def run_worker(
    mode: str,
    variant: Variant | None,
    cases: Sequence[Case],
    settings: Settings,
    *,
    outputs: Path | None = None,
    **blocks: Any,
) -> dict[str, Any]:
    """What one new process found; its own error, or how it died, under ``error``.

    Args:
        mode: See ``worker.work``.
        variant: What runs; None for ``peak``.
        cases: Its inputs.
        settings: Threads, affinity, spinning and clock.
        outputs: Where to keep what each batch gave; None keeps nothing.
        blocks: What only this mode wants to know.
    """
    with tempfile.TemporaryDirectory(prefix="compactor-bench-") as temporary:
        folder = Path(temporary)
        spec = {
            "mode": mode,
            "variant": None if variant is None else variant.to_json(),
            "threads": settings.threads,
            "affinity": None if settings.affinity is None else list(settings.affinity),
            "spinning": settings.spinning,
            "clock": dataclasses.asdict(settings.clock),
            "sample": "pass" if settings.scenario == "offline" else "call",
            "cases": [
                {
                    "id": case.id,
                    "files": [str(file) for file in case.files],
                    "part": None if case.part is None else dataclasses.asdict(case.part),
                }
                for case in cases
            ],
            "folder": str(folder),
            "keep_outputs": outputs is not None,
            **blocks,
        }
        file = folder / "spec.json"
        file.write_text(json.dumps(spec), encoding="utf-8")
        # -P: the package that runs here, whatever the folder that we happen to be in holds.
        code, stderr = _run([sys.executable, "-P", "-m", "compactor.benching.worker", str(file)], settings.threads)
        if not (folder / RESULT).is_file():
            return {"error": _death(code, stderr)}
        result: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        if outputs is not None:
            outputs.mkdir(parents=True, exist_ok=True)
            for made in folder.glob("*.npz"):
                shutil.move(made, outputs / made.name)
    return result


def _run(command: Sequence[str], threads: int) -> tuple[int, str]:
    """The exit code and what was said on stderr. An interrupt kills the process and is raised again."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    # A session of its own, so that Ctrl-C reaches us alone and we decide what is kept.
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            code = process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        log.seek(0)
        return code, log.read().decode("utf-8", "replace")


def _death(code: int, log: str) -> Failure:
    """How a process ended that left no result."""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        what = f"the process was ended by {name}"
        todo = "out of memory is the usual reason for SIGKILL: see the kernel's log" if name == "SIGKILL" else None
    else:
        what, todo = f"the process ended with code {code} and no result", None
    lines = [line for line in log.strip().splitlines() if line.strip()][-_STDERR_LINES:]
    return {"what": what, "where": " | ".join(lines) or None, "todo": todo}


def _time_left(start: float, done: int, steps: int) -> str:
    """A guess from the time of the processes so far; nothing before the first has ended."""
    if not done:
        return ""
    seconds = (time.monotonic() - start) / done * (steps - done)
    return f" ({seconds:.0f} s left)" if seconds < 90 else f" ({seconds / 60:.0f} min left)"
