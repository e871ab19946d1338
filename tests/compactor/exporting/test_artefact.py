"""An artefact appears complete or not at all, and brings the files that consumers need."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from compactor.errors import CompactorError, OutputError, UsageError, as_output_error
from compactor.exporting import artefact
from compactor.exporting.artefact import ArtefactWriter, refuse_overlap
from compactor.manifest import MANIFEST_NAME, load_manifest, write_manifest
from tests.compactor.manifests import example_manifest


def _publish(out: Path, *, overwrite: bool = False, mark: str = "model") -> Path:
    with ArtefactWriter(out, overwrite=overwrite) as writer:
        (writer.directory / "model.onnx").write_text(mark)
        write_manifest(writer.directory, example_manifest())
        return writer.publish()


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_publishes_and_leaves_nothing_else(tmp_path: Path) -> None:
    out = _publish(tmp_path / "deep" / "out")
    assert out == tmp_path / "deep" / "out"
    assert load_manifest(out) == example_manifest()
    assert (out / "model.onnx").read_text() == "model"
    assert _names(out.parent) == ["out"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(out.stat().st_mode) == 0o777 & ~mask


def test_nothing_is_visible_before_publish(tmp_path: Path) -> None:
    with ArtefactWriter(tmp_path / "out", overwrite=False) as writer:
        assert writer.directory.parent == tmp_path
        assert writer.directory.name.startswith(".out.compactor-")
        assert not (tmp_path / "out").exists()
    assert _names(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("overwrite", [False, True])
def test_any_failure_leaves_the_old_artefact_or_none(tmp_path: Path, error: BaseException, overwrite: bool) -> None:
    if overwrite:
        _publish(tmp_path / "out", mark="old")
    with pytest.raises(type(error)), ArtefactWriter(tmp_path / "out", overwrite=overwrite) as writer:
        (writer.directory / "model.onnx").write_text("new")
        raise error
    assert _names(tmp_path) == (["out"] if overwrite else [])
    if overwrite:
        assert (tmp_path / "out" / "model.onnx").read_text() == "old"


@pytest.mark.parametrize("atomic", [True, False])
def test_overwrite_replaces_all_of_the_old_artefact(
    tmp_path: Path, atomic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not atomic:
        monkeypatch.setattr(artefact, "_exchange", lambda first, second: False)
    out = _publish(tmp_path / "out", mark="old")
    (out / "stale.txt").touch()
    _publish(out, overwrite=True, mark="new")
    assert (out / "model.onnx").read_text() == "new"
    assert _names(out) == [MANIFEST_NAME, "model.onnx"]
    assert _names(tmp_path) == ["out"]


def test_a_failed_rename_puts_the_old_artefact_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = _publish(tmp_path / "out", mark="old")
    monkeypatch.setattr(artefact, "_exchange", lambda first, second: False)
    renames: list[str] = []
    rename = os.rename

    def fail_second(source: Path, target: Path) -> None:
        renames.append(target.name)
        if len(renames) == 2:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_second)
    with pytest.raises(KeyboardInterrupt):
        _publish(out, overwrite=True, mark="new")
    assert (out / "model.onnx").read_text() == "old"
    assert _names(tmp_path) == ["out"]


def test_refuses_what_exists(tmp_path: Path) -> None:
    out = _publish(tmp_path / "out")
    with pytest.raises(OutputError, match="already exists"):
        ArtefactWriter(out, overwrite=False)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="not a folder"):
        ArtefactWriter(tmp_path / "file", overwrite=True)


def test_overwrite_never_replaces_a_folder_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with pytest.raises(OutputError, match=r"holds no 'compactor\.json'"):
        ArtefactWriter(tmp_path / "thesis", overwrite=True)
    (tmp_path / "empty").mkdir()
    assert _publish(tmp_path / "empty", overwrite=True) == tmp_path / "empty"


def test_refuses_a_mount_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path / "volume")
    with pytest.raises(OutputError, match="mount point"):
        ArtefactWriter(tmp_path / "volume", overwrite=True)


def test_refuses_what_appeared_meanwhile(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        pytest.raises(OutputError, match="already exists"),
        ArtefactWriter(out, overwrite=False) as writer,
    ):
        write_manifest(writer.directory, example_manifest())
        _publish(out, mark="first")
        writer.publish()
    assert (out / "model.onnx").read_text() == "first"
    assert _names(tmp_path) == ["out"]


def test_follows_a_link_and_keeps_it(tmp_path: Path) -> None:
    real = _publish(tmp_path / "real", mark="old")
    (tmp_path / "latest").symlink_to(real)
    assert _publish(tmp_path / "latest", overwrite=True, mark="new") == real
    assert (tmp_path / "latest").is_symlink()
    assert (tmp_path / "latest" / "model.onnx").read_text() == "new"


def test_publish_needs_a_manifest(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="before write_manifest"),
        ArtefactWriter(tmp_path / "out", overwrite=False) as writer,
    ):
        writer.publish()


KILLED = """
import os, pathlib, signal, sys
from compactor.exporting.artefact import ArtefactWriter
with ArtefactWriter(sys.argv[1], overwrite=False) as writer:
    (writer.directory / "model.onnx").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_export_publishes_nothing_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, str(out)], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = _names(tmp_path)
    assert left.startswith(".out.compactor-")
    bystanders = [".out.compactor-notes", ".other.compactor-01234567"]
    for name in bystanders:
        (tmp_path / name).mkdir()
    _publish(out)
    assert _names(tmp_path) == sorted(["out", *bystanders])


def test_leaves_an_export_that_is_still_running_alone(tmp_path: Path) -> None:
    with ArtefactWriter(tmp_path / "out", overwrite=False) as first:
        _publish(tmp_path / "out", mark="second")
        assert first.directory.is_dir()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        pytest.param(OSError(errno.ENOSPC, "No space left on device"), "disk is full", id="full"),
        pytest.param(OSError(errno.EDQUOT, "Disk quota exceeded"), "disk is full", id="quota"),
        pytest.param(OSError(errno.EIO, "Input/output error"), "disk failed", id="broken"),
        pytest.param(PermissionError(errno.EACCES, "Permission denied", "/x"), "Permission denied", id="refused"),
        pytest.param(RuntimeError("I/O error: No space left on device (os error 28)"), "disk is full", id="wrapped"),
    ],
)
def test_a_failing_disk_is_an_output_error(tmp_path: Path, error: Exception, message: str) -> None:
    with (
        pytest.raises(OutputError, match=message) as caught,
        ArtefactWriter(tmp_path / "out", overwrite=False),
    ):
        raise error
    assert caught.value.exit_code == 5
    assert _names(tmp_path) == []


def test_a_full_disk_is_found_behind_another_error() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as cause:
            raise ValueError("could not serialize") from cause
    except ValueError as error:
        assert as_output_error(error, "out") is not None
    assert as_output_error(ValueError("a bug"), "out") is None
    assert as_output_error(CompactorError("known"), "out") is None


@pytest.mark.parametrize(
    ("out", "place"), [("model", "is"), ("model/onnx", "lies inside"), (".", "contains"), ("link/x", "lies inside")]
)
def test_refuses_an_output_that_touches_the_model(tmp_path: Path, out: str, place: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "model")
    with pytest.raises(UsageError, match=place):
        refuse_overlap(tmp_path / "model", tmp_path / out)
    with pytest.raises(UsageError, match=place):
        ArtefactWriter(tmp_path / out, overwrite=True, source=tmp_path / "model")


def test_accepts_a_sibling_whose_name_begins_alike(tmp_path: Path) -> None:
    refuse_overlap(tmp_path / "model", tmp_path / "model-compact")
