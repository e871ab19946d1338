"""The report as Markdown, for pull requests and READMEs: the same sentences and tables as the page, without figures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from compactor.console import printable
from compactor.reporting.tables import result_tables
from compactor.reporting.tables.layers import layer_table, profile_tables
from compactor.reporting.tables.provenance import machine_rows, reproduce_rows, variant_rows
from compactor.reporting.tables.server import probe_tables
from compactor.reporting.tables.table import Cell, Table
from compactor.reporting.words import Report, about_words, absence_in_full, placement_words, summary_sentence

# What would make formatting, markup or another cell of a text that is data.
_SPECIAL = re.compile(r"[\\`*|~$#]|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def render_markdown(report: Report) -> str:
    """GitHub-flavoured Markdown of ``report``, a checked ``report.json``."""
    return "\n".join(_lines(report)) + "\n"


def escape(text: str) -> str:
    r"""``text`` so that Markdown shows it as it is, also within a table.

    >>> escape("a|b <script> __init__ model_quantized.onnx [1.02, 1.10]")
    'a\\|b &lt;script&gt; \\_\\_init\\_\\_ model_quantized.onnx [1.02, 1.10]'
    """
    text = re.sub("[&<>]", lambda found: _ENTITIES[found[0]], printable(text))
    return _SPECIAL.sub(lambda found: f"\\{found[0]}", text)


def code(text: str) -> str:
    """A fenced block that ``text`` cannot leave."""
    text = printable(text)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _lines(report: Report) -> Iterator[str]:
    verdict = report["verdict"]
    yield f"# {escape(report['title'])}"
    yield ""
    yield f"**{escape(summary_sentence(report))}**"
    yield ""
    marks = [f"**{'VALID' if verdict['valid'] else 'INVALID'}**"]
    marks += ["**interrupted**"] * report["interrupted"] + ["**quick run**"] * report["settings"]["quick"]
    yield " · ".join([*marks, escape(about_words(report))])
    yield ""
    if verdict["reasons"]:
        yield from (f"- {escape(reason)}" for reason in verdict["reasons"])
        yield ""
    missing = [row for row in report["variants"] if row["status"] != "measured"]
    if missing:
        yield from (f"- {escape(row['name'])}: {escape(absence_in_full(row))}" for row in missing)
        yield ""
    for table in [*result_tables(report), layer_table(report), *probe_tables(report), *profile_tables(report)]:
        if table:
            yield from _section(table)
    for line in placement_words(report):
        yield escape(line)
        yield ""
    yield "## How to reproduce"
    yield ""
    yield code(report["command"])
    yield ""
    yield from _facts(reproduce_rows(report))
    yield "Every sample of every process is in `report.json` beside this file; `compactor report DIR` writes it again."
    yield ""
    yield "## Machine"
    yield ""
    yield from _facts(machine_rows(report))
    yield "## What exactly each variant was"
    yield ""
    yield from _facts(variant_rows(report))
    if report["notes"]:
        yield "## Notes"
        yield ""
        yield from (f"- {escape(note)}" for note in report["notes"])


def _section(table: Table) -> Iterator[str]:
    yield f"## {escape(table.title)}"
    yield ""
    for heading, rows in table.groups:
        if heading is not None:
            yield f"### {escape(heading)}"
            yield ""
        yield _row([escape(column.removeprefix(">")) for column in table.columns])
        yield _row(["---:" if column.startswith(">") else "---" for column in table.columns])
        yield from (_row(_texts(row, len(table.columns))) for row in rows)
        yield ""
    if table.caption:
        yield escape(table.caption)
        yield ""


def _texts(row: Sequence[Cell], columns: int) -> list[str]:
    """A text for every column; where a cell stands for the missing rest of a row, its first words do."""
    texts = [escape(f"{cell.text} ({cell.note})" if cell.note else cell.text) for cell in row]
    short = row[-1].text.partition(":")[0] if row[-1].absent else ""
    return texts + [escape(short)] * (columns - len(texts))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _facts(rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    yield from (f"- {escape(name)}: {escape(text)}" for name, text in rows)
    yield ""
