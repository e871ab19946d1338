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
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from compactor.companions.copying import copy_companions
from compactor.errors import CompactorError, OutputError, UsageError
from compactor.manifest import MANIFEST_NAME, dump_manifest

if TYPE_CHECKING:
    from compactor.companions.tokenizer import SourceTokenizer

if sys.platform != "win32":
    import fcntl

Layout = Literal["hf", "flat", "triton"]

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG}
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class ArtefactWriter:
    """A folder under construction; a context manager.

    Leaving the block without ``publish`` removes all that was written, whatever the reason.

    Args:
        out_dir: Where the artefact shall be. Missing parents are created. A link is followed.
        overwrite: Replace what is there, if that is an earlier artefact or an empty folder.
        layout: ``hf`` puts models into ``onnx/``, ``flat`` beside ``config.json``; ``triton`` begins as ``hf``, and
            ``triton.py`` then arranges it.
        source: The model directory, which must neither hold the artefact nor lie inside it.

    Raises:
        OutputError: Something is there that may not be replaced, or the place cannot be written to.
        UsageError: ``out_dir`` and ``source`` overlap.
    """

    directory: Path
    """The temporary folder, while the block is open."""

    def __init__(
        self, out_dir: str | Path, *, overwrite: bool, layout: Layout, source: str | Path | None = None
    ) -> None:
        self._out = _resolve(Path(out_dir))
        self._overwrite = overwrite
        self._layout = layout
        self._lock: int | None = None
        self._has_manifest = False
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

    def model_path(self, name: str) -> Path:
        """Where the model file ``name`` goes; its folder exists."""
        folder = self.directory if self._layout == "flat" else self.directory / "onnx"
        folder.mkdir(exist_ok=True)
        return folder / name

    def copy_companions(
        self,
        source: str | Path,
        config: dict[str, Any],
        *,
        model_folder: Path | None = None,
        tokenizer: SourceTokenizer | None = None,
        max_tokens: int | None = None,
        allow_pickle: bool = False,
    ) -> tuple[str, ...]:
        """Write ``config`` and copy what else consumers need beside the models; see ``companions.py``.

        Returns:
            The names of the files, relative to the artefact.

        Raises:
            ModelDirectoryError: A file of the model directory is damaged or leads out of it.
        """
        return copy_companions(
            Path(source),
            self.directory,
            config,
            model_folder=model_folder,
            tokenizer=tokenizer,
            max_tokens=max_tokens,
            allow_pickle=allow_pickle,
        )

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Write ``compactor.json``; without it nothing can be published."""
        (self.directory / MANIFEST_NAME).write_text(dump_manifest(manifest), encoding="utf-8")
        self._has_manifest = True

    def publish(self) -> Path:
        """Put the folder in its place, in one step, and return that place.

        Raises:
            OutputError: Something appeared there meanwhile, or the disk refused.
        """
        if not self._has_manifest:
            raise RuntimeError("publish() before write_manifest(): the artefact has no manifest")
        _refuse_existing(self._out, overwrite=self._overwrite)
        _flush(self.directory)
        _swap(self.directory, self._out)
        _flush_folder(self._out.parent)
        return self._out


def is_artefact(folder: str | Path) -> bool:
    """Whether ``folder`` was exported already."""
    return (Path(folder) / MANIFEST_NAME).is_file()


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
