"""Whether the processes of a variant agree."""

from __future__ import annotations

from typing import Any

import numpy as np

from compactor.reporting.canvas import INK, MUTED, draw, framed, shorten
from compactor.reporting.figures.figure import NAME, Figure, few_ticks, variant_keys
from compactor.reporting.numbers import percent
from compactor.reporting.words import Report, measured, result_of


def processes_figure(report: Report) -> Figure | None:
    """Each process's median and spread, relative to its variant's median: whether the samples agree."""
    found = [
        (row, result)
        for case in report["workload"]["cases"]
        for row in measured(report)
        if (result := result_of(row, case["id"])) is not None and len(result["rounds_ms"]) > 1
    ]
    if not found:
        return None
    case = max(found, key=lambda pair: pair[1]["summary"]["process_spread"] or 0.0)[1]["case"]
    shown = [
        (row, result["summary"]["process_spread"], [samples for samples in result["rounds_ms"] if samples])
        for row, result in found
        if result["case"] == case
    ]
    keys = variant_keys(report)
    most = max(len(rounds) for _, _, rounds in shown)
    step = 9.0 if most <= 10 else 90.0 / most

    def paint(figure: Any) -> None:
        axes = framed(figure, left=10, right=10, top=4, bottom=40)
        top, ends = 0.0, []
        for row, _, rounds in shown:
            middle = float(np.median([np.median(samples) for samples in rounds]))
            axes.text(0, top + 14, shorten(row["name"], 40), fontsize=NAME, transform=axes.get_yaxis_transform())
            for index, samples in enumerate(rounds):
                low, half, high = np.quantile(np.asarray(samples) / middle, (0.1, 0.5, 0.9))
                y, colour = top + 24 + step * index, keys[row["id"]].colour
                axes.plot([low, high], [y, y], "-", color=colour, linewidth=2.2, solid_capstyle="round")
                axes.plot([half], [y], "o", color=INK, markersize=3.6)
                ends += [low, high]
            top += 30 + step * len(rounds)
        axes.set_ylim(top, 0)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        reach = max(0.05, max(abs(end - 1) for end in ends)) * 1.1
        axes.set_xlim(1 - min(reach, 1.0), 1 + reach)
        axes.axvline(1.0, color=MUTED, linewidth=1.0, zorder=0)
        few_ticks(axes.xaxis)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.set_xlabel("time, of the variant's own median")

    label = f"Spread between processes in case {case}: " + "; ".join(
        f"{row['name']} {percent(spread)}" for row, spread, _ in shown if spread is not None
    )
    caption = (
        f"Case {case}, where processes differ most. A line is a process, in the order they ran: from the 10th to the "
        "90th percentile of its samples, with the median. Lines that form a column agree; two columns are two speeds "
        "of the machine."
    )
    height = sum(30 + step * len(rounds) for _, _, rounds in shown) + 48
    return Figure("processes", "Do the processes agree?", caption, (draw("processes-0", height, paint, label=label),))
