"""The folder of finished chunks, beside the output: what an interrupted run goes on from.

    .OUT.parts/run.json        what the run is: of which file, by which artefact, with which settings
    .OUT.parts/000012.arrow    the answers of chunk 12, written under another name and renamed: all of it or nothing
    .OUT.parts/lock            held by whoever writes

A chunk that is answered twice, because a worker died between its answer and its end, has the same name both times, so
its rows are neither lost nor doubled.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from compactor.errors import OutputError, UsageError
from compactor.predicting.inputs import Span

if sys.platform != "win32":
    import fcntl

REFUSED = b"compactor.refused"  # in the metadata of a part: how many of its rows have an error

_STATE = "run.json"
_LOCK = "lock"
_SUFFIX = ".arrow"
_LARGEST_STATE = 2**20


class Parts:
    """The finished chunks of one output; a context manager, which holds the lock.

    Leaving the block keeps the folder, for the next run; ``remove`` does away with it.

    Args:
        out: The output.
        identity: What must be the same for a run to go on, as JSON has it.
        overwrite: Begin anew, and replace what is there at the end.

    Raises:
        OutputError: The output exists, or another process writes it.
        UsageError: Another run was interrupted there.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any], *, overwrite: bool) -> None:
        self._out, self._identity = out, json.loads(json.dumps(identity))
        self.folder = parts_folder(out)
        self._overwrite = overwrite
        self._lock: int | None = None

    def __enter__(self) -> Self:
        check_output(self._out, overwrite=self._overwrite)
        before = None if self._overwrite or not self._holds_chunks() else _read_state(self.folder)
        if before is not None and before.get("identity") != self._identity:
            raise UsageError(
                f"another run was interrupted here: {_difference(before.get('identity'), self._identity)}",
                where=str(self.folder),
                todo="give the same again to go on, or begin anew with --overwrite",
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            if before is None:
                self._empty()
                state = {"identity": self._identity, "overwrite": self._overwrite}
                self._write(_STATE, json.dumps(state, indent=2).encode())
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and not self._holds_chunks():
            self.remove()  # nothing to go on from
        self._release()

    def path(self, number: int) -> Path:
        """Where a chunk is, or will be."""
        return self.folder / f"{number:06}{_SUFFIX}"

    def finished(self, spans: Sequence[Span]) -> dict[int, int]:
        """The chunks that are there, each with how many of its rows were refused."""
        found = {}
        for span in spans:
            refused = _refused_rows(self.path(span.number), span.rows)
            if refused is not None:
                found[span.number] = refused
        return found

    def write(self, number: int, content: bytes) -> None:
        """Keep a chunk; also a second time."""
        self._write(self.path(number).name, content)

    def remove(self) -> None:
        """Do away with the folder: all of it is in the output."""
        (self.folder / _STATE).unlink(missing_ok=True)  # first, so that what is left over is no run to go on from
        shutil.rmtree(self.folder, ignore_errors=True)

    def _holds_chunks(self) -> bool:
        return any(self.folder.glob(f"*{_SUFFIX}"))

    def _empty(self) -> None:
        for path in self.folder.iterdir():
            if path.name != _LOCK and not path.is_dir():
                path.unlink()

    def _write(self, name: str, content: bytes) -> None:
        partial = self.folder / f"{name}.partial"
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.folder / name)

    def _take_lock(self) -> None:
        if sys.platform == "win32":
            return
        lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise OutputError(
                "another process is writing this output", where=str(self._out), todo="wait for it, or choose another"
            ) from None
        except OSError:  # a file system without locks
            os.close(lock)
            return
        self._lock = lock

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def parts_folder(out: Path) -> Path:
    """Where the finished chunks of an output are kept."""
    return out.parent / f".{out.name}.parts"


def check_output(out: Path, *, overwrite: bool) -> None:
    """Make sure that ``out`` may be written: it is not there, or this run or the one before replaces it.

    Raises:
        OutputError: Something is there.
    """
    if out.is_dir():
        raise OutputError("the output is a folder", where=str(out), todo="give the name of a file")
    if os.path.lexists(out) and not overwrite and not (_read_state(parts_folder(out)) or {}).get("overwrite"):
        raise OutputError("the output already exists", where=str(out), todo="pass --overwrite to replace it")


def _read_state(folder: Path) -> dict[str, Any] | None:
    """What ``run.json`` says; None where it says nothing."""
    path = folder / _STATE
    try:
        if path.stat().st_size > _LARGEST_STATE:
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _refused_rows(path: Path, rows: int) -> int | None:
    """The refused rows of a part; None where it is not there, or not all of it."""
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as part:  # mapped: no row is read for this
            found = sum(part.get_batch(number).num_rows for number in range(part.num_record_batches))
            stated = (part.schema.metadata or {}).get(REFUSED)
    except (OSError, pa.ArrowException):
        return None
    return int(stated) if stated is not None and stated.isdigit() and found == rows else None


def _difference(before: Any, now: Mapping[str, Any]) -> str:
    """What differs, in words: up to three settings, with both of their values."""
    was, now_is = dict(_flat(before)), dict(_flat(now))
    names = [name for name in {**was, **now_is} if was.get(name) != now_is.get(name)]
    return "; ".join(f"its {name} was {_said(was.get(name))}, now {_said(now_is.get(name))}" for name in names[:3])


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name} {key}".strip())
    else:
        yield name, value


def _said(value: Any) -> str:
    return "none" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
