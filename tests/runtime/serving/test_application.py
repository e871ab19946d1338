"""Ray Serve for real, on loopback: every route, every limit, an end without losing a request."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time

import pytest

pytest.importorskip("ray")

import compactor.runtime
from compactor.benching.server.http_load import closed_loop, run
from tests.runtime.serving.conftest import Server

TEXTS = ["a gripping film", "what a bore", "it 's slow -- very , very slow", "fine " * 60]
INFER = "/v2/models/films/infer"


def v2(*texts, **more):
    return {"inputs": [{"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}], **more}


def bodies(texts):
    return [json.dumps({"inputs": text}).encode() for text in texts]


@pytest.fixture(scope="module")
def server(artefact):
    with Server(artefact, "--precision", "fp32", "--max-texts", "16", "--max-body", "20000") as found:
        yield found


@pytest.fixture(scope="module")
def expected(artefact):
    return compactor.runtime.load(artefact, precision="fp32", threads=1)(TEXTS)


def test_what_it_says_at_the_start(server):
    said = "".join(server.said)
    assert f"POST {server.url}/predict" in said and f"POST {server.url}{INFER}" in said
    assert "films (text-classification): as asked" in said


def test_health_and_metadata(server):
    assert server.get("/v2/health/live") == (200, {"live": True})
    assert server.get("/v2/health/ready") == (200, {"ready": True})
    assert server.get("/v2")[1]["name"] == "compactor"
    for path in ("/v2/models/films", "/v2/models/films/versions/1"):
        status, described = server.get(path)
        assert status == 200 and described["name"] == "films" and described["versions"] == ["1"]
        assert [entry["name"] for entry in described["outputs"]] == ["label", "score", "scores"]
    assert server.get("/v2/models/films/ready") == (200, {"name": "films", "ready": True})
    for path in ("/v2/models/plays", "/v2/models/films/versions/2", "/v2/models/plays/ready"):
        assert server.get(path)[0] == 404


def test_the_openapi_page(server):
    status, page = server.get("/docs")
    assert status == 200 and "swagger" in page.lower()
    status, described = server.get("/openapi.json")
    assert status == 200
    assert {"/predict", "/v2/models/{name}/infer", "/v2/health/ready"} <= set(described["paths"])


def test_both_routes_answer_as_the_model_does(server, expected):
    status, reply = server.post("/predict", {"inputs": TEXTS})
    assert status == 200 and reply["model"] == "films"
    for found, answer in zip(reply["outputs"], expected, strict=True):
        assert found["label"] == answer.label and found["score"] == pytest.approx(answer.score, abs=1e-5)
    for path in (INFER, "/v2/models/films/versions/1/infer"):
        status, reply = server.post(path, v2(*TEXTS, id="one"))
        assert status == 200 and reply["id"] == "one" and reply["model_name"] == "films"
        outputs = {output["name"]: output for output in reply["outputs"]}
        assert outputs["label"]["data"] == [answer.label for answer in expected]
        assert outputs["score"]["data"] == pytest.approx([answer.score for answer in expected], abs=1e-5)
        assert outputs["scores"]["shape"] == [len(TEXTS), 2]
    assert server.post("/predict", {"inputs": TEXTS[0]})[1]["outputs"][0]["label"] == expected[0].label


def test_clients_at_the_same_time_get_their_own_answers(server, expected):
    """Twelve at once, with texts of all lengths: batches mix them, answers do not."""
    found = {}

    def ask(number):
        for turn in range(6):
            which = (number + turn) % len(TEXTS)
            found[number, turn] = (which, *server.post("/predict", {"inputs": TEXTS[which]}))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 72
    for which, status, reply in found.values():
        assert status == 200
        assert reply["outputs"][0]["score"] == pytest.approx(expected[which].score, abs=1e-5)


@pytest.mark.slow
def test_int8_by_token_answers_a_text_as_among_63_others(token_artefact, film_texts):
    with Server(token_artefact, "--precision", "int8", "--max-texts", "64", "--max-batch", "64") as server:
        status, reply = server.post("/predict", {"inputs": film_texts})
        assert status == 200
        for text, together in zip(film_texts, reply["outputs"], strict=True):
            status, own = server.post("/predict", {"inputs": text})
            (alone,) = own["outputs"]
            assert status == 200 and alone["label"] == together["label"]
            assert together["scores"] == pytest.approx(alone["scores"], rel=0, abs=1e-6)


def test_a_bad_item_harms_no_other(server, expected):
    status, reply = server.post("/predict", {"inputs": [TEXTS[0], "", 3, "long " * 200, TEXTS[1]]})
    assert status == 200
    assert [set(entry) == {"error"} for entry in reply["outputs"]] == [False, True, True, True, False]
    assert reply["outputs"][4]["label"] == expected[1].label
    assert "128" in reply["outputs"][3]["error"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/predict", b"", 400),
        ("/predict", b"{", 400),
        ("/predict", b"\xff\xfe", 400),
        ("/predict", [], 422),
        ("/predict", {}, 422),
        ("/predict", {"inputs": []}, 422),
        ("/predict", {"inputs": ""}, 422),
        ("/predict", {"inputs": [None, 3]}, 422),
        ("/predict", {"inputs": ["a"] * 17}, 413),
        ("/predict", b'{"inputs": "' + b"a" * 20_000 + b'"}', 413),
        ("/predict", b"[" * 10_000, 400),
        (INFER, b"{", 400),
        (INFER, {}, 400),
        (INFER, v2(), 400),
        (INFER, v2("good", ""), 400),
        (INFER, v2(*"abcdefghijklmnopq"), 413),
        ("/v2/models/plays/infer", v2("a"), 404),
        ("/v2/models/films/versions/7/infer", v2("a"), 404),
        ("/nowhere", {}, 404),
    ],
)
def test_malformed_requests_get_4xx_and_a_reason(server, path, body, status):
    found, reply = server.post(path, body)
    assert found == status
    if path != "/nowhere":
        assert isinstance(reply["error"], str) and reply["error"]
    assert server.get("/predict")[0] == 405


def test_a_body_without_a_stated_length_is_limited_too(server):
    """In chunks, more than the limit: 413 or a closed connection, and nothing held."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(30):
                connection.sendall(b"400\r\n" + b"a" * 1024 + b"\r\n")
            connection.sendall(b"0\r\n\r\n")
        except OSError:
            return
        assert connection.recv(64).split()[1] == b"413"


def test_metrics_and_logs(server):
    """Latency, batch size, queue and rejects for Prometheus; a log line a request, and no text in it."""
    secret = "zanzibar xylophone"
    server.post("/predict", {"inputs": [secret, ""]})
    server.post("/predict", {"inputs": ""})
    deadline = time.monotonic() + 60
    while server.metric("rejected_total", reason="422") < 1 or server.metric("batch_size_count") < 1:
        assert time.monotonic() < deadline, "the metrics did not come"
        time.sleep(1)
    assert server.metric("request_latency_ms_count", route="/predict", status="200") >= 1
    assert server.metric("request_latency_ms_count", status="422", model="films") >= 1
    assert "ray_compactor_queue_length{" in server.metrics()
    for pid in server.replicas():
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            path = os.path.realpath(f"/proc/{pid}/fd/{descriptor}")
            if "replica_compactor_Texts" in path and path.endswith(".log"):
                with open(path) as file:
                    log = file.read()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    answered = [line for line in lines if line["message"] == "answered"]
    assert {"compactor_route", "compactor_status", "compactor_texts", "compactor_elapsed_ms"} <= set(answered[0])
    assert any(line["compactor_texts"] == 2 for line in answered)
    assert "zanzibar" not in log and "gripping" not in log


def test_http_listens_on_loopback_alone(server):
    with open("/proc/net/tcp") as file:
        listening = [line.split()[1] for line in file.readlines()[1:] if line.split()[3] == "0A"]
    addresses = {entry.split(":")[0] for entry in listening if int(entry.split(":")[1], 16) == server.port}
    assert addresses == {"0100007F"}


def test_a_replica_that_dies_is_replaced_and_no_request_lost(artefact):
    with Server(artefact, "--min-replicas", "2", "--max-replicas", "2") as server:
        killed = []

        def kill():
            time.sleep(1.0)
            killed.append(server.replicas()[0])
            os.kill(killed[0], signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        found = run(closed_loop(f"{server.url}/predict", bodies(TEXTS), 8, 4.0))
        thread.join()
        assert killed and len(found) > 20
        lost = found.bodies[~found.ok].tolist()
        for body in lost:  # a client repeats what failed: an answer has no effect
            assert server.post("/predict", bodies(TEXTS)[body])[0] == 200
        deadline = time.monotonic() + 60
        while len(server.replicas()) < 2 or killed[0] in server.replicas():
            assert time.monotonic() < deadline, "no new replica came"
            time.sleep(0.5)
        assert server.post("/predict", {"inputs": "good"})[0] == 200


def test_overload_is_answered_503_at_once_and_recovers(artefact):
    with Server(artefact, "--max-ongoing", "2", "--max-queued", "2", "--max-batch", "1") as server:
        found = run(closed_loop(f"{server.url}/predict", bodies(["slow " * 100]), 48, 3.0))
        statuses = found.count_statuses()
        assert set(statuses) == {200, 503}
        assert statuses[200] > 3
        assert server.post("/predict", {"inputs": "good"})[0] == 200


@pytest.mark.slow
def test_replicas_are_added_under_load(artefact):
    with Server(artefact, "--max-replicas", "2") as server:
        assert len(server.replicas()) == 1
        deadline = time.monotonic() + 120
        while len(server.replicas()) < 2:
            assert time.monotonic() < deadline, "no second replica came"
            found = run(closed_loop(f"{server.url}/predict", bodies(TEXTS), 24, 3.0))
            assert set(found.count_statuses()) == {200}


@pytest.mark.slow
def test_what_takes_too_long_is_answered_504(artefact):
    with Server(artefact, "--timeout", "0.0001") as server:
        status, reply = server.post("/predict", {"inputs": ["slow " * 100] * 50})
        assert status == 504 and "0.0001 s" in reply["error"]
        assert server.get("/v2/health/live")[0] == 200


@pytest.mark.slow
def test_clients_who_leave_cost_nothing(artefact):
    """Twenty ask for 128 long texts each and hang up: most of those are never run."""
    with Server(artefact, "--precision", "fp32") as server:
        body = json.dumps({"inputs": ["long text " * 60] * 128}).encode()
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
                connection.sendall(head + body)
                time.sleep(0.05)
        assert server.post("/predict", {"inputs": "good"})[0] == 200
        deadline = time.monotonic() + 60
        while not server.metric("text_tokens_count"):
            assert time.monotonic() < deadline, "the metrics did not come"
            time.sleep(1)
        time.sleep(6)  # for the rest of them
        assert server.metric("batch_size_sum") < 20 * 128 / 2


@pytest.mark.slow
def test_an_end_loses_no_accepted_request(artefact):
    with Server(artefact) as server:
        ended = []

        def end():
            time.sleep(1.5)
            ended.append(time.monotonic())
            server.ask_to_end()

        thread = threading.Thread(target=end)
        thread.start()
        started = time.monotonic()
        found = run(closed_loop(f"{server.url}/predict", bodies(TEXTS), 8, 5.0))
        thread.join()
        before = found.sent < ended[0] - started - 0.1
        assert before.sum() > 5
        assert found.ok[before].all()
        # Later ones are answered, told that the route is gone, or get no connection: none is cut off half-way.
        assert set(found.count_statuses()) <= {0, 200, 404, 503}
        assert server.wait() == 130
