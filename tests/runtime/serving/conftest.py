"""Real servers: ``compactor serve`` in a process of its own, on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

START_S = 120


class Server:
    """One ``compactor serve``."""

    def __init__(self, artefact: Path, *options: str) -> None:
        self.port, self.metrics_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "compactor", "serve", str(artefact), "--name", "films", "--threads", "1"),
                *("--port", str(self.port), "--metrics-port", str(self.metrics_port), *options),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        self.said = []
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith("Prometheus"):
                return
        raise AssertionError("it did not start:\n" + "".join(self.said))

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

    def replicas(self) -> list[int]:
        """The processes that hold the model."""
        return [
            int(folder.name)
            for folder in Path("/proc").iterdir()
            if folder.name.isdigit() and self._is_replica(folder) and self._is_ours(folder)
        ]

    def stop(self) -> int:
        """End it as an operator would, and give its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=60)
        finally:
            self.process.kill()
            self.process.stdout.close()

    @staticmethod
    def _is_replica(folder: Path) -> bool:
        with contextlib.suppress(OSError):
            return b"ray::ServeReplica" in (folder / "cmdline").read_bytes()
        return False

    def _is_ours(self, folder: Path) -> bool:
        """Whether it descends from our process: other tests may serve at the same time."""
        pid = int(folder.name)
        with contextlib.suppress(OSError, ValueError):
            while pid > 1:
                if pid == self.process.pid:
                    return True
                stat = Path(f"/proc/{pid}/stat").read_text()
                pid = int(stat.rpartition(")")[2].split()[1])
        return False

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


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(artefact: Path, *options: str) -> Iterator[Server]:
    """A server while the block runs."""
    server = Server(artefact, *options)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def artefact(text_artefact: Any) -> Path:
    """The example's."""
    return Path(text_artefact("BertForSequenceClassification")[1])
