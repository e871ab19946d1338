"""Folders and fakes for the tests of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from compactor.manifest import dump_manifest
from tests.compactor.fakes import Export, exported, replace_module, run
from tests.compactor.manifests import example_manifest


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def fake_export(monkeypatch: pytest.MonkeyPatch) -> Callable[[Export], None]:
    """Replaces the export by any function."""

    def replace(function: Export) -> None:
        replace_module(monkeypatch, "compactor.exporting.export", export=function)

    replace(exported)
    return replace


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    folder = tmp_path / "artefact"
    (folder / "onnx").mkdir(parents=True)
    manifest = example_manifest()
    for stage in manifest["stages"][1:]:
        stage["bytes"] = 3
        (folder / stage["file"]).write_bytes(b"abc")
    manifest["source"]["files"] = [
        {
            "name": "config.json",
            "bytes": 2,
            "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        }
    ]
    (folder / "compactor.json").write_text(dump_manifest(manifest))
    return folder


@pytest.fixture
def ends(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run an export that fails; returns what it said, after checking that it left nothing."""

    def check(code: int, model: Path, *options: str) -> str:
        place = tmp_path / "place"
        place.mkdir()
        capfd.readouterr()
        assert run("export", model, place / "out", "-q", *options) == code
        assert list(place.iterdir()) == []
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert len(err.splitlines()) <= 3
        return err

    return check
