"""Whether the processes of a variant agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from compactor.reporting.canvas import INK, MUTED, SERIES, draw, framed, shorten
from compactor.reporting.figures.figure import NAME, Figure, few_ticks, series_numbers
from compactor.reporting.numbers import percent
from compactor.reporting.words import Report, Row, measured, result_of


def processes_figure(report: Report) -> Figure | None:
    """Each process's median and spread, relative to its variant's median: whether the samples agree."""
    found = [
        (result["summary"]["process_spread"], case["id"])
        for case in report["workload"]["cases"]
        for row in measured(report)
        if (result := result_of(row, case["id"])) is not None and len(result["rounds_ms"]) > 1
    ]
    if not found:
        return None
    case = max(found, key=lambda pair: pair[0] or 0.0)[1]
    rows = [
        row for row in measured(report) if (result := result_of(row, case)) is not None and len(result["rounds_ms"]) > 1
    ]
    numbers = series_numbers(report)
    most = max(len(_rounds(row, case)) for row in rows)
    step = 9.0 if most <= 10 else 90.0 / most
    heights = [30 + step * len(_rounds(row, case)) for row in rows]

    def paint(figure: Any) -> None:
        axes = framed(figure, left=10, right=10, top=4, bottom=40)
        top, ends = 0.0, []
        for row, height in zip(rows, heights, strict=True):
            rounds = _rounds(row, case)
            middle = float(np.median([np.median(samples) for samples in rounds]))
            colour = SERIES[numbers[row["id"]]]
            axes.text(0, top + 14, shorten(row["name"], 40), fontsize=NAME, transform=axes.get_yaxis_transform())
            for index, samples in enumerate(rounds):
                low, half, high = np.quantile(np.asarray(samples) / middle, (0.1, 0.5, 0.9))
                y = top + 24 + step * index
                axes.plot([low, high], [y, y], "-", color=colour, linewidth=2.2, solid_capstyle="round")
                axes.plot([half], [y], "o", color=INK, markersize=3.6)
                ends += [low, high]
            top += height
        axes.set_ylim(top, 0)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        reach = max(0.05, max(abs(end - 1) for end in ends)) * 1.1
        axes.set_xlim(1 - min(reach, 1.0), 1 + reach)
        axes.axvline(1.0, color=MUTED, linewidth=1.0, zorder=0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        few_ticks(axes.xaxis)
        axes.set_xlabel("time, of the variant's own median")

    label = f"Spread between processes in case {case}: " + "; ".join(
        f"{row['name']} {percent(result['summary']['process_spread'])}"
        for row in rows
        if (result := result_of(row, case)) is not None and result["summary"]["process_spread"] is not None
    )
    caption = (
        f"Case {case}, where processes differ most. A line is a process, in the order they ran: from the 10th to the "
        "90th percentile of its samples, with the median. Lines that form a column agree; two columns are two speeds "
        "of the machine."
    )
    drawing = draw("processes-0", sum(heights) + 48, paint, label=label)
    return Figure("processes", "Do the processes agree?", caption, (drawing,))


def _rounds(row: Row, case: str) -> Sequence[Sequence[float]]:
    result = result_of(row, case)
    return [] if result is None else [samples for samples in result["rounds_ms"] if samples]
