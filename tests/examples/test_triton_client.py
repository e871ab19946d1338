"""The client of the docs: it pads by bucket, keeps the order, and gets the answers of the graph."""

from __future__ import annotations

import inspect
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
from examples import triton_client
from examples.triton_client import BATCH, Client

SHORT, LONG = (
    "a charming journey .",
    "it is what it is , and no more than that , which is not to say very much at all .",
)


class Stub(ThreadingHTTPServer):
    """Speaks as much of the V2 protocol as the client needs, for one graph.

    Attributes:
        shapes: Of the requests, as they came.
    """

    daemon_threads = True

    def __init__(self, name: str, graph: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.name, self.session = name, onnxruntime.InferenceSession(graph)
        self.shapes: list[tuple[int, ...]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_GET(self) -> None:
        assert self.path == f"/v2/models/{self.server.name}"
        self.answer({"inputs": [{"name": entry.name} for entry in self.server.session.get_inputs()]})

    def do_POST(self) -> None:
        assert self.path == f"/v2/models/{self.server.name}/infer"
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        feeds = {entry["name"]: np.array(entry["data"], np.int64) for entry in request["inputs"]}
        assert all(list(feeds[entry["name"]].shape) == entry["shape"] for entry in request["inputs"])
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


def test_answers_in_order_and_pads_by_bucket(repository: Path, server: Stub) -> None:
    client = Client(repository, server.url)
    texts = [LONG, SHORT, f"{LONG} {LONG}", f"{SHORT} {LONG}", "bad " * 500, ""]
    got = client.infer(texts)
    assert sorted(server.shapes) == [(1, 64), (1, 128), (2, 16), (2, 32)]
    for text, outputs in zip(texts, got, strict=True):
        tokens = client.tokenizer.encode(text)
        feeds = {"input_ids": tokens.ids, "attention_mask": tokens.attention_mask, "token_type_ids": tokens.type_ids}
        (expected,) = server.session.run(["logits"], {name: np.array([row]) for name, row in feeds.items()})
        np.testing.assert_allclose(outputs["logits"], expected[0], rtol=1e-4, atol=1e-5)


def test_a_request_holds_no_more_than_the_server_takes(repository: Path, server: Stub) -> None:
    Client(repository, server.url).infer([SHORT] * (BATCH + 1))
    assert sorted(server.shapes) == [(1, 16), (BATCH, 16)]
    assert f"max_batch_size: {BATCH}\n" in (repository / "sst2-small" / "config.pbtxt").read_text()


def test_labels_and_probabilities(
    repository: Path, server: Stub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ((label, score),) = Client(repository, server.url).classify([SHORT])
    assert label == "positive" and 0.5 < score <= 1
    monkeypatch.setattr("sys.argv", ["triton_client.py", str(repository), SHORT, "--url", server.url])
    triton_client.main()
    assert capsys.readouterr().out == f"positive\t{score:.4f}\t{SHORT}\n"


@pytest.mark.parametrize("method", [Client.infer, Client.ask])
def test_the_docs_show_this_client(method: Any, root: Path) -> None:
    assert inspect.cleandoc(inspect.getsource(method)) in (root / "docs" / "serving-triton.md").read_text("utf-8")
