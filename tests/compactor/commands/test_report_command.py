"""``compactor report``: the pages are made again from ``report.json``, which stays as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compactor.benching.report import REPORT_NAME, dump_report
from tests.compactor.fakes import replace_module, run
from tests.compactor.reports import make_report


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / REPORT_NAME).write_text(dump_report(make_report(title="A title that someone wrote")), encoding="utf-8")
    return tmp_path


def test_makes_the_pages_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / REPORT_NAME).read_bytes()
    (folder / "report.html").write_text("an old page")
    assert run("report", folder) == 0
    out = capsys.readouterr().out
    assert out.splitlines() == [f"written: {folder / 'report.md'}", f"written: {folder / 'report.html'}"]
    assert (folder / REPORT_NAME).read_bytes() == before
    for name in ("report.md", "report.html"):
        assert "A title that someone wrote" in (folder / name).read_text(encoding="utf-8")
    assert "an old page" not in (folder / "report.html").read_text(encoding="utf-8")


def test_json_lists_the_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    replace_module(monkeypatch, "compactor.reporting.page", write_reports=lambda *arguments: seen.append(arguments))
    assert run("report", folder, "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"files": [str(folder / "report.md"), str(folder / "report.html")]}
    assert err.splitlines() == ["reading the report", "drawing"]
    ((report, place),) = seen
    assert (report["title"], place) == ("A title that someone wrote", folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda tmp: tmp / "nope", "no such report", id="no-folder"),
        pytest.param(lambda tmp: tmp, "no 'report.json' in this folder", id="empty"),
        pytest.param(lambda tmp: _written(tmp, '{"schema": 1}'), "this is not a report", id="other-json"),
        pytest.param(lambda tmp: _written(tmp, "<html>"), "the report is not JSON", id="no-json"),
        pytest.param(lambda tmp: _written(tmp, "{}") / REPORT_NAME, "this is a file", id="file"),
    ],
)
def test_what_is_no_report_is_refused(
    make: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("report", make(tmp_path)) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert f"error: {message}" in err
    assert not (tmp_path / "report.html").exists()


def _written(folder: Path, text: str) -> Path:
    (folder / REPORT_NAME).write_text(text)
    return folder


def test_a_folder_that_cannot_be_written_to(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(report: Any, place: Path) -> None:
        raise PermissionError(13, "Permission denied", str(place / "report.md"))

    replace_module(monkeypatch, "compactor.reporting.page", write_reports=refuse)
    assert run("report", folder) == 5
    assert len(capsys.readouterr().err.splitlines()) <= 5


def test_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None)
    assert run("report", folder) == 2
    assert "pip install 'compactor[bench]'" in capsys.readouterr().err
