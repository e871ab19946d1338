"""Real servers: ``compactor serve`` in a process of its own, on loopback."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _served


class Server(_served.Server):
    """One ``compactor serve`` of a model called ``films``, and what to ask it."""

    def __init__(self, artefact: Path, *options: str) -> None:
        super().__init__(artefact, "--name", "films", *options)

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON of the reply; ``body`` as JSON, or bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._open(urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}))

    def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON of the reply."""
        return self._open(urllib.request.Request(self.url + path))

    def metrics(self) -> str:
        """What Prometheus would read."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=30) as reply:
            return str(reply.read().decode())

    def metric(self, name: str, **tags: str) -> float:
        """The sum of a metric's samples that have these tags."""
        total = 0.0
        for line in self.metrics().splitlines():
            found = re.match(rf"ray_compactor_{name}(?:{{(.*)}})? (\S+)$", line)
            if found and all(f'{tag}="{value}"' in (found[1] or "") for tag, value in tags.items()):
                total += float(found[2])
        return total

    def _open(self, request: urllib.request.Request) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                status, content = reply.status, reply.read()
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
        try:
            return status, json.loads(content)
        except ValueError:
            return status, content.decode(errors="replace")


@pytest.fixture(scope="session")
def artefact(text_artefact: Any) -> Path:
    """The example's."""
    return Path(text_artefact("BertForSequenceClassification")[1])
