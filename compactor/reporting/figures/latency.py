"""How long each variant takes, or in the offline scenario how much it answers: a bar each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compactor.reporting.canvas import GRID, INK, MUTED, TRACK, WIDTH, Drawing, draw, pixels, shorten
from compactor.reporting.figures.figure import NAME, SMALL, Figure, variant_keys
from compactor.reporting.numbers import digits, rate, times
from compactor.reporting.words import (
    NO_DIFFERENCE,
    Report,
    absence,
    describe_workload,
    is_server,
    measured,
    result_of,
)


def latency_figure(report: Report) -> Figure | None:
    """Bars of each variant, a drawing for each case: the time, or in the offline scenario the throughput."""
    if is_server(report) or not measured(report):
        return None
    offline = report["settings"]["scenario"] == "offline"
    drawings = [
        _bars(report, case, f"latency-{index}", offline=offline)
        for index, case in enumerate(report["workload"]["cases"])
        if any(result_of(row, case["id"]) for row in measured(report))
    ]
    if offline:
        title = "Throughput"
        caption = "Examples per second at the median pass; longer is better. "
    else:
        title = "Latency"
        caption = "Median time; shorter is better. "
    caption += "The line goes from the 10th to the 90th percentile of all samples. Each case has a scale of its own."
    if any(
        (result["ratio"] or {}).get("verdict") == NO_DIFFERENCE for row in measured(report) for result in row["results"]
    ):
        caption += " ≈: no significant difference from the baseline."
    return Figure("latency", title, caption, tuple(drawings))


def _bars(report: Report, case: Mapping[str, Any], identity: str, *, offline: bool) -> Drawing:
    """One bar a variant, below its name."""
    rows, keys = report["variants"], variant_keys(report)
    found = {
        row["id"]: _measures(result, case, offline=offline) for row in rows if (result := result_of(row, case["id"]))
    }
    scale = (WIDTH - 4) / (max(high for _, _, _, high in found.values()) or 1.0)

    def paint(figure: Any) -> None:
        axes = pixels(figure)
        for index, row in enumerate(rows):
            top = 42 * index
            words, middle, low, high = found.get(row["id"], ("", 0, 0, 0))
            axes.text(0, top + 13, shorten(row["name"], int((WIDTH - 8 * len(words)) / 7.2)), fontsize=NAME)
            axes.text(WIDTH, top + 13, words, fontsize=NAME, ha="right", fontweight="bold")
            if not words:
                axes.barh(top + 26, WIDTH - 1, left=0.5, height=14, color="none", edgecolor=GRID, linestyle=(0, (3, 3)))
                axes.text(6, top + 30, shorten(absence(row), 52), fontsize=SMALL, color=MUTED)
                continue
            axes.barh(top + 26, WIDTH, height=13, color=TRACK)
            axes.barh(top + 26, middle * scale, height=13, color=keys[row["id"]].colour)
            axes.plot([low * scale, high * scale], [top + 26] * 2, color=INK, linewidth=1.2, solid_capstyle="butt")
            for end in (low, high):
                axes.plot([end * scale] * 2, [top + 22.5, top + 29.5], color=INK, linewidth=1.2)

    title = f"{case['id']}: {describe_workload(report, case)}"
    spoken = "; ".join(f"{row['name']} {found[row['id']][0] if row['id'] in found else absence(row)}" for row in rows)
    return draw(identity, 42 * len(rows) - 2, paint, label=f"{title}: {spoken}", title=title)


def _measures(result: Mapping[str, Any], case: Mapping[str, Any], *, offline: bool) -> tuple[str, float, float, float]:
    """Words, length of the bar and ends of the line: milliseconds, or examples per second."""
    summary, ratio = result["summary"], result["ratio"]
    middle, low, high = summary["median"], summary["p10"], summary["p90"]
    if offline:
        middle, high, low = (1e3 * case["examples"] / ms for ms in (middle, low, high))
    words = f"{rate(middle)}/s" if offline else f"{digits(middle)} ms"
    if ratio is not None and ratio["low"] is not None:  # from enough processes to be seen beside the others
        words += f" · {'≈ ' if ratio['verdict'] == NO_DIFFERENCE else ''}{times(ratio['value'])}"
    return words, middle, low, high
