from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from compactor.runtime.machine import describe_machine
from compactor.runtime.threads import explain_threads, plan_threads, usable_cores

UNKNOWN = dataclasses.replace(
    describe_machine(Path("/nonexistent")),
    physical_cores=None,
    logical_cores=None,
    affinity_cores=None,
    affinity_physical_cores=None,
    cpu_quota=None,
)


@pytest.mark.parametrize(
    ("known", "threads", "reason"),
    [
        ({}, 1, "unknown"),
        ({"logical_cores": 8}, 8, "8 logical CPUs"),
        ({"logical_cores": 8, "physical_cores": 4}, 4, "4 physical cores"),
        ({"affinity_cores": 2, "physical_cores": 4}, 2, "2 logical CPUs that this process may run on"),
        ({"affinity_cores": 4, "affinity_physical_cores": 2}, 2, "2 physical cores that this process may run on"),
        ({"physical_cores": 64, "affinity_cores": 128, "cpu_quota": 2.0}, 2, "2 CPUs in the container's quota"),
        ({"physical_cores": 4, "cpu_quota": 2.5}, 2, "2.5 CPUs in the container's quota"),
        ({"physical_cores": 4, "cpu_quota": 0.25}, 1, "0.25 CPUs in the container's quota"),
    ],
)
def test_plans_one_thread_for_each_usable_core_and_says_why(known, threads, reason):
    machine = dataclasses.replace(UNKNOWN, **known)
    plan = explain_threads(machine=machine)
    assert plan.threads == usable_cores(machine) == plan_threads(machine=machine) == threads
    assert reason in plan.reason


def test_a_request_wins():
    assert plan_threads(7, machine=dataclasses.replace(UNKNOWN, physical_cores=2)) == 7


@pytest.mark.parametrize("requested", [0, -1])
def test_refuses_fewer_than_one_thread(requested):
    with pytest.raises(ValueError, match=f"at least 1 thread, got {requested}"):
        plan_threads(requested)


def test_this_machine_has_at_least_one_core():
    assert usable_cores() >= 1
