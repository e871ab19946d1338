"""How fast each variant is: a bar each; under load; against the batch size; and whether its processes agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compactor.reporting.canvas import BAD, GRID, INK, MUTED, TRACK, WIDTH, Drawing, draw, framed, pixels, shorten
from compactor.reporting.figures.figure import NAME, SMALL, Figure, Key, few_ticks, name_ends, variant_keys, write
from compactor.reporting.numbers import digits, percent, rate, times
from compactor.reporting.rows import NO_DIFFERENCE, Report, is_server, measured, part_of, result_of
from compactor.reporting.words import absence, describe_workload

_Line = tuple[Key, bool, Sequence[tuple[int, float]]]  # whether it is solid; batch sizes and rates


def latency_figure(report: Report) -> Figure | None:
    """Bars of each variant, a drawing for each case: the time, or in the offline scenario the throughput."""
    if is_server(report) or not measured(report):
        return None
    offline = report["settings"]["scenario"] == "offline"
    drawings = [
        _bars(report, case, f"latency-{index}")
        for index, case in enumerate(report["workload"]["cases"])
        if any(result_of(row, case["id"]) for row in measured(report))
    ]
    title = "Throughput" if offline else "Latency"
    caption = "Examples per second at the median pass; longer" if offline else "Median time; shorter"
    caption += " is better. The line goes from the 10th to the 90th percentile of all samples."
    caption += " Each case has a scale of its own."
    ratios = [result["ratio"] for row in measured(report) for result in row["results"]]
    if any(ratio is not None and ratio["verdict"] == NO_DIFFERENCE for ratio in ratios):
        caption += " ≈: no significant difference from the baseline."
    return Figure("latency", title, caption, tuple(drawings))


def _bars(report: Report, case: Mapping[str, Any], identity: str) -> Drawing:
    """One bar a variant, below its name."""
    rows, keys = report["variants"], variant_keys(report)
    found = {row["id"]: _measures(report, case, result) for row in rows if (result := result_of(row, case["id"]))}
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


def _measures(report: Report, case: Mapping[str, Any], result: Mapping[str, Any]) -> tuple[str, float, float, float]:
    """Words, length of the bar and ends of the line: milliseconds, or examples per second."""
    summary, ratio = result["summary"], result["ratio"]
    middle, low, high = summary["median"], summary["p10"], summary["p90"]
    words = f"{digits(middle)} ms"
    if report["settings"]["scenario"] == "offline":
        middle, high, low = (1e3 * case["examples"] / ms for ms in (middle, low, high))
        words = f"{rate(middle)}/s"
    if ratio is not None and ratio["low"] is not None:  # from enough processes to be seen beside the others
        words += f" · {'≈ ' if ratio['verdict'] == NO_DIFFERENCE else ''}{times(ratio['value'])}"
    return words, middle, low, high


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


def throughput_figure(report: Report) -> Figure | None:
    """Examples per second against the batch size, a drawing for each length; None with a single batch size."""
    if is_server(report):
        return None
    groups: dict[tuple[str, int | None], list[Mapping[str, Any]]] = {}
    for case in report["workload"]["cases"]:
        part = "" if part_of(case) is None else f"{case['id'].partition(', ')[0]}, "  # its id without the inputs
        groups.setdefault((part, case["seq"]), []).append(case)
    drawings, dashed = [], False
    for index, ((part, seq), alike) in enumerate(groups.items()):
        lines = _lines(report, alike)
        if lines:
            title = part + ("real lengths" if seq is None else f"{seq} tokens")
            drawings.append(_throughput(f"throughput-{index}", title, lines))
            dashed = dashed or not all(solid for _, solid, _ in lines)
    if not drawings:
        return None
    caption = "Examples per second at each batch size; higher is better."
    if dashed:
        caption += " Solid: examples of like length together. Dashed: in the order given, padded to the longest."
    legend = tuple(variant_keys(report)[row["id"]] for row in measured(report))
    return Figure("throughput", "Throughput against batch size", caption, tuple(drawings), legend)


def _lines(report: Report, cases: Sequence[Mapping[str, Any]]) -> list[_Line]:
    """A line for each variant and order of the examples, bucketed or as given, that has two batch sizes."""
    keys = variant_keys(report)
    lines: list[_Line] = []
    for row in measured(report):
        for solid in (True, False) if cases[0]["seq"] is None else (True,):  # of like lengths there is one order
            points = sorted(
                (case["batch"], result["throughput"]["examples_per_s"])
                for case in cases
                if case["bucketed"] in (solid, None) and (result := result_of(row, case["id"])) is not None
            )
            if len({batch for batch, _ in points}) > 1:
                lines.append((keys[row["id"]], solid, points))
    return lines


def _throughput(identity: str, title: str, lines: Sequence[_Line]) -> Drawing:
    def paint(figure: Any) -> None:
        axes = framed(figure, right=24)
        batches = sorted({batch for _, _, points in lines for batch, _ in points})
        for key, solid, points in lines:
            axes.plot(*zip(*points, strict=True), "-" if solid else "--", marker="o", color=key.colour)
        axes.set_xscale("log", base=2)
        axes.set_xticks(batches, [str(batch) for batch in batches])
        axes.minorticks_off()
        axes.set_ylim(0, None)
        few_ticks(axes.yaxis, "{x:,g}")
        axes.set_xlabel("batch size")
        axes.set_ylabel("examples/s")
        ends = [(key.mark, points[-1]) for key, solid, points in lines if solid]
        name_ends(axes, ends, size=NAME, offset=8, gap=12.0)

    label = f"Throughput against batch size, {title}: " + "; ".join(
        f"{key.text}: " + ", ".join(f"{rate(value)}/s at {batch}" for batch, value in points)
        for key, _, points in lines
    )
    return draw(identity, 240, paint, label=label, title=title)


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
