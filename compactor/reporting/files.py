"""Writes what derives from ``report.json`` beside it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from compactor.errors import OutputError
from compactor.reporting.markdown import render_markdown
from compactor.reporting.page import render_html
from compactor.reporting.words import Report

MARKDOWN_NAME = "report.md"
HTML_NAME = "report.html"


def write_reports(report: Report, folder: str | Path) -> tuple[Path, Path]:
    """Write ``report.md`` and ``report.html`` into ``folder``, over those that are there. Returns their paths.

    Args:
        report: A checked ``report.json``.
        folder: Where; it is made where it does not exist.

    Raises:
        OutputError: It cannot be written. No file is left half.
    """
    folder = Path(folder)
    texts = {MARKDOWN_NAME: render_markdown(report), HTML_NAME: render_html(report)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            _replace(folder / name, text)
    except OSError as error:
        raise OutputError(
            f"cannot write the report: {error.strerror or error}",
            where=str(folder),
            todo="choose another folder with -o",
        ) from error
    return folder / MARKDOWN_NAME, folder / HTML_NAME


def _replace(file: Path, text: str) -> None:
    """Write beside ``file``, then take its place."""
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
        os.chmod(name, 0o644)  # mkstemp makes it readable for its owner alone
        os.replace(name, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
