"""``compactor report``: the pages of a report, made again from its ``report.json``."""

from __future__ import annotations

from pathlib import Path

import click

from compactor import commands
from compactor.console import Console
from compactor.errors import ModelDirectoryError


@click.command(short_help="Write a report's pages again.")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@commands.json_option
@commands.debug_option
def command(folder: Path, as_json: bool) -> None:
    """Write report.md and report.html in DIR again, from the report.json that 'compactor bench -o DIR' left there.

    The numbers stay what they are; the pages become those of this version of compactor.
    """
    if folder.is_file():
        raise ModelDirectoryError("this is a file", where=str(folder), todo="give the folder that holds report.json")
    commands.require_packages("matplotlib", "jinja2", "scipy", needed_by="a report's page")
    console = Console()
    with console.working() as progress:
        from compactor.benching.report import load_report

        progress("reading the report")
        report = load_report(folder)
        progress("drawing")
        from compactor.reporting.page import write_reports

        write_reports(report, folder)
    written = [str(folder / name) for name in ("report.md", "report.html")]
    if as_json:
        console.document({"files": written})
    else:
        for name in written:
            console.line(f"written: {name}")
