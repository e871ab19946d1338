"""MLPerf's own load generator as a witness: do our words mean what they mean there?

LoadGen plays its scenarios against a stand-in that answers at once, and logs when each query was due and how long it
took. Our definitions are applied to the same queries and compared with its summary. Nothing here depends on how fast
the machine is. ``test_queueing.py`` checks the same definitions without LoadGen.
"""

from __future__ import annotations

import dataclasses
import json
import queue
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from compactor.benching.server.queueing import Served, percentile, poisson_arrivals, serve
from compactor.benching.server.serving import judge
from compactor.benching.statistics import summarise
from tests.compactor.benching.server.simulated import SimulatedTime

loadgen = pytest.importorskip("mlperf_loadgen", reason="needs the package mlcommons-loadgen")

COUNT = 1200
QPS = 1500.0
STALLED, STALL_S = 400, 0.06  # the stand-in sleeps so long at this query of the server scenario


@dataclasses.dataclass
class Log:
    """What LoadGen wrote: times in ns, of each query in the order they were due, and its summary's lines."""

    due: np.ndarray
    latencies: np.ndarray
    summary: dict[str, float]
    calls: list[int]  # samples in each call of the stand-in


class StandIn:
    """Answers in the order of arrival, one by one, in a thread of its own."""

    def __init__(self, stall: int | None) -> None:
        self.calls: list[int] = []
        self._stall = stall
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._queue.put(None)
        self._thread.join()

    def issue(self, samples):
        self.calls.append(len(samples))
        self._queue.put([sample.id for sample in samples])

    def _work(self):
        number = 0
        while (ids := self._queue.get()) is not None:
            for identifier in ids:
                if number == self._stall:
                    time.sleep(STALL_S)
                loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(identifier, 0, 0)])
                number += 1


def play_loadgen(scenario: str, folder: Path, stall: int | None = None) -> Log:
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, scenario)
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = 0
    settings.min_query_count = settings.max_query_count = COUNT
    settings.server_target_qps = QPS
    settings.schedule_rng_seed = 17
    settings.offline_expected_qps = COUNT
    output = loadgen.LogOutputSettings()
    output.outdir, output.copy_summary_to_stdout = str(folder), False
    logs = loadgen.LogSettings()
    logs.log_output, logs.enable_trace = output, True

    with StandIn(stall) as stand_in:
        system = loadgen.ConstructSUT(stand_in.issue, lambda: None)
        library = loadgen.ConstructQSL(64, 64, lambda _: None, lambda _: None)
        loadgen.StartTestWithLogSettings(system, library, settings, logs, str(folder / "none.config"))
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(system)
    return read_log(folder, stand_in.calls)


def read_log(folder: Path, calls: list[int]) -> Log:
    # One event a line; as a whole the file is not always JSON.
    lines = (folder / "mlperf_log_trace.json").read_text().splitlines()
    events = [json.loads(line.rstrip(",")) for line in lines if '"name":"Sample"' in line and '"ph":"b"' in line]
    events.sort(key=lambda event: event["args"]["sample_seq"])
    summary = {}
    for line in (folder / "mlperf_log_summary.txt").read_text().splitlines():
        if found := re.fullmatch(r"\s*([^:]+?)\s*:\s*([-\d.e+]+)", line):
            summary[found[1]] = float(found[2])
    return Log(
        due=np.array([1e3 * event["ts"] for event in events]),
        latencies=np.array([event["args"]["complete_ns"] for event in events]),
        summary=summary,
        calls=calls,
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    return play_loadgen("Server", tmp_path_factory.mktemp("server"), stall=STALLED)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return play_loadgen("SingleStream", tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    return play_loadgen("Offline", tmp_path_factory.mktemp("offline"))


@pytest.mark.parametrize("scenario", ["server", "single", "offline"])
def test_our_percentiles_are_loadgens(scenario, request):
    log = request.getfixturevalue(scenario)
    assert len(log.latencies) == COUNT == sum(log.calls)
    ordered = np.sort(log.latencies)
    ours = summarise([(log.latencies / 1e6).tolist()])
    for percent in (50, 90, 95, 99):
        theirs = log.summary[f"{percent}.00 percentile latency (ns)"]
        assert percentile(log.latencies, percent) == theirs  # of a probe: a latency that occurred
        below = ordered[np.searchsorted(ordered, theirs) - 1]
        interpolated = 1e6 * getattr(ours, f"p{percent}")  # of a sample: between two that did
        assert below * (1 - 1e-9) <= interpolated <= theirs * (1 + 1e-9)
    assert 1e6 * ours.mean == pytest.approx(log.summary["Mean latency (ns)"], abs=1)  # cut to whole ns there
    assert ordered[-1] == log.summary["Max latency (ns)"]


def test_arrivals_have_loadgens_distribution(server):
    theirs = np.diff(server.due) / 1e9
    ours = np.diff(poisson_arrivals(QPS, COUNT, seed=17))
    assert stats.ks_2samp(theirs, ours).pvalue > 0.01
    assert stats.kstest(theirs, "expon", args=(0, 1 / QPS)).pvalue > 0.01
    # The mean of N exponential gaps is off by 1 / sqrt(N) of itself; ours is exact.
    assert theirs.mean() == pytest.approx(ours.mean(), rel=4 / np.sqrt(COUNT))


def test_latency_counts_from_the_scheduled_arrival_as_loadgens_does(server):
    due = (server.due - server.due[0]) / 1e9
    clock = SimulatedTime()
    served = serve(due, lambda first, last: clock.work(STALL_S if first == STALLED else 0.0), clock, max_batch=1)
    assert (served.latencies_s > STALL_S / 2).sum() > 10  # those that came while the stand-in slept
    # The stand-in cannot be faster than one that takes no time at all; whoever counts from sending would be.
    assert (server.latencies / 1e9 >= served.latencies_s - 1e-6).all()


def test_completed_queries_a_second_are_loadgens(server):
    ones = np.ones(COUNT, int)
    due = (server.due - server.due[0]) / 1e9
    served = Served(due, due, due + server.latencies / 1e9, ones, given_up=False)
    assert judge(served, None)["achieved_qps"] == pytest.approx(
        server.summary["Completed samples per second"], rel=1e-4
    )
    assert (COUNT - 1) / due[-1] == pytest.approx(server.summary["Scheduled samples per second"], rel=1e-4)


def test_single_stream_sends_the_next_query_after_the_answer(single):
    """So its samples are what our sampling loop times, and calls a second are the inverse of their mean."""
    assert (single.due[1:] >= (single.due + single.latencies)[:-1] - 1e3).all()
    assert set(single.calls) == {1}
    samples_ms = single.latencies / 1e6
    mean_ms = samples_ms.mean()
    whole_ns = 1 / (1e6 * mean_ms)  # LoadGen cuts its mean to whole ns: of 6 µs that is 1.6e-4
    assert 1e3 / mean_ms == pytest.approx(single.summary["QPS w/o loadgen overhead"], rel=1.01 * whole_ns)


def test_offline_sends_all_at_once_and_divides_by_the_time_of_the_last(offline):
    """So a sample is a pass over all examples, and throughput is examples over that time."""
    assert offline.calls == [COUNT] and len(set(offline.due)) == 1
    pass_ms = offline.latencies.max() / 1e6
    assert 1e3 * COUNT / pass_ms == pytest.approx(offline.summary["Samples per second"], rel=1e-4)
