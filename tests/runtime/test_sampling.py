"""Sampling: enough calls, all of them kept, and a meter that reads the kernel's counters."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from compactor.runtime.sampling import Clock, Meter, peak_memory_bytes, sample


def test_warm_up_is_not_sampled_and_the_least_number_of_samples_is_taken():
    calls = []
    times, usage = sample(lambda: calls.append(1), Clock(0, 3, 0, 4, 100))
    assert len(times) == 4 and len(calls) == 7
    assert all(t >= 0 for t in times) and usage.wall_s >= 0


def test_sampling_ends_at_the_largest_number():
    times, _ = sample(lambda: None, Clock(0, 0, 1e9, 1, 17))
    assert len(times) == 17


@pytest.mark.parametrize(("clock", "expected"), [(Clock(0, 0, 0, 4, 100), 6), (Clock(0, 0, 1e9, 1, 7), 9)])
def test_sampling_ends_behind_whole_cycles(clock, expected):
    times, _ = sample(lambda: None, clock, cycle=3)
    assert len(times) == expected


def test_warm_up_goes_on_until_its_time_has_passed():
    calls = []
    sample(lambda: calls.append(time.perf_counter()), Clock(0.05, 1, 0, 1, 1))
    assert calls[-1] - calls[0] >= 0.05  # a least time, which no load can shorten


def test_the_meter_reads_the_kernel(tmp_path):
    (tmp_path / "proc/self/task/7").mkdir(parents=True)
    stat, waited = tmp_path / "proc/stat", tmp_path / "proc/self/task/7/schedstat"
    tick = os.sysconf("SC_CLK_TCK")
    stat.write_text("cpu  0 0 0 0 0 0 0 0 0 0\n")
    waited.write_text("0 1000000000 3\n")
    meter = Meter(tmp_path)
    stat.write_text(f"cpu  {50 * tick} {tick} {tick} 999 999 {tick} {tick} {4 * tick} 0 0\n")
    waited.write_text("0 3000000000 3\n")
    usage = meter.read()
    assert usage.waited_s == pytest.approx(2.0)
    assert usage.steal_s == pytest.approx(4.0)
    assert usage.others_cpu_s == pytest.approx(54.0 - usage.cpu_s)


def test_what_the_kernel_does_not_tell_is_unknown(tmp_path):
    usage = Meter(tmp_path).read()
    assert (usage.waited_s, usage.others_cpu_s, usage.steal_s) == (None, None, None)
    assert usage.to_json()["steal_s"] is None


def test_peak_memory_is_in_bytes():
    held = bytearray(64 * 2**20)
    assert peak_memory_bytes() > len(held)


def test_peak_memory_is_that_of_the_program_alone():
    held = np.ones(256 * 2**20, np.uint8)  # of this process, which is copied to start the other one
    script = "from compactor.runtime.sampling import peak_memory_bytes; print(peak_memory_bytes())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < held.nbytes


def test_without_proc_peak_memory_comes_from_getrusage(tmp_path):
    held = bytearray(64 * 2**20)
    assert peak_memory_bytes(tmp_path) > len(held)
