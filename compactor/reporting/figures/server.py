"""Latency of a server against the rate of its requests."""

from __future__ import annotations

from typing import Any

import numpy as np

from compactor.reporting.canvas import BAD, INK, draw, framed
from compactor.reporting.figures.figure import NAME, SMALL, Figure, few_ticks, variant_keys
from compactor.reporting.labels import write
from compactor.reporting.numbers import rate
from compactor.reporting.rows import Report, measured


def server_figure(report: Report) -> Figure | None:
    """Latency against the offered rate, with the bound."""
    rows = [row for row in measured(report) if row["server"] is not None and row["server"]["probes"]]
    if not rows:
        return None
    keys = [variant_keys(report)[row["id"]] for row in rows]
    bound, percentile = rows[0]["server"]["bound_ms"], rows[0]["server"]["percentile"]
    slowest = "largest latency" if percentile >= 100 else f"p{percentile:g}"
    every = [probe for row in rows for probe in row["server"]["probes"]]

    def paint(figure: Any) -> None:
        axes = framed(figure)
        ceiling = 5 * bound
        for row, key in zip(rows, keys, strict=True):
            probes = sorted(row["server"]["probes"], key=lambda probe: probe["qps"])
            for field, style in (("p99_ms", "-"), ("p50_ms", "--")):
                known = [(probe["qps"], probe[field]) for probe in probes if probe[field] is not None]
                if known:
                    points = np.array(known, dtype=float)
                    axes.plot(*points.T, style, color=key.colour, linewidth=1.8)
                    axes.plot(*points[points[:, 1] <= ceiling].T, "o", color=key.colour, markersize=4)
            best = row["server"]["best_qps"]
            if best is not None:
                axes.plot([best], [bound], "v", color=key.colour, markeredgecolor=INK, markersize=9, clip_on=False)
                write(axes, key.mark, (best, bound), (0, 9), fontsize=NAME, ha="center")
        axes.axhline(bound, color=BAD, linewidth=1.2, linestyle=(0, (4, 3)))
        at_right = {"xycoords": axes.get_yaxis_transform(), "ha": "right", "fontweight": "normal"}
        write(axes, f"{round(bound, 2):g} ms", (1.0, bound), (0, 3), color=BAD, fontsize=SMALL, **at_right)
        axes.set_yscale("log")
        lowest = min((probe["p50_ms"] for probe in every if probe["p50_ms"] is not None), default=bound)
        axes.set_ylim(max(lowest * 0.7, bound * 1e-4), ceiling)
        _plain_log(axes.yaxis)
        offered = [probe["qps"] for probe in every]
        if max(offered) > 20 * min(offered):
            axes.set_xscale("log")
            axes.set_xlim(min(offered) / 1.3, max(offered) * 2)
            _plain_log(axes.xaxis)
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
    return Figure("server", "Latency under load", caption, (drawing,), tuple(keys))


def _plain_log(axis: Any) -> None:
    """Ticks at 1, 2 and 5 of each decade, over several decades at 1 only, as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,), numticks=20))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_formatter(NullFormatter())
