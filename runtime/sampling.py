"""Sample how long a call takes, and what the machine did meanwhile.

Wall time alone cannot tell a slow kernel from a core that was taken away. ``Usage`` adds what the kernel knows: the CPU
time this process got, how long its threads waited for a core, what other processes used, and what the hypervisor took.
All of it is read from ``/proc``; elsewhere it is ``None``, which means unknown.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_NANOSECONDS = 1e-9


@dataclasses.dataclass(frozen=True)
class Clock:
    """How long to warm up and to sample.

    Attributes:
        warm_up_s: Least time of warm-up, in seconds.
        warm_up_calls: Least number of calls of warm-up.
        measure_s: Time to go on sampling for, within the next two.
        min_samples: Least number of samples.
        max_samples: Largest number of samples.
    """

    warm_up_s: float = 0.3
    warm_up_calls: int = 2
    measure_s: float = 1.0
    min_samples: int = 5
    max_samples: int = 2000


@dataclasses.dataclass(frozen=True)
class Usage:
    """What the machine did during a stretch of time; seconds, summed over threads; None is unknown.

    Attributes:
        wall_s: By the wall clock.
        cpu_s: CPU time of this process.
        waited_s: Time that threads of this process were ready but had no core.
        others_cpu_s: CPU time of everything else on the machine.
        steal_s: Time that the hypervisor gave to other guests.
        involuntary_switches: How often a thread of this process was put off its core.
    """

    wall_s: float
    cpu_s: float
    waited_s: float | None
    others_cpu_s: float | None
    steal_s: float | None
    involuntary_switches: int

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {key: round(value, 6) if value is not None else None for key, value in dataclasses.asdict(self).items()}


class Meter:
    """Reads the counters when made, and again when asked for the difference."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._before = _Counters.read(root)

    def read(self) -> Usage:
        """The usage since this meter was made."""
        before, after = self._before, _Counters.read(self._root)
        cpu = after.cpu - before.cpu
        busy = _difference(before.busy, after.busy)
        return Usage(
            wall_s=after.wall - before.wall,
            cpu_s=cpu,
            waited_s=_difference(before.waited, after.waited),
            others_cpu_s=None if busy is None else max(0.0, busy - cpu),
            steal_s=_difference(before.steal, after.steal),
            involuntary_switches=after.switches - before.switches,
        )


def sample(call: Callable[[], object], clock: Clock, *, cycle: int = 1) -> tuple[list[float], Usage]:
    """Warm up, then time calls. Returns the milliseconds of each, and the usage while sampling.

    Args:
        call: What is timed.
        clock: How long.
        cycle: Sampling ends behind a multiple of this many calls, even beyond the clock's largest number: where calls
            take turns on inputs of different lengths, a fast and a slow variant must see the same mix.
    """
    start, calls = time.perf_counter(), 0
    while calls < clock.warm_up_calls or time.perf_counter() - start < clock.warm_up_s:
        call()
        calls += 1
    times: list[float] = []
    total = 0.0
    meter = Meter()
    while len(times) % cycle or (
        len(times) < clock.max_samples and (len(times) < clock.min_samples or total < clock.measure_s)
    ):
        start = time.perf_counter()
        call()
        elapsed = time.perf_counter() - start
        times.append(1e3 * elapsed)
        total += elapsed
    return times, meter.read()


def peak_memory_bytes(root: Path = Path("/")) -> int:
    """The largest resident memory of this process so far.

    Where the kernel tells, it is that of the running program alone: ``getrusage`` also counts the process that started
    it, as it was when it was copied.
    """
    try:
        status = (root / "proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes


@dataclasses.dataclass(frozen=True)
class _Counters:
    """Seconds since some start, and switches."""

    wall: float
    cpu: float
    switches: int
    busy: float | None
    steal: float | None
    waited: float | None

    @classmethod
    def read(cls, root: Path) -> _Counters:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        busy, steal = _machine_times(root)
        cpu = usage.ru_utime + usage.ru_stime
        return cls(time.perf_counter(), cpu, usage.ru_nivcsw, busy, steal, _run_queue_wait(root))


def _machine_times(root: Path) -> tuple[float | None, float | None]:
    """Seconds that the machine's cores were busy, and that were stolen, since it started."""
    try:
        fields = (root / "proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()
        user, nice, system, _, _, irq, softirq, steal = (float(field) for field in fields[1:9])
    except (OSError, ValueError):
        return None, None
    tick = 1.0 / os.sysconf("SC_CLK_TCK")
    return tick * (user + nice + system + irq + softirq), tick * steal


def _run_queue_wait(root: Path) -> float | None:
    """Seconds that the living threads of this process were ready and waited for a core."""
    waited, seen = 0, False
    for file in (root / "proc/self/task").glob("*/schedstat"):
        try:
            waited += int(file.read_text(encoding="ascii").split()[1])
            seen = True
        except (OSError, ValueError, IndexError):  # the thread ended, or the kernel does not count
            continue
    return waited * _NANOSECONDS if seen else None


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else max(0.0, after - before)
