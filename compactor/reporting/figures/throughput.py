"""Throughput against the batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compactor.reporting.canvas import SERIES, Drawing, draw, framed
from compactor.reporting.figures.figure import NAME, Figure, few_ticks, legend, marks, series_numbers
from compactor.reporting.labels import spread
from compactor.reporting.numbers import rate
from compactor.reporting.words import Report, Row, is_server, measured, part_of, result_of


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
    return Figure("throughput", "Throughput against batch size", caption, tuple(drawings), legend(report))


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
        few_ticks(axes.yaxis)
        axes.set_xlabel("batch size")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.set_ylabel("examples/s")
        ends = [(marks(report)[row["id"]], points[-1]) for row, solid, points in lines if solid]
        heights = [float(axes.transData.transform(end)[1]) for _, end in ends]
        for (mark, end), height, moved in zip(ends, heights, spread(heights, 12.0), strict=True):
            offset = (8, moved - height - 4)
            axes.annotate(mark, end, offset, textcoords="offset points", fontsize=NAME, fontweight="bold")

    label = f"Throughput against batch size, {title}: " + "; ".join(
        f"{row['name']}: " + ", ".join(f"{rate(value)}/s at {batch}" for batch, value in points)
        for row, _, points in lines
    )
    return draw(identity, 240, paint, label=label, title=title)


def _part_words(case: Mapping[str, Any]) -> str:
    """What a case runs of an encoder-decoder, for a title: its id without the inputs."""
    return "" if part_of(case) is None else f"{case['id'].partition(', ')[0]}, "
