"""The errors a user can cause or must act on; each knows its exit code.

A message has at most three lines: what went wrong, where, and what to do next. Any other exception is
our bug (exit code 1) and keeps its traceback.
"""

from __future__ import annotations

import enum
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_MOST_SAID = 300  # characters of a library's message: what is to be done comes behind it
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG}


class ExitCode(enum.IntEnum):
    """Exit codes of the ``compactor`` command; documented in ``docs/cli.md``."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    MODEL = 3
    VERIFICATION = 4
    IO = 5
    NOISY = 6
    TRAINING = 7
    INTERRUPTED = 130


class CompactorError(Exception):
    """A failure with a cause the user can see and mend.

    Args:
        what: What went wrong, one line.
        where: The file, tensor or layer it concerns, one line.
        todo: What to do next, one line.
    """

    exit_code = ExitCode.INTERNAL

    def __init__(self, what: str, *, where: str | None = None, todo: str | None = None) -> None:
        self.what, self.where, self.todo = what, where, todo
        super().__init__("\n".join(line for line in (what, where, todo) if line))


class UsageError(CompactorError):
    """The arguments contradict each other or the model (exit code 2)."""

    exit_code = ExitCode.USAGE


class ModelDirectoryError(CompactorError):
    """The model directory is damaged, unsafe or not supported (exit code 3)."""

    exit_code = ExitCode.MODEL


class VerificationError(CompactorError):
    """The compact model's numbers differ from the masked checkpoint's (exit code 4)."""

    exit_code = ExitCode.VERIFICATION


class OutputError(CompactorError):
    """The output could not be written: it exists, or the disk is full (exit code 5)."""

    exit_code = ExitCode.IO


class MeasurementError(CompactorError):
    """What was measured cannot be trusted, or has become slower (exit code 6)."""

    exit_code = ExitCode.NOISY


class TrainingError(CompactorError):
    """Training went wrong: the loss is no number (exit code 7)."""

    exit_code = ExitCode.TRAINING


def describe_failure(error: BaseException, *packages: str) -> str:
    """A failure inside of a library in one line: its type, the first line of what it says, and the versions.

    Args:
        error: What was raised.
        packages: The libraries in which it was, by the names they are imported by.
    """
    said = next(iter(str(error).strip().splitlines()), "")
    versions = ", ".join(f"{name} {sys.modules[name].__version__}" for name in packages if name in sys.modules)
    return f"{type(error).__name__}{': ' if said else ''}{said[:_MOST_SAID]} ({versions})"


def as_output_error(error: Exception, where: str | Path) -> OutputError | None:
    """``error`` as the OutputError it amounts to, or None where it is something else.

    Libraries wrap a full disk in exceptions of their own, so its causes are searched too, and the system's words
    are looked for in messages of other types than OSError.
    """
    if isinstance(error, CompactorError):
        return None
    for cause in _causes(error):
        code = cause.errno if isinstance(cause, OSError) else None
        said = str(cause) if not isinstance(cause, OSError) else ""
        if code in _DISK_FULL or os.strerror(errno.ENOSPC) in said:
            return OutputError("the disk is full", where=str(where), todo="free some space; nothing was published")
        if code == errno.EIO:
            return OutputError("the disk failed to read or write", where=str(where), todo="check the disk; see its log")
    if isinstance(error, OSError) and error.errno in _REFUSED:
        place = str(error.filename or where)
        return OutputError(
            f"the system refused access: {error.strerror}", where=place, todo="check the path and its permissions"
        )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
