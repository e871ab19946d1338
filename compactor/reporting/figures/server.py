"""Latency of a server against the rate of its requests."""

from __future__ import annotations

from typing import Any

import numpy as np

from compactor.reporting.canvas import BAD, INK, SERIES, draw, framed
from compactor.reporting.figures.figure import NAME, SMALL, Figure, few_ticks, legend, marks, plain_log, series_numbers
from compactor.reporting.numbers import rate
from compactor.reporting.words import Report, measured


def server_figure(report: Report) -> Figure | None:
    """Latency against the offered rate, with the bound."""
    rows = [row for row in measured(report) if row["server"] is not None and row["server"]["probes"]]
    if not rows:
        return None
    bound = rows[0]["server"]["bound_ms"]
    percentile = rows[0]["server"]["percentile"]
    slowest = "largest latency" if percentile >= 100 else f"p{percentile:g}"
    numbers = series_numbers(report)

    def paint(figure: Any) -> None:
        axes = framed(figure)
        ceiling = 5 * bound
        for row in rows:
            colour = SERIES[numbers[row["id"]]]
            probes = sorted(row["server"]["probes"], key=lambda probe: probe["qps"])
            rates = np.array([probe["qps"] for probe in probes])
            for field, style in (("p99_ms", "-"), ("p50_ms", "--")):
                known = np.array([probe[field] is not None for probe in probes])
                if known.any():
                    values = np.array([probe[field] for probe in probes if probe[field] is not None], dtype=float)
                    kept = values <= ceiling
                    axes.plot(rates[known], values, style, color=colour, linewidth=1.8)
                    axes.plot(rates[known][kept], values[kept], "o", color=colour, markersize=4)
            best = row["server"]["best_qps"]
            if best is not None:
                axes.plot([best], [bound], "v", color=colour, markeredgecolor=INK, markersize=9, clip_on=False)
                axes.annotate(
                    marks(report)[row["id"]],
                    (best, bound),
                    (0, 9),
                    textcoords="offset points",
                    ha="center",
                    fontsize=NAME,
                    fontweight="bold",
                )
        axes.axhline(bound, color=BAD, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.annotate(
            f"{round(bound, 2):g} ms",
            (1.0, bound),
            (0, 3),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            color=BAD,
            ha="right",
            fontsize=SMALL,
        )
        axes.set_yscale("log")
        medians = [probe["p50_ms"] for row in rows for probe in row["server"]["probes"]]
        lowest = min((median for median in medians if median is not None), default=bound)
        axes.set_ylim(max(lowest * 0.7, bound * 1e-4), ceiling)
        plain_log(axes.yaxis)
        offered = [probe["qps"] for row in rows for probe in row["server"]["probes"]]
        if max(offered) > 20 * min(offered):
            axes.set_xscale("log")
            axes.set_xlim(min(offered) / 1.3, max(offered) * 2)
            plain_log(axes.xaxis)
        else:
            axes.set_xlim(0, 1.2 * max(offered))
            few_ticks(axes.xaxis)
        axes.set_xlabel("offered rate, requests/s")
        axes.set_ylabel("latency, ms")

    label = "Latency against offered rate: " + "; ".join(
        f"{row['name']} stays under {bound:g} ms "
        + ("at no rate" if row["server"]["best_qps"] is None else f"up to {rate(row['server']['best_qps'])} requests/s")
        for row in rows
    )
    caption = (
        "Solid: 99th percentile; dashed: median. Triangles: the highest rate whose "
        f"{slowest} stays under the bound (the broken line); further right is better. Lines that leave the "
        "picture at the top are queues that grow."
    )
    drawing = draw("server-0", 290, paint, label=label)
    return Figure("server", "Latency under load", caption, (drawing,), legend(report, {row["id"] for row in rows}))
