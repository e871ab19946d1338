"""How many threads a session should use: one for each physical core this process may really run on.

ONNX Runtime counts the machine's cores, not the container's: under a quota of two CPUs on a 64-core host it would
start 64 threads that throttle each other. Hyper-threads share one set of multipliers, so they do not count either.
"""

from __future__ import annotations

import dataclasses
import math

from .machine import MachineInfo, describe_machine


@dataclasses.dataclass(frozen=True)
class ThreadPlan:
    """A number of threads and why it is that number."""

    threads: int
    reason: str


def usable_cores(machine: MachineInfo | None = None) -> int:
    """Cores that this process can keep busy, at least one."""
    return explain_threads(machine=machine).threads


def plan_threads(requested: int | None = None, *, machine: MachineInfo | None = None) -> int:
    """``requested`` where given, else one thread for each usable core.

    Raises:
        ValueError: ``requested`` is below one.
    """
    return explain_threads(requested, machine=machine).threads


def explain_threads(requested: int | None = None, *, machine: MachineInfo | None = None) -> ThreadPlan:
    """Plan threads and say which limit decided.

    Raises:
        ValueError: ``requested`` is below one.
    """
    if requested is not None:
        if requested < 1:
            raise ValueError(f"expected at least 1 thread, got {requested}")
        return ThreadPlan(requested, "as requested")

    machine = machine or describe_machine()
    limits: list[tuple[float, str]] = []  # ties go to the first
    if machine.affinity_physical_cores is not None:
        limits.append((machine.affinity_physical_cores, "physical cores that this process may run on"))
    elif machine.physical_cores is not None:
        limits.append((machine.physical_cores, "physical cores"))
    if machine.affinity_cores is not None:
        limits.append((machine.affinity_cores, "logical CPUs that this process may run on"))
    elif machine.logical_cores is not None:
        limits.append((machine.logical_cores, "logical CPUs"))
    if machine.cpu_quota is not None:
        limits.append((machine.cpu_quota, "CPUs in the container's quota"))
    if not limits:
        return ThreadPlan(1, "the number of cores is unknown")
    count, what = min(limits, key=lambda limit: limit[0])
    return ThreadPlan(max(1, math.floor(count)), f"{count:g} {what}")
