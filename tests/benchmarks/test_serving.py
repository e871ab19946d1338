"""What serving costs: the page, the bare loop it is compared with, and that a replica is found and its memory read."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("aiohttp")

from benchmarks import _served, serving
from compactor.benching.server.http_load import Exchanges
from tests.benchmarks.made_up import MACHINE

LATENCY = {"p50": 10.0, "p95": 20.0, "p99": 30.0}


def result() -> dict:
    return {
        "command": "python benchmarks/serving.py",
        "machine": MACHINE,
        "settings": {"clients": 16, "rounds": 2, "seconds": 10.0, "cores": 2},
        "models": {
            "a model": {
                "rates": {
                    serving.BARE: [200.0, 250.0],
                    serving.LOADED: [400.0, 500.0],
                    serving.SERVED: [150.0, 225.0],
                },
                "steady": {"rate": 150.0, "seconds": 300.0, "requests": 45_000, "failed": 0, "latency_ms": LATENCY},
                "killed": {
                    "rate": 90.0,
                    "requests": 3600,
                    "failed": 4,
                    "lost_after_repeating": 0,
                    "delayed": 9,
                    "delayed_until_s": 1.25,
                    "replaced_after_s": 4.5,
                },
                "malformed": {"statuses": {"400": 3900, "413": 100}, "replica_bytes": [500_000_000, 505_000_000]},
                "overload": {
                    "clients": 512,
                    "statuses": {"200": 10, "503": 90},
                    "answered_per_s": 180.0,
                    "refusal_ms": {"p50": 20.0, "p99": 400.0},
                    "afterwards_per_s": 190.0,
                    "afterwards_statuses": {"200": 1900},
                },
            }
        },
    }


def test_the_page_states_every_figure() -> None:
    page = serving.render(result())
    assert "| a model | 225 [200, 250] | 450 [400, 500] | 188 [150, 225] | 82% [75%, 90%] | 41% [38%, 45%] |" in page
    assert "300 s at 150 a second (80% of the median), random arrivals: 0 of 45,000 failed" in page
    assert "10.0 ms (median), 20.0 (p95), 30.0 (p99)" in page
    assert "4 of 3,600 requests failed, 0 were lost after repeating them" in page
    assert "the last 1.2 s after it; a new replica listened 4.5 s after it" in page
    assert "4,000 malformed requests: statuses 400: 3,900, 413: 100" in page and "+1.0% after the last" in page
    assert "512 clients: statuses 200: 10, 503: 90, 180 answers a second, refusals within 20 ms" in page


def test_a_replica_that_never_came_back_and_no_refusal_are_said() -> None:
    found = result()
    found["models"]["a model"]["killed"]["replaced_after_s"] = None
    found["models"]["a model"]["overload"]["refusal_ms"] = None
    page = serving.render(found)
    assert "a new replica listened not within the measurement." in page and "refusals" not in page


def test_what_became_of_the_requests() -> None:
    due = np.arange(4.0)
    done = due + np.array([0.01, 0.02, 0.03, 9.0])
    exchanges = Exchanges(due, due + 0.001, done, np.array([200, 200, 200, 503]), np.arange(4))
    outcome = serving._outcome(exchanges)
    assert (outcome["requests"], outcome["failed"], outcome["statuses"]) == (4, 1, {"200": 3, "503": 1})
    assert outcome["latency_ms"]["p99"] == pytest.approx(30.0)
    assert outcome["sent_late_ms"] == pytest.approx(1.0)


def test_the_sentences_are_those_of_the_file() -> None:
    sentences = serving.read_sentences()
    assert len(sentences) == 872 and all(sentences)


def test_memory_and_sockets_are_read_from_proc() -> None:
    assert _served.memory_bytes(os.getpid()) > 10_000_000
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        inode = os.readlink(f"/proc/self/fd/{listening.fileno()}")[len("socket:[") : -1]
        assert inode in _served._listening_inodes()
        assert inode in _served._sockets(Path("/proc/self"))
    assert inode not in _served._listening_inodes()
    with pytest.raises(OSError, match="No such file"):
        _served.memory_bytes(2**22 + 1)


def test_a_server_that_does_not_start_tells_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"no compactor\.json"):
        _served.Server(tmp_path)
