"""The report as one HTML page that needs nothing else: no network, no script, no font; and the files on disk.

Its content policy forbids everything but its own styles, so nothing that a report's strings hold can run, even if it
were not escaped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.resources
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from compactor.console import printable
from compactor.errors import OutputError
from compactor.reporting.figures import make_figures, marks, series_numbers
from compactor.reporting.markdown import render_markdown
from compactor.reporting.numbers import (
    bytes_text,
    digits,
    duration,
    interval,
    points,
    rate,
    score,
    times,
    with_interval,
)
from compactor.reporting.tables import (
    layer_table,
    machine_rows,
    probe_tables,
    profile_tables,
    reproduce_rows,
    result_tables,
    variant_rows,
)
from compactor.reporting.words import (
    NO_DIFFERENCE,
    Report,
    Row,
    about_words,
    absence_in_full,
    absences,
    baseline_row,
    best_variant,
    bound_words,
    describe_workload,
    is_server,
    metric_name,
    metric_of,
    placement_words,
    primary_metric,
    summary_sentence,
)

_UNIT = re.compile(r"(?<=\d) (?=(?:%|ms|s|[kMGT]?B|[kMG])\b|%)|(?<=\d) (?=±)|(?<=±) (?=\d)")
MARKDOWN_NAME = "report.md"
HTML_NAME = "report.html"
_TEMPLATE = "page.html.jinja"

# Light and dark. Text on `paper` and `back` has a contrast of at least 4.5; colours of series, of which text is set in
# `paper`, too. They differ in lightness or along blue and yellow for who cannot tell red from green.
PALETTE = {
    "back": ("#f6f8fa", "#0d1117"),
    "paper": ("#ffffff", "#151b23"),
    "ink": ("#1f2328", "#e6edf3"),
    "muted": ("#57606a", "#9da7b3"),
    "line": ("#d0d7de", "#30363d"),
    "grid": ("#d8dee4", "#373e47"),
    "track": ("#eef1f4", "#212830"),
    "good": ("#1a7f37", "#4ac26b"),
    "good-back": ("#dafbe1", "#12261e"),
    "bad": ("#c21c2c", "#ff7b72"),
    "bad-back": ("#ffebe9", "#2a1618"),
    "warn": ("#805500", "#e3b341"),
    "warn-back": ("#fff3c4", "#272115"),
    "s0": ("#68717b", "#9aa4b0"),
    "s1": ("#0b62c4", "#58a6ff"),
    "s2": ("#b84d00", "#f0913f"),
    "s3": ("#00766c", "#3fc7b0"),
    "s4": ("#9c3587", "#e58fd0"),
    "s5": ("#7d6000", "#dcbc3c"),
    "s6": ("#5a4bc8", "#b0a7ff"),
    "s7": ("#2a6f95", "#7cc7ec"),
}


@dataclasses.dataclass(frozen=True)
class Tile:
    """One large figure at the top.

    Attributes:
        name: What it is.
        value: The number, or the words that stand for it.
        note: Against what, under which conditions.
        tone: ``good``, ``bad`` or empty.
        number: Whether ``value`` is one.
    """

    name: str
    value: str
    note: str
    tone: str = ""
    number: bool = True


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


def render_html(report: Report) -> str:
    """The page of ``report``, a checked ``report.json``. The same report always gives the same page."""
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=False,
        finalize=_text,
    )
    source = importlib.resources.files("compactor.reporting").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    layers = layer_table(report)
    names, series = marks(report), series_numbers(report)
    rendered = environment.from_string(source).render(
        report=report,
        command=markupsafe.escape(printable(report["command"])),  # to be copied, so with spaces that break
        palette=PALETTE,
        verdict="VALID" if report["verdict"]["valid"] else "INVALID",
        about=about_words(report),
        summary=summary_sentence(report),
        asides=absences(report) if best_variant(report) is not None else [],
        tiles=make_tiles(report),
        tables=result_tables(report),
        variants=[{"mark": names[row["id"]], "series": series[row["id"]]} for row in report["variants"]],
        figures=make_figures(report),
        reproduce=reproduce_rows(report),
        machine=machine_rows(report),
        exactly=variant_rows(report),
        layers=layers if layers else None,
        profiles=profile_tables(report),
        placements=placement_words(report),
        probes=probe_tables(report) if is_server(report) else [],
        failures=[(row["name"], absence_in_full(row)) for row in report["variants"] if row["status"] != "measured"],
        footer=_footer(report),
    )
    return rendered + "\n"


def _text(value: object) -> object:
    """What a template puts out: control characters shown and not sent, numbers kept on the line of their units."""
    if type(value) is not str:  # markup is a str of another type
        return value
    return _UNIT.sub("\N{NO-BREAK SPACE}", printable(value))


def make_tiles(report: Report) -> list[Tile]:
    """What a decision hangs on, for the best variant: speed, time, loss, size; none where nothing was measured."""
    hero = best_variant(report)
    if hero is None:
        return []
    base = baseline_row(report)
    base = None if base is hero else base
    tiles = _server_tiles(hero, base) if is_server(report) else _timing_tiles(report, hero, base)
    return [*tiles, _quality_tile(report, hero), *_size_tiles(hero, base)]


def _timing_tiles(report: Report, hero: Row, base: Row | None) -> list[Tile]:
    result = hero["results"][0]
    case = next(case for case in report["workload"]["cases"] if case["id"] == result["case"])
    tiles = []
    ratio = result["ratio"]
    if ratio is not None and base is not None:
        against = f"at {case['id']}, against {base['name']}"
        if ratio["verdict"] == NO_DIFFERENCE:
            tiles.append(Tile("Speed", NO_DIFFERENCE, f"{with_interval(ratio)} {against}", number=False))
        else:
            tone = {"faster": "good", "slower": "bad"}.get(ratio["verdict"], "")
            words = f"{ratio['verdict']} {interval(ratio['low'], ratio['high'])}".rstrip()
            tiles.append(Tile("Speed", times(ratio["value"]), f"{words} {against}", tone))
    summary = result["summary"]
    spread = f"p90 {duration(summary['p90'])}"
    if report["settings"]["scenario"] == "offline":
        value = f"{rate(result['throughput']['examples_per_s'])}/s"
        tiles.append(Tile("Throughput", value, f"examples; {describe_workload(report, case)}"))
    else:
        tiles.append(
            Tile("Latency", duration(summary["median"]), f"median, {spread}; {describe_workload(report, case)}")
        )
    return tiles


def _server_tiles(hero: Row, base: Row | None) -> list[Tile]:
    server = hero["server"]
    bound = bound_words(server)
    other = (
        ""
        if base is None
        else f"; {base['name']}: "
        + ("none" if base["server"]["best_qps"] is None else f"{rate(base['server']['best_qps'])}/s")
    )
    if server["best_qps"] is None:
        return [Tile("Rate", "none of those tried", f"{bound}{other}", "bad", number=False)]
    return [Tile("Rate", f"{rate(server['best_qps'])}/s", f"{bound}{other}")]


def _quality_tile(report: Report, hero: Row) -> Tile:
    metric = primary_metric(report)
    found = metric_of(hero, metric)
    if metric is None or found is None:
        return Tile("Quality", "not measured", "give --data to measure it", number=False)
    name = metric_name(metric).capitalize()
    absolute = f"{score(found['value'], found['se'])} on {found['n']:,} examples"
    difference = found["difference"]
    if difference is None:
        value = score(found["value"], found["se"])
        return Tile(name, value, f"on {found['n']:,} examples")
    if difference["changed"] == 0:
        return Tile(name, "the same answers", absolute, "good", number=False)
    tone = {"worse": "bad", "better": "good"}.get(difference["verdict"], "")
    return Tile(name, f"{points(difference)}", f"points, {difference['verdict']}; {absolute}", tone)


def _size_tiles(hero: Row, base: Row | None) -> list[Tile]:
    tiles = []
    size = hero["counters"]["file_bytes"]
    if size is not None:
        before = None if base is None else base["counters"]["file_bytes"]
        note = (
            f"against {bytes_text(before)}: {times(before / size)} smaller" if before and size and before > size else ""
        )
        if before and not note:
            note = f"against {bytes_text(before)}"
        tiles.append(Tile("File", bytes_text(size), note))
    if hero["load_ms"]:
        ordered = sorted(hero["load_ms"])
        tiles.append(Tile("Load", f"{digits(ordered[len(ordered) // 2])} ms", "to open it, in a new process"))
    return tiles


def _footer(report: Report) -> str:
    version: Any = (report["machine"].get("versions") or {}).get("compactor")
    return f"Made by compactor{f' {version}' if version else ''} from report.json, schema {report['schema']}."


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
