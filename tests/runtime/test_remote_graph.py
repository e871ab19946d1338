"""A graph behind the V2 protocol: padded by bucket, in order, and the answers are those of the graph run here."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import compactor
from compactor.runtime.answers import Classified, Refused
from compactor.runtime.errors import ArtefactError
from compactor.runtime.model import load
from compactor.runtime.remote_graph import MAX_BATCH, RemoteGraphError
from examples import triton_client

SHORT, LONG = (
    "a charming journey .",
    "it is what it is , and no more than that , which is not to say very much at all .",
)


class Stub(ThreadingHTTPServer):
    """Speaks as much of the V2 protocol as the client needs, for one graph.

    Attributes:
        shapes: Of the requests, as they came.
        reply: What it answers instead; None where it works.
    """

    daemon_threads = False  # so that closing it waits for them

    def __init__(self, name: str, graph: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.name, self.session = name, onnxruntime.InferenceSession(graph)
        self.shapes: list[tuple[int, ...]] = []
        self.reply: tuple[int, bytes] | None = None
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_GET(self) -> None:
        if self.path != f"/v2/models/{self.server.name}":
            self.send_error(404)
            return
        session = self.server.session
        inputs = [{"name": entry.name, "datatype": "INT64", "shape": [-1, -1]} for entry in session.get_inputs()]
        self.answer({"inputs": inputs, "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 2]}]})

    def do_POST(self) -> None:
        assert self.path == f"/v2/models/{self.server.name}/infer"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.reply is not None:
            code, content = self.server.reply
            self.send_response(code)
            self.end_headers()
            self.wfile.write(content)
            return
        request = json.loads(body)
        assert all(entry["datatype"] == "INT64" for entry in request["inputs"])
        feeds = {
            entry["name"]: np.array(entry["data"], np.int64).reshape(entry["shape"]) for entry in request["inputs"]
        }
        self.server.shapes.append(feeds["input_ids"].shape)
        (logits,) = self.server.session.run(["logits"], feeds)
        output = {"name": "logits", "datatype": "FP32", "shape": list(logits.shape), "data": logits.ravel().tolist()}
        self.answer({"outputs": [output]})

    def answer(self, content: dict[str, Any]) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def repository(example_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("served") / "models"
    return compactor.export(example_checkpoint, out, layout="triton", precision=["fp32"]).path


@pytest.fixture
def server(repository: Path) -> Iterator[Stub]:
    with Stub("sst2-small", repository / "sst2-small" / "1" / "model.onnx") as stub:
        threading.Thread(target=stub.serve_forever, args=(0.01,), daemon=True).start()
        yield stub
        stub.shutdown()


def test_the_answers_are_those_of_the_graph_run_here(repository: Path, server: Stub) -> None:
    texts = [LONG, SHORT, f"{LONG} {LONG}", (SHORT, LONG), "", "bad " * 500, 3]
    there = load(repository, url=server.url)
    here = load(repository, precision="fp32", threads=1)
    got = there(texts)
    for have, want in zip(got, here(texts), strict=True):
        assert type(have) is type(want)
        if isinstance(want, Classified):
            np.testing.assert_allclose(have.scores, want.scores, atol=1e-5)
            assert have.label == want.label
        else:
            assert have == want
    assert [isinstance(answer, Refused) for answer in got] == [False] * 4 + [True] * 3


def test_batches_are_padded_to_a_few_lengths(repository: Path, server: Stub) -> None:
    model = load(repository, url=server.url, max_batch=1)
    model([SHORT, LONG, f"{LONG} {LONG}", "good " * 126])
    assert sorted(server.shapes) == [(1, 16), (1, 32), (1, 64), (1, 128)]


def test_a_request_holds_no_more_than_the_server_takes(repository: Path, server: Stub) -> None:
    load(repository, url=server.url)([SHORT] * (MAX_BATCH + 1))
    assert sorted(server.shapes) == [(1, 16), (MAX_BATCH, 16)]
    assert f"max_batch_size: {MAX_BATCH}\n" in (repository / "sst2-small" / "config.pbtxt").read_text()


def test_the_example_prints_the_answers(
    repository: Path, server: Stub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["triton_client.py", str(repository), SHORT, " ", "--url", server.url])
    triton_client.main()
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["label"] == "positive" and 0.5 < first["score"] <= 1
    assert second == {"error": "the text is empty"}


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((503, b"busy"), "the server answered 503: busy"),
        ((200, b"no json"), "cannot be asked"),
        ((200, b"[]"), "no JSON object"),
        ((200, b'{"outputs": [{"name": "logits"}]}'), "not one of the protocol"),
        ((200, b'{"outputs": [{"name": "logits", "datatype": "FP32", "shape": [9], "data": [1]}]}'), "protocol"),
    ],
)
def test_a_server_that_fails_is_told_as_that(
    reply: tuple[int, bytes], said: str, repository: Path, server: Stub
) -> None:
    model = load(repository, url=server.url)
    server.reply = reply
    with pytest.raises(RemoteGraphError, match=said) as caught:
        model(SHORT)
    assert len(str(caught.value).splitlines()) == 3


def test_no_server_and_no_such_model(repository: Path, server: Stub) -> None:
    server.name = "another"
    with pytest.raises(RemoteGraphError, match="404"):
        load(repository, url=server.url)
    server.shutdown()
    server.server_close()
    with pytest.raises(RemoteGraphError, match="cannot be asked"):
        load(repository, url=server.url)


def test_only_a_repository_is_run_elsewhere(example_checkpoint: Path, tmp_path: Path) -> None:
    out = compactor.export(example_checkpoint, tmp_path / "out", precision=["fp32"]).path
    with pytest.raises(ArtefactError, match="no model repository"):
        load(out, url="http://127.0.0.1:1")
