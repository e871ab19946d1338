"""The load generator against an endpoint on loopback that does as it is told."""

from __future__ import annotations

import asyncio
import errno
import json
import socket

import numpy as np
import pytest

pytest.importorskip("aiohttp")

from compactor.benching.server.http_load import (
    NO_ANSWER,
    NO_CONNECTION,
    closed_loop,
    open_loop,
    plain_body,
    post_once,
    run,
    v2_body,
)
from tests.compactor.benching.server.endpoint import PLAIN_ROUTE, V2_ROUTE, endpoint

BODIES = [v2_body([text]) for text in ("one", "two", "three")]


def texts(requests):
    return [document["inputs"][0]["data"][0] for _, document in requests]


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def test_an_open_loop_sends_each_request_when_it_is_due():
    due = np.array([0.0, 0.05, 0.05, 0.2])
    with endpoint() as server:
        found = run(open_loop(server.url, BODIES, due))
    np.testing.assert_array_equal(found.due, due)
    assert found.count_statuses() == {200: 4}
    assert (found.sent >= due).all()  # never early
    assert (found.done > found.sent).all()
    assert texts(server.requests) == ["one", "two", "three", "one"]  # in turn
    np.testing.assert_array_equal(found.bodies, [0, 1, 2, 0])
    assert not found.given_up


def test_an_open_loop_does_not_wait_for_answers():
    with endpoint(together=10) as server:
        found = run(open_loop(server.url, BODIES, np.linspace(0, 0.1, 10)))
    assert found.ok.all()
    assert found.sent.max() < found.done.min()
    assert server.connections == 10


def test_latency_counts_from_when_a_request_was_due_although_no_connection_was_free():
    with endpoint(delay_s=0.05) as server:
        found = run(open_loop(server.url, BODIES, np.zeros(6), connections=1))
    assert server.connections == 1
    np.testing.assert_array_equal(found.latencies_s, found.done)
    assert (np.sort(found.latencies_s) >= 0.049 * np.arange(1, 7)).all()


def test_latencies_and_rates_are_of_what_was_answered():
    with endpoint(lambda text: "503" if text == "two" else "answer") as server:
        found = run(open_loop(server.url, BODIES, np.arange(9) * 0.01))
    assert found.count_statuses() == {200: 6, 503: 3}
    assert len(found.latencies_s) == 6
    assert found.answered_per_s == pytest.approx(6 / found.duration_s)
    assert len(found.lateness_s) == 9


@pytest.mark.parametrize("todo", ["close", "half"])
def test_a_connection_that_breaks_is_a_request_without_a_status(todo):
    with endpoint(lambda text: todo if text == "two" else "answer") as server:
        found = run(open_loop(server.url, BODIES, np.arange(3) * 0.05))
    assert found.statuses.tolist() == [200, NO_CONNECTION, 200]
    assert len(server.requests) == 3  # none was sent twice
    assert not np.isnan(found.done).any()


def test_nobody_listens():
    found = run(open_loop(f"http://127.0.0.1:{free_port()}{V2_ROUTE}", BODIES, np.zeros(3)))
    assert found.count_statuses() == {NO_CONNECTION: 3}
    assert found.answered_per_s == 0
    assert len(found.latencies_s) == 0


def test_a_request_is_given_up_after_its_time_and_the_others_go_on():
    with endpoint(lambda text: "hang" if text == "one" else "answer") as server:
        found = run(open_loop(server.url, BODIES, np.array([0.0, 0.02, 0.6]), timeout_s=0.5))
    assert found.statuses.tolist() == [NO_ANSWER, 200, 200]
    assert found.done[0] >= 0.5
    assert not found.given_up


def test_the_load_is_given_up_when_a_request_waited_too_long():
    with endpoint(lambda text: "hang" if text == "two" else "answer") as server:
        found = run(open_loop(server.url, BODIES, np.array([0.0, 0.05, 0.1, 60.0]), give_up_s=0.5))
    assert found.given_up
    assert found.statuses.tolist() == [200, NO_ANSWER, 200, NO_ANSWER]
    assert np.isnan(found.sent).tolist() == [False, False, False, True]
    assert 0.5 <= found.duration_s < 30
    assert len(server.requests) == 3


def test_waiting_for_a_late_arrival_is_not_giving_up():
    with endpoint() as server:
        found = run(open_loop(server.url, BODIES, np.array([0.0, 0.6]), give_up_s=0.4))
    assert found.statuses.tolist() == [200, 200]
    assert not found.given_up


def test_redirects_are_answers():
    with endpoint("307") as server:
        found = run(open_loop(server.url, BODIES, np.zeros(1)))
    assert found.statuses.tolist() == [307]


def test_runs_on_the_callers_own_event_loop():
    with endpoint() as server:
        found = asyncio.run(open_loop(server.url, BODIES, np.zeros(2)))
    assert found.ok.all()


def test_too_many_open_files_are_our_own_failure(monkeypatch):
    async def no_connection(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("aiohttp.connector.aiohappyeyeballs.start_connection", no_connection)
    with endpoint() as server, pytest.raises(OSError, match="Too many open files"):
        run(open_loop(server.url, BODIES, np.zeros(2)))


def test_a_closed_loop_has_one_request_of_each_client_under_way():
    with endpoint(delay_s=0.05) as server:
        found = run(closed_loop(server.url, BODIES, clients=3, duration_s=0.3))
    assert found.ok.all()
    assert server.connections == 3
    under_way = [((found.sent <= at) & (at < found.done)).sum() for at in found.sent]
    assert max(under_way) == 3
    np.testing.assert_array_equal(found.due, found.sent)
    assert (np.diff(found.sent) >= 0).all()
    assert texts(server.requests[:3]) == ["one", "two", "three"]


def test_a_closed_loop_ends_when_its_time_is_over_and_waits_for_what_is_under_way():
    with endpoint(delay_s=0.2) as server:
        found = run(closed_loop(server.url, BODIES, clients=2, duration_s=0.3))
    assert found.ok.all()
    assert found.sent.max() < found.done.max() >= 0.3


def test_a_closed_loop_sends_so_many_at_most():
    with endpoint() as server:
        found = run(closed_loop(server.url, BODIES, clients=4, duration_s=60, most=10))
    assert len(found) == len(server.requests) == 10


def test_each_client_of_a_closed_loop_sends_one_request_at_least():
    with endpoint() as server:
        assert len(run(closed_loop(server.url, BODIES, clients=2, duration_s=0.0))) == 2


def test_a_closed_loop_rests_where_nobody_listens():
    found = run(closed_loop(f"http://127.0.0.1:{free_port()}/", BODIES, clients=1, duration_s=0.1))
    assert found.count_statuses().keys() == {NO_CONNECTION}
    assert len(found) <= 6


def test_a_closed_loop_has_clients():
    with pytest.raises(ValueError, match="at least 1 client"):
        run(closed_loop("http://127.0.0.1:1/", BODIES, clients=0, duration_s=1))


def test_one_request_and_its_answer():
    with endpoint() as server:
        reply = run(post_once(server.plain_url, plain_body(["a"])))
        missing = run(post_once(server.plain_url + "s", plain_body(["a"])))
    assert reply.status == 200
    assert json.loads(reply.body)["model"] == "small"
    assert missing.status == 404
    assert server.requests[0] == (PLAIN_ROUTE, {"inputs": ["a"]})


def test_one_request_that_is_not_answered():
    with endpoint("hang") as server, pytest.raises(TimeoutError):
        run(post_once(server.url, BODIES[0], timeout_s=0.1))


QUESTION = {"question": "who?", "context": "we"}


@pytest.mark.parametrize(
    ("items", "columns"),
    [
        (["añ", "b"], {"text": ["añ", "b"]}),
        ([("a", "b")], {"text": ["a"], "text_pair": ["b"]}),
        ([QUESTION, QUESTION], {"question": ["who?"] * 2, "context": ["we"] * 2}),
    ],
)
def test_v2_bodies(items, columns):
    assert json.loads(v2_body(items)) == {
        "inputs": [
            {"name": name, "shape": [len(data)], "datatype": "BYTES", "data": data} for name, data in columns.items()
        ]
    }


def test_plain_bodies():
    assert json.loads(plain_body(["a", ("b", "c"), QUESTION])) == {
        "inputs": ["a", {"text": "b", "text_pair": "c"}, QUESTION]
    }


@pytest.mark.parametrize("items", [[], ["a", ("b", "c")]])
def test_a_v2_body_holds_items_of_one_kind(items):
    with pytest.raises(ValueError, match="all of one kind"):
        v2_body(items)
