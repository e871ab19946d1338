"""Write an artefact folder so that it appears complete or not at all.

Everything is written into a hidden sibling of the output folder, flushed to the disk, and renamed into place as
the last step. Interrupted, killed or out of disk, there is the old artefact or none, never half of one.

A killed process can leave its hidden sibling behind. It is named ``.OUT.compactor-XXXXXXXX``, and its owner holds a
lock on it for as long as it lives, so the next export to the same place can tell it from one that is being
written and removes it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from compactor.errors import OutputError, UsageError, as_output_error
from compactor.manifest import MANIFEST_NAME, is_artefact

if sys.platform != "win32":
    import fcntl

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class ArtefactWriter:
    """A folder under construction; a context manager.

    Leaving the block without ``publish`` removes all that was written, whatever the reason.

    Args:
        out_dir: Where the artefact shall be. Missing parents are created. A link is followed.
        overwrite: Replace what is there, if that is an earlier artefact or an empty folder.
        source: The model directory, which must neither hold the artefact nor lie inside it.

    Raises:
        OutputError: Something is there that may not be replaced, or the place cannot be written to.
        UsageError: ``out_dir`` and ``source`` overlap.
    """

    directory: Path
    """The temporary folder, while the block is open."""

    def __init__(self, out_dir: str | Path, *, overwrite: bool, source: str | Path | None = None) -> None:
        self._out = _resolve(Path(out_dir))
        self._overwrite = overwrite
        self._lock: int | None = None
        if source is not None:
            refuse_overlap(source, self._out)
        _refuse_existing(self._out, overwrite=overwrite)

    def __enter__(self) -> Self:
        try:
            self._out.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale_siblings(self._out)
            self.directory, self._lock = _make_temporary(self._out)
        except OSError as error:
            raise as_output_error(error, self._out) or OutputError(
                f"the output folder cannot be made: {error.strerror}",
                where=str(error.filename or self._out),
                todo="check the path: every part of it but the last must be a folder",
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if isinstance(error, Exception) and (output_error := as_output_error(error, self._out)):
            raise output_error from error

    def publish(self) -> Path:
        """Put the folder in its place, in one step, and return that place.

        Raises:
            OutputError: Something appeared there meanwhile, or the disk refused.
        """
        if not is_artefact(self.directory):
            raise RuntimeError("publish() before write_manifest(): the artefact has no manifest")
        _refuse_existing(self._out, overwrite=self._overwrite)
        _flush(self.directory)
        _swap(self.directory, self._out)
        _flush_folder(self._out.parent)
        return self._out


def refuse_overlap(model_dir: str | Path, out_dir: str | Path) -> None:
    """Make sure that writing ``out_dir`` cannot touch ``model_dir``.

    Raises:
        UsageError: One is the other, or lies inside it.
    """
    source, out = _resolve(Path(model_dir)), _resolve(Path(out_dir))
    if out == source or source in out.parents:
        place = "is" if out == source else "lies inside"
    elif out in source.parents:
        place = "contains"
    else:
        return
    raise UsageError(
        f"the output folder {place} the model directory", where=str(out), todo="choose an OUT_DIR outside of MODEL_DIR"
    )


def _resolve(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError before Python 3.13
        raise UsageError(f"cannot follow this path: {error}", where=str(path)) from error


def _refuse_existing(out: Path, *, overwrite: bool) -> None:
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise OutputError("the output already exists", where=str(out), todo="pass --overwrite to replace it")
    if not out.is_dir():
        raise OutputError("the output exists and is not a folder", where=str(out), todo="choose another OUT_DIR")
    if os.path.ismount(out):
        raise OutputError(
            "the output is a mount point, which cannot be replaced in one step",
            where=str(out),
            todo="choose a folder inside of it",
        )
    try:
        replaceable = (out / MANIFEST_NAME).is_file() or not any(out.iterdir())
    except OSError as error:
        raise as_output_error(error, out) or error from error
    if not replaceable:
        raise OutputError(
            f"--overwrite replaces only earlier exports, and this folder holds no '{MANIFEST_NAME}'",
            where=str(out),
            todo="choose another OUT_DIR, or empty this one",
        )


def _prefix(out: Path) -> str:
    return f".{out.name}.compactor-"


def _make_temporary(out: Path) -> tuple[Path, int | None]:
    """A new, locked, empty folder beside ``out``, with the permissions that any new folder gets."""
    while True:
        directory = out.parent / f"{_prefix(out)}{secrets.token_hex(4)}"
        try:
            directory.mkdir()
        except FileExistsError:
            continue
        lock = _try_lock(directory)
        if directory.is_dir():  # else another export took it for a stale one, in the instant before it was locked
            return directory, lock
        if lock is not None:
            os.close(lock)


def _remove_stale_siblings(out: Path) -> None:
    """Remove what killed exports to ``out`` left behind: folders of our naming that no process holds a lock on."""
    prefix = _prefix(out)
    for sibling in out.parent.iterdir():
        suffix = sibling.name.removeprefix(prefix)
        is_ours = sibling.name.startswith(prefix) and len(suffix) == 8 and not set(suffix) - set("0123456789abcdef")
        if not is_ours or sibling.is_symlink() or not sibling.is_dir():
            continue
        lock = _try_lock(sibling)
        if lock is not None:
            shutil.rmtree(sibling, ignore_errors=True)
            os.close(lock)


def _try_lock(directory: Path) -> int | None:
    """An open, locked descriptor of ``directory``; None if it is locked already or the system has no such locks."""
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _swap(new: Path, out: Path) -> None:
    """Make ``new`` be ``out``. What was there is left under the name of ``new``, for the caller to remove."""
    if not out.exists():
        os.rename(new, out)
        return
    if _exchange(new, out):
        return
    aside = new.with_name(f"{_prefix(out)}{secrets.token_hex(4)}")
    os.rename(out, aside)
    try:
        os.rename(new, out)
    except BaseException:
        os.rename(aside, out)
        raise
    os.rename(aside, new)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one atomic step; False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    done: int = renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_RENAME_EXCHANGE))
    return done == 0


def _flush(directory: Path) -> None:
    """Make the disk hold every file of ``directory`` before its name is published."""
    for folder, _, names in os.walk(directory):
        for name in names:
            with open(os.path.join(folder, name), "rb+") as file:
                os.fsync(file.fileno())
        _flush_folder(Path(folder))


def _flush_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # some file systems cannot flush a folder
            raise
    finally:
        os.close(descriptor)
