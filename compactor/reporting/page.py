"""The report as one HTML page, which is closed to the world, and as Markdown without figures; and the files on disk."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from compactor.errors import OutputError
from compactor.reporting.figures import make_figures
from compactor.reporting.figures.figure import variant_keys
from compactor.reporting.numbers import bytes_text, digits, duration, points, rate, score_of, times, with_interval
from compactor.reporting.rows import (
    NO_DIFFERENCE,
    Report,
    Row,
    baseline_row,
    best_variant,
    is_server,
    only_endpoints,
    primary_metric,
    quality_of,
)
from compactor.reporting.tables.layers import layer_table, profile_tables
from compactor.reporting.tables.provenance import machine_rows, reproduce_rows, variant_rows
from compactor.reporting.tables.results import probe_tables, result_tables
from compactor.reporting.tables.table import TONES
from compactor.reporting.templates import Tile, render_template
from compactor.reporting.words import (
    about_words,
    absence_in_full,
    absences,
    bound_words,
    describe_workload,
    placement_words,
    summary_sentence,
)

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
        with tempfile.TemporaryDirectory(prefix=".report-", dir=folder) as beside:
            for name, text in texts.items():
                Path(beside, name).write_text(text, encoding="utf-8", newline="\n")
            for name in texts:
                Path(beside, name).replace(folder / name)
    except OSError as error:
        raise OutputError(
            f"cannot write the report: {error.strerror or error}",
            where=str(folder),
            todo="choose another folder with -o",
        ) from error
    return folder / MARKDOWN_NAME, folder / HTML_NAME


def render_html(report: Report) -> str:
    """The page of ``report``, a checked ``report.json``. The same report always gives the same page."""
    return render_template(
        "page.html.jinja",
        **_contents(report),
        asides=absences(report) if best_variant(report) is not None else [],
        tiles=make_tiles(report),
        figures=make_figures(report),
        variants=list(variant_keys(report).values()),
        version=(report["machine"].get("versions") or {}).get("compactor"),
    )


def render_markdown(report: Report) -> str:
    """GitHub-flavoured Markdown of ``report``, for pull requests and READMEs: the same sentences and tables."""
    return render_template("report.md.jinja", **_contents(report))


def _contents(report: Report) -> dict[str, Any]:
    """What both say, by the names that the templates know."""
    return {
        "report": report,
        "verdict": "VALID" if report["verdict"]["valid"] else "INVALID",
        "about": about_words(report),
        "summary": summary_sentence(report),
        "tables": result_tables(report),
        "layers": layer_table(report),
        "probes": probe_tables(report),
        "profiles": profile_tables(report),
        "placements": placement_words(report),
        "reproduce": reproduce_rows(report),
        "machine": machine_rows(report),
        "exactly": variant_rows(report),
        "failures": [(row["name"], absence_in_full(row)) for row in report["variants"] if row["status"] != "measured"],
    }


def make_tiles(report: Report) -> list[Tile]:
    """What a decision hangs on, for the best variant: speed, time, loss, size; none where nothing was measured."""
    hero = best_variant(report)
    if hero is None:
        return []
    base = baseline_row(report)
    base = None if base is hero else base
    tiles = [_server_tile(hero, base)] if is_server(report) else _timing_tiles(report, hero, base)
    return tiles if only_endpoints(report) else [*tiles, _quality_tile(report, hero), *_size_tiles(hero, base)]


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
            value, _, ends = with_interval(ratio).partition(" ")
            words = " ".join(filter(None, (ratio["verdict"], ends, against)))
            tiles.append(Tile("Speed", value, words, TONES.get(ratio["verdict"], "")))
    if report["settings"]["scenario"] == "offline":
        value = f"{rate(result['throughput']['examples_per_s'])}/s"
        tiles.append(Tile("Throughput", value, f"examples; {describe_workload(report, case)}"))
    else:
        summary = result["summary"]
        note = f"median, p90 {duration(summary['p90'])}; {describe_workload(report, case)}"
        tiles.append(Tile("Latency", duration(summary["median"]), note))
    return tiles


def _server_tile(hero: Row, base: Row | None) -> Tile:
    note = bound_words(hero["server"])
    if base is not None:
        other = base["server"]["best_qps"]
        note += f"; {base['name']}: {'none' if other is None else f'{rate(other)}/s'}"
    best = hero["server"]["best_qps"]
    if best is None:
        return Tile("Rate", "none of those tried", note, "bad", number=False)
    return Tile("Rate", f"{rate(best)}/s", note)


def _quality_tile(report: Report, hero: Row) -> Tile:
    found = quality_of(report, hero)
    if found is None:
        return Tile("Quality", "not measured", "give --data to measure it", number=False)
    name, difference = primary_metric(report).capitalize(), found["difference"]
    value, examples = score_of(found), f"on {found['n']:,} examples"
    if difference is None:
        return Tile(name, value, examples)
    if difference["changed"] == 0:
        return Tile(name, "the same answers", f"{value} {examples}", "good", number=False)
    note = f"points, {difference['verdict']}; {value} {examples}"
    return Tile(name, points(difference), note, TONES.get(difference["verdict"], ""))


def _size_tiles(hero: Row, base: Row | None) -> list[Tile]:
    tiles = []
    size = hero["counters"]["file_bytes"]
    if size is not None:
        before = None if base is None else base["counters"]["file_bytes"]
        note = f"against {bytes_text(before)}" if before else ""
        if before and before > size > 0:
            note += f": {times(before / size)} smaller"
        tiles.append(Tile("File", bytes_text(size), note))
    if hero["load_ms"]:
        typical = statistics.median_high(hero["load_ms"])
        tiles.append(Tile("Load", f"{digits(typical)} ms", "to open it, in a new process"))
    return tiles
