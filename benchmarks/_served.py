"""``compactor serve`` as a process of its own: start it, find its replicas, end it. For measurements and tests."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Self

_LAST_LINE = "Prometheus"
_STOP_S = 90
_LISTENING = "0A"  # a state of /proc/net/tcp


class Server:
    """One server; it answers once this is made. A context manager, which ends it.

    Args:
        artefact: What it serves.
        options: Of the command line.

    Raises:
        RuntimeError: It did not start; with what it said.
    """

    def __init__(self, artefact: Path, *options: str) -> None:
        self.port, self.metrics_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "compactor", "serve", str(artefact)),
                *("--port", str(self.port), "--metrics-port", str(self.metrics_port), *options),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self.said: list[str] = []
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said.append(line)
            if line.startswith(_LAST_LINE):
                return
        self.wait()
        raise RuntimeError("the server did not start:\n" + "".join(self.said))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.ask_to_end()
        self.wait()

    def replicas(self) -> list[int]:
        """The processes that hold the model and listen for requests, oldest first."""
        listening = _listening_inodes()
        return sorted(
            int(folder.name)
            for folder in Path("/proc").iterdir()
            if folder.name.isdigit() and self._is_replica(folder) and _sockets(folder) & listening
        )

    def ask_to_end(self) -> None:
        """SIGTERM."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Until it has ended; its exit code."""
        try:
            return self._process.wait(timeout=_STOP_S)
        finally:
            self._process.kill()
            assert self._process.stdout is not None
            self._process.stdout.close()

    def _is_replica(self, folder: Path) -> bool:
        """Whether it is one, and of this server: it descends from our process."""
        try:
            if b"ray::ServeReplica" not in (folder / "cmdline").read_bytes():
                return False
            pid = int(folder.name)
            while pid > 1 and pid != self._process.pid:
                pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):  # it ended meanwhile
            return False
        return pid == self._process.pid


def memory_bytes(pid: int) -> int:
    """What a process holds in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listening_inodes() -> set[str]:
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return {fields[9] for fields in map(str.split, lines) if fields[3] == _LISTENING}


def _sockets(folder: Path) -> set[str]:
    names = []
    with contextlib.suppress(OSError):  # the process ended meanwhile
        for descriptor in (folder / "fd").iterdir():
            with contextlib.suppress(OSError):
                names.append(os.readlink(descriptor))
    return {name[len("socket:[") : -1] for name in names if name.startswith("socket:[")}
