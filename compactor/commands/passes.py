"""``compactor passes``: the passes that exist, a line each."""

from __future__ import annotations

import inspect

import click

from compactor.commands import debug_option, json_option
from compactor.console import Console


@click.command(short_help="List the passes, each in a line.")
@json_option
@debug_option
def command(as_json: bool) -> None:
    """List the passes in the order in which an export runs them.

    docs/passes.md describes each, with a graph before and after.
    """
    console = Console()
    with console.working():
        from compactor.passes.pipeline import PASSES

        rows = [(each.name, (inspect.getdoc(each) or "").partition("\n")[0].replace("``", "")) for each in PASSES]
    if as_json:
        console.document([{"name": name, "summary": summary} for name, summary in rows])
    else:
        console.table(("pass", "what it does"), rows)
