"""The figures of a report. One that has no data is not there.

Every variant keeps its colour and its number through all figures, so that neither colours nor print are needed to tell
them apart; the baseline is grey.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from compactor.reporting.canvas import (
    BAD,
    GRID,
    INK,
    MUTED,
    PAPER,
    SERIES,
    TRACK,
    WIDTH,
    Drawing,
    draw,
    framed,
    pixels,
    shorten,
)
from compactor.reporting.labels import Label, put_labels, spread
from compactor.reporting.numbers import bytes_text, digits, percent, rate, times
from compactor.reporting.words import (
    NO_DIFFERENCE,
    Report,
    Row,
    absence,
    baseline_row,
    describe_workload,
    is_server,
    measured,
    metric_name,
    metric_of,
    part_of,
    primary_metric,
    profiles_of,
    result_of,
)

_HALF = re.compile(r"(encoder|decoder)\.layers\.(\d+)(, cross-attention)?")
_LAYER = re.compile(r"^(encoder|decoder)\.layers\.(\d+)\.")
_SMALL = 10.5  # pixels
_NAME = 12.5
_NAMED_OPERATORS = 7  # as many as there are colours beside that of the rest


@dataclasses.dataclass(frozen=True)
class Key:
    """An entry of a legend: a colour's number among the page's series, the mark on it, and what it stands for."""

    series: int
    mark: str
    text: str


@dataclasses.dataclass(frozen=True)
class Figure:
    """Drawings with one caption.

    Attributes:
        id: Unique on the page.
        title: What it is about.
        caption: How to read it.
        drawings: One or more, of one kind.
        keys: Its legend, which the page sets.
    """

    id: str
    title: str
    caption: str
    drawings: tuple[Drawing, ...]
    keys: tuple[Key, ...] = ()


def make_figures(report: Report) -> list[Figure]:
    """All figures that ``report`` has data for, the most important first."""
    makers: tuple[Callable[[Report], Figure | None], ...] = (
        latency_figure,
        server_figure,
        pareto_figure,
        throughput_figure,
        layers_figure,
        operators_figure,
        layer_times_figure,
        processes_figure,
    )
    return [figure for figure in (maker(report) for maker in makers) if figure is not None]


def series_numbers(report: Report) -> dict[str, int]:
    """The colour of each variant, by id: 0 for the baseline, 1 to 7 in turn for the others."""
    others = [row["id"] for row in report["variants"] if row["id"] != report["baseline"]]
    numbers = {name: 1 + index % (len(SERIES) - 1) for index, name in enumerate(others)}
    return numbers if report["baseline"] is None else {report["baseline"]: 0, **numbers}


def marks(report: Report) -> dict[str, str]:
    """The number of each variant, by id, as it stands in the figures: its place in the tables."""
    return {row["id"]: str(index + 1) for index, row in enumerate(report["variants"])}


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


def throughput_figure(report: Report) -> Figure | None:
    """Examples per second against the batch size, a drawing for each length; None with a single batch size."""
    cases = [case for case in report["workload"]["cases"] if not is_server(report)]
    drawings = []
    dashed = False
    groups: dict[tuple[str, int | None], list[Mapping[str, Any]]] = {}
    for case in cases:
        groups.setdefault((_part_words(case), case["seq"]), []).append(case)
    for index, ((part, seq), alike) in enumerate(groups.items()):
        lines = []
        for row in measured(report):
            for bucketed in (True, False):
                chosen = [case for case in alike if case["bucketed"] in (bucketed, None)]
                if seq is not None and not bucketed:
                    continue  # lengths are all the same: one line
                points = sorted(
                    (case["batch"], result["throughput"]["examples_per_s"])
                    for case in chosen
                    if (result := result_of(row, case["id"])) is not None
                )
                if len({batch for batch, _ in points}) > 1:
                    lines.append((row, bucketed, points))
                    dashed = dashed or not bucketed
        if lines:
            title = part + ("real lengths" if seq is None else f"{seq} tokens")
            drawings.append(_throughput(report, f"throughput-{index}", title, lines))
    if not drawings:
        return None
    caption = "Examples per second at each batch size; higher is better."
    if dashed:
        caption += " Solid: examples of like length together. Dashed: in the order given, padded to the longest."
    return Figure("throughput", "Throughput against batch size", caption, tuple(drawings), _keys(report))


def pareto_figure(report: Report) -> Figure | None:
    """Speed, quality and file size in one picture; None with fewer than two variants to show."""
    places = [place for row in measured(report) if (place := _place(report, row)) is not None]
    if len(places) < 2:
        return None
    metric = primary_metric(report)
    with_quality = all(place.quality is not None for place in places)
    if not with_quality:
        places = [place for place in places if place.size is not None]
        if len(places) < 2:
            return None
    speed = _speed_words(report)
    if with_quality and metric is not None:
        title = f"Speed, {metric_name(metric)}, size"
        caption = (
            f"Up and to the right is better: {speed} across, {metric_name(metric)} with its standard error upwards. "
            "The area of a dot is the file's size; smaller is better."
        )
        paint = _pareto_quality
    else:
        title = "Speed and size"
        caption = f"Down and to the right is better: {speed} across, the file's size upwards. Quality was not measured."
        paint = _pareto_size
    drawing = draw(
        "pareto-0",
        270,
        lambda figure: paint(report, figure, places, speed),
        label=f"{title}: " + "; ".join(_spoken_place(place) for place in places),
    )
    return Figure("pareto", title, caption, (drawing,), _keys(report, {place.row["id"] for place in places}))


def layers_figure(report: Report) -> Figure | None:
    """Heads and FFN neurons of each layer, before and after: Figure 1 of Lagunas et al. (2021) in spirit."""
    layers = report["layers"]
    if not layers:
        return None
    drawings = []
    for what, words in (("heads", "attention heads"), ("neurons", "FFN neurons")):
        known = [
            layer for layer in layers if layer[f"{what}_before"] is not None and layer[f"{what}_after"] is not None
        ]
        if known:
            before = [int(layer[f"{what}_before"]) for layer in known]
            after = [int(layer[f"{what}_after"]) for layer in known]
            names = _short_names([str(layer["name"]) for layer in known])
            title = f"{words}: {sum(after):,} of {sum(before):,} kept"
            drawings.append(_before_after(f"layers-{what}", title, names, before, after))
    if not drawings:
        return None
    caption = "Outline: the original model. Filled: what is left of it in the compact graph, layer by layer."
    if any(_HALF.fullmatch(str(layer["name"])) for layer in layers):
        caption += " e: encoder; d: decoder; x: the decoder's attention to the encoder."
    return Figure("layers", "What was kept", caption, tuple(drawings))


def operators_figure(report: Report) -> Figure | None:
    """The share of each operator in a run, a bar for each profiled variant."""
    rows = [
        (name, profile)
        for row in report["variants"]
        for name, profile in profiles_of(report, row)
        if profile["operators"]
    ]
    if not rows:
        return None
    weights: dict[str, float] = {}
    for _, profile in rows:
        for operator in profile["operators"]:
            weights[operator["name"]] = weights.get(operator["name"], 0.0) + operator["share"]
    named = sorted(weights, key=lambda name: (-weights[name], name))[:_NAMED_OPERATORS]

    def paint(figure: Any) -> None:
        axes = pixels(figure)
        for index, (name, profile) in enumerate(rows):
            top = 4 + 54 * index
            axes.text(0, top + 11, shorten(name, 30), fontsize=_NAME, fontweight="bold")
            each = f"{digits(profile['total_ms'])} ms a run"
            axes.text(WIDTH, top + 11, each, fontsize=_NAME, ha="right", color=MUTED)
            shares = dict.fromkeys(named, 0.0)
            for operator in profile["operators"]:
                if operator["name"] in shares:
                    shares[operator["name"]] += operator["share"]
            rest = max(0.0, 1.0 - sum(shares.values()))
            left = 0.0
            for place, share in enumerate((*shares.values(), rest)):
                series = (place + 1) % (_NAMED_OPERATORS + 1)
                width = share * WIDTH
                axes.barh(top + 31, width, left=left, height=24, color=SERIES[series], edgecolor=PAPER, linewidth=1.0)
                if width > 14:
                    mark = _letter(place) if place < len(named) else "…"
                    axes.text(
                        left + width / 2, top + 35, mark, fontsize=_SMALL, fontweight="bold", color=PAPER, ha="center"
                    )
                left += width

    label = "Share of the time by operator: " + "; ".join(
        f"{name}: "
        + ", ".join(f"{operator['name']} {percent(operator['share'])}" for operator in profile["operators"][:5])
        for name, profile in rows
    )
    keys = [Key(index + 1, _letter(index), name) for index, name in enumerate(named)]
    if len(weights) > len(named):
        keys.append(Key(0, "…", f"{len(weights) - len(named)} others"))
    drawing = draw("operators-0", 54 * len(rows) + 2, paint, label=label)
    caption = (
        "The share of each operator in the time of a run, by ONNX Runtime's profiler. All bars are equally long, "
        "whatever the time: see the milliseconds."
    )
    return Figure("operators", "Where the time goes", caption, (drawing,), tuple(keys))


def layer_times_figure(report: Report) -> Figure | None:
    """The time of each layer in a run, a drawing for each variant that was profiled by layer."""
    drawings = []
    profiles = [pair for row in report["variants"] for pair in profiles_of(report, row)]
    for index, (name, profile) in enumerate(profiles):
        if profile["layers"]:
            drawings.append(_layer_times(f"layer-times-{index}", name, profile["layers"]))
    if not drawings:
        return None
    caption = "Milliseconds of a run in each layer, by ONNX Runtime's profiler."
    return Figure("layer-times", "Time by layer", caption, tuple(drawings))


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
                    fontsize=_NAME,
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
            fontsize=_SMALL,
        )
        axes.set_yscale("log")
        medians = [probe["p50_ms"] for row in rows for probe in row["server"]["probes"]]
        lowest = min((median for median in medians if median is not None), default=bound)
        axes.set_ylim(max(lowest * 0.7, bound * 1e-4), ceiling)
        _plain_log(axes.yaxis)
        offered = [probe["qps"] for row in rows for probe in row["server"]["probes"]]
        if max(offered) > 20 * min(offered):
            axes.set_xscale("log")
            axes.set_xlim(min(offered) / 1.3, max(offered) * 2)
            _plain_log(axes.xaxis)
        else:
            axes.set_xlim(0, 1.2 * max(offered))
            _few_ticks(axes.xaxis)
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
    return Figure("server", "Latency under load", caption, (drawing,), _keys(report, {row["id"] for row in rows}))


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
            axes.text(0, top + 14, shorten(row["name"], 40), fontsize=_NAME, transform=axes.get_yaxis_transform())
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
        _few_ticks(axes.xaxis)
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


def _bars(report: Report, case: Mapping[str, Any], identity: str, *, offline: bool) -> Drawing:
    """One bar a variant, below its name."""
    numbers = series_numbers(report)
    rows = report["variants"]
    found = {
        row["id"]: _extent(result, case, offline=offline) for row in rows if (result := result_of(row, case["id"]))
    }
    longest = max(high for _, _, high in found.values()) or 1.0
    scale = (WIDTH - 4) / longest

    def paint(figure: Any) -> None:
        axes = pixels(figure)
        for index, row in enumerate(rows):
            top = 42 * index
            colour = SERIES[numbers[row["id"]]]
            words = _bar_words(row, case, found[row["id"]][0], offline=offline) if row["id"] in found else ""
            axes.text(0, top + 13, shorten(row["name"], int((WIDTH - 8 * len(words)) / 7.2)), fontsize=_NAME)
            axes.text(WIDTH, top + 13, words, fontsize=_NAME, ha="right", fontweight="bold")
            if row["id"] not in found:
                reason = absence(row) if row["status"] != "measured" else "not run: interrupted"
                axes.barh(top + 26, WIDTH - 1, left=0.5, height=14, color="none", edgecolor=GRID, linestyle=(0, (3, 3)))
                axes.text(6, top + 30, shorten(reason, 52), fontsize=_SMALL, color=MUTED)
                continue
            middle, low, high = found[row["id"]]
            axes.barh(top + 26, WIDTH, height=13, color=TRACK)
            axes.barh(top + 26, middle * scale, height=13, color=colour)
            axes.plot([low * scale, high * scale], [top + 26] * 2, color=INK, linewidth=1.2, solid_capstyle="butt")
            for end in (low, high):
                axes.plot([end * scale] * 2, [top + 22.5, top + 29.5], color=INK, linewidth=1.2)

    spoken = "; ".join(
        f"{row['name']} {_bar_words(row, case, found[row['id']][0], offline=offline)}"
        if row["id"] in found
        else f"{row['name']} {absence(row)}"
        for row in rows
    )
    title = f"{case['id']}: {describe_workload(report, case)}"
    return draw(identity, 42 * len(rows) - 2, paint, label=f"{title}: {spoken}", title=title)


def _extent(result: Mapping[str, Any], case: Mapping[str, Any], *, offline: bool) -> tuple[float, float, float]:
    """Length of the bar and ends of the line: milliseconds, or examples per second."""
    summary = result["summary"]
    if not offline:
        return summary["median"], summary["p10"], summary["p90"]
    examples = 1e3 * case["examples"]
    return examples / summary["median"], examples / summary["p90"], examples / summary["p10"]


def _bar_words(row: Row, case: Mapping[str, Any], middle: float, *, offline: bool) -> str:
    text = f"{rate(middle)}/s" if offline else f"{digits(middle)} ms"
    result = result_of(row, case["id"])
    ratio = result["ratio"] if result is not None else None
    if ratio is None or ratio["low"] is None:  # none, or from too few processes to be seen beside the others
        return text
    return f"{text} · {'≈ ' if ratio['verdict'] == NO_DIFFERENCE else ''}{times(ratio['value'])}"


def _throughput(
    report: Report, identity: str, title: str, lines: Sequence[tuple[Row, bool, Sequence[tuple[int, float]]]]
) -> Drawing:
    numbers = series_numbers(report)

    def paint(figure: Any) -> None:
        axes = framed(figure, right=24)
        batches = sorted({batch for _, _, points in lines for batch, _ in points})
        for row, solid, points in lines:
            x, y = zip(*points, strict=True)
            colour = SERIES[numbers[row["id"]]]
            axes.plot(x, y, "-" if solid else "--", marker="o", color=colour)
        axes.set_xscale("log", base=2)
        axes.set_xticks(batches, [str(batch) for batch in batches])
        axes.minorticks_off()
        axes.set_ylim(0, None)
        _few_ticks(axes.yaxis)
        axes.set_xlabel("batch size")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.set_ylabel("examples/s")
        ends = [(marks(report)[row["id"]], points[-1]) for row, solid, points in lines if solid]
        heights = [float(axes.transData.transform(end)[1]) for _, end in ends]
        for (mark, end), height, moved in zip(ends, heights, spread(heights, 12.0), strict=True):
            offset = (8, moved - height - 4)
            axes.annotate(mark, end, offset, textcoords="offset points", fontsize=_NAME, fontweight="bold")

    label = f"Throughput against batch size, {title}: " + "; ".join(
        f"{row['name']}: " + ", ".join(f"{rate(value)}/s at {batch}" for batch, value in points)
        for row, _, points in lines
    )
    return draw(identity, 240, paint, label=label, title=title)


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a variant stands in the Pareto plot; None is unknown."""

    row: Row
    speed: float
    quality: float | None
    se: float
    size: int | None


def _place(report: Report, row: Row) -> _Place | None:
    """Its speed in the first case, or its best rate; None without one."""
    if is_server(report):
        speed = row["server"]["best_qps"]
    else:
        result = result_of(row, report["workload"]["cases"][0]["id"])
        base = result_of(baseline_row(report), report["workload"]["cases"][0]["id"])
        if result is None:
            return None
        if base is None:
            speed = result["throughput"]["examples_per_s"]
        else:
            speed = 1.0 if result["ratio"] is None else result["ratio"]["value"]
    if speed is None:
        return None
    found = metric_of(row, primary_metric(report))
    return _Place(
        row,
        float(speed),
        None if found is None else found["value"],
        0.0 if found is None else found["se"],
        row["counters"]["file_bytes"],
    )


def _speed_words(report: Report) -> str:
    if is_server(report):
        return "highest rate under the bound, requests/s"
    case = report["workload"]["cases"][0]["id"]
    return f"examples/s at {case}" if baseline_row(report) is None else f"speed-up at {case}"


def _spoken_place(place: _Place) -> str:
    quality = "" if place.quality is None else f", {percent(place.quality)}"
    return f"{place.row['name']}: {digits(place.speed)}{quality}, {_size(place)}"


def _size(place: _Place) -> str:
    return "size unknown" if place.size is None else bytes_text(place.size)


def _pareto_quality(report: Report, figure: Any, places: Sequence[_Place], speed: str) -> None:
    numbers, names = series_numbers(report), marks(report)
    axes = framed(figure, left=58)
    largest = max((place.size or 0 for place in places), default=0) or 1
    labels = []
    for place in sorted(places, key=lambda place: -(place.size or 0)):  # a small dot lies on a large one
        colour = SERIES[numbers[place.row["id"]]]
        assert place.quality is not None
        value = 100 * place.quality
        axes.errorbar([place.speed], [value], yerr=[100 * place.se], color=MUTED, linewidth=1.0, capsize=3, zorder=2)
        area = max(900 * (place.size or 0) / largest, 14.0)
        filled = place.size is not None
        axes.scatter(
            [place.speed],
            [value],
            s=area,
            color=colour if filled else "none",
            edgecolors=PAPER if filled else colour,
            linewidths=1.0,
            zorder=3,
            clip_on=False,
        )
        labels.append(Label(place.speed, value, f"{names[place.row['id']]}: {_size(place)}", 0.56 * area**0.5))
    axes.set_ylabel(f"{metric_name(primary_metric(report) or 'quality')}, %")
    values = [100 * place.quality for place in places if place.quality is not None]
    reach = max(max(100 * place.se for place in places), 0.25)
    axes.set_ylim(min(values) - 1.7 * reach, max(values) + 1.7 * reach)
    _speed_axis(axes, places, speed)
    _few_ticks(axes.yaxis)
    put_labels(axes, labels, size=_SMALL)


def _pareto_size(report: Report, figure: Any, places: Sequence[_Place], speed: str) -> None:
    numbers, names = series_numbers(report), marks(report)
    axes = framed(figure, left=58)
    labels = []
    for place in places:
        assert place.size is not None
        axes.plot([place.speed], [place.size / 1e6], "o", color=SERIES[numbers[place.row["id"]]], markersize=10)
        labels.append(Label(place.speed, place.size / 1e6, names[place.row["id"]], 6.0))
    axes.set_ylabel("file, MB")
    axes.set_ylim(0, 1.15 * max(place.size or 0 for place in places) / 1e6)
    _speed_axis(axes, places, speed)
    _few_ticks(axes.yaxis)
    put_labels(axes, labels, size=_NAME)


def _speed_axis(axes: Any, places: Sequence[_Place], words: str) -> None:
    axes.set_xlim(0, 1.22 * max(place.speed for place in places))
    _few_ticks(axes.xaxis)
    if words.startswith("speed-up"):
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    else:
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_xlabel(words)


def _before_after(
    identity: str, title: str, names: Sequence[str], before: Sequence[int], after: Sequence[int]
) -> Drawing:
    def paint(figure: Any) -> None:
        axes = framed(figure, left=44, right=2, top=14, bottom=26 if len(names) <= 12 else 24)
        places = np.arange(len(names))
        width = 0.78
        axes.grid(visible=False)
        axes.bar(places, before, width, color=TRACK, edgecolor=MUTED, linewidth=1.0)
        axes.bar(places, after, width, color=SERIES[1])
        if len(names) <= 12:
            for place, value in zip(places, after, strict=True):
                inside = value > 0.8 * max(before)
                axes.annotate(
                    f"{value:,}",
                    (place, value),
                    (0, -3 if inside else 3),
                    textcoords="offset points",
                    ha="center",
                    va="top" if inside else "bottom",
                    color=PAPER if inside else INK,
                    fontsize=_SMALL,
                    fontweight="bold",
                )
        every = 1 if len(names) <= 24 else -(-len(names) // 24)
        axes.set_xticks(places[::every], list(names)[::every])
        axes.tick_params(axis="x", labelsize=10.5 if len(names) <= 12 else 8.5)
        spare = max(0, 5 - len(names)) / 2
        axes.set_xlim(-0.6 - spare, len(names) - 0.4 + spare)
        axes.set_ylim(0, 1.12 * max(*before, 1))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        _few_ticks(axes.yaxis, whole=True)

    label = f"{title}: " + ", ".join(
        f"{name}: {now} of {was}" for name, was, now in zip(names, before, after, strict=True)
    )
    return draw(identity, 190, paint, label=label, title=title)


def _layer_times(identity: str, name: str, layers: Sequence[Mapping[str, Any]]) -> Drawing:
    longest = max(layer["ms"] for layer in layers) or 1.0

    def paint(figure: Any) -> None:
        axes = pixels(figure)
        for index, layer in enumerate(layers):
            y = 10 + 20 * index
            axes.text(0, y + 4, shorten(_LAYER.sub(r"\1 \2 ", str(layer["name"])), 25), fontsize=_SMALL)
            axes.barh(y, 98, left=140, height=12, color=TRACK)
            axes.barh(
                y, 98 * layer["ms"] / longest, left=140, height=12, color=SERIES[0 if layer["name"] == "other" else 1]
            )
            words = f"{digits(layer['ms'])} ms · {percent(layer['share'])}"
            axes.text(WIDTH, y + 4, words, fontsize=_SMALL, ha="right")

    label = f"Time by layer, {name}: " + ", ".join(f"{layer['name']} {percent(layer['share'])}" for layer in layers)
    return draw(identity, 20 * len(layers) + 2, paint, label=label, title=name)


def _rounds(row: Row, case: str) -> Sequence[Sequence[float]]:
    result = result_of(row, case)
    return [] if result is None else [samples for samples in result["rounds_ms"] if samples]


def _keys(report: Report, shown: set[str] | None = None) -> tuple[Key, ...]:
    numbers, names = series_numbers(report), marks(report)
    rows = [row for row in measured(report) if shown is None or row["id"] in shown]
    return tuple(Key(numbers[row["id"]], names[row["id"]], row["name"]) for row in rows)


def _part_words(case: Mapping[str, Any]) -> str:
    """What a case runs of an encoder-decoder, for a title: its id without the inputs."""
    return "" if part_of(case) is None else f"{case['id'].partition(', ')[0]}, "


def _short_names(names: Sequence[str]) -> list[str]:
    """The number at the end of each name where that tells them apart, else their places.

    Of an encoder-decoder the number behind an ``e`` or a ``d``, or an ``x`` for cross-attention.
    """
    halves = [_HALF.fullmatch(name) for name in names]
    if all(halves):
        return [f"{'x' if half[3] else half[1][0]}{half[2]}" for half in halves if half is not None]
    found = [re.findall(r"\d+", name) for name in names]
    last = [numbers[-1] if numbers else "" for numbers in found]
    if "" not in last and len(set(last)) == len(names):
        return [str(int(number)) for number in last]
    return [str(index) for index in range(len(names))]


def _letter(index: int) -> str:
    """The mark of an operator; numbers are for variants."""
    return "abcdefghij"[index]


def _few_ticks(axis: Any, *, whole: bool = False) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(5, integer=whole, steps=[1, 2, 5, 10]))


def _plain_log(axis: Any) -> None:
    """Ticks at 1, 2 and 5 of each decade, over several decades at 1 only, as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    few = high < 300 * low
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=20))
    axis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.set_minor_formatter(NullFormatter())
