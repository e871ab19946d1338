"""Throughput against the batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compactor.reporting.canvas import Drawing, draw, framed
from compactor.reporting.figures.figure import NAME, Figure, Key, few_ticks, variant_keys
from compactor.reporting.labels import name_ends
from compactor.reporting.numbers import rate
from compactor.reporting.words import Report, is_server, measured, part_of, result_of

_Line = tuple[Key, bool, Sequence[tuple[int, float]]]  # whether it is solid; batch sizes and rates


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
        lines = _lines(report, alike, orders=(True, False) if seq is None else (True,))
        if lines:
            title = part + ("real lengths" if seq is None else f"{seq} tokens")
            drawings.append(_throughput(f"throughput-{index}", title, lines))
            dashed = dashed or not all(solid for _, solid, _ in lines)
    if not drawings:
        return None
    caption = "Examples per second at each batch size; higher is better."
    if dashed:
        caption += " Solid: examples of like length together. Dashed: in the order given, padded to the longest."
    keys = variant_keys(report)
    legend = tuple(keys[row["id"]] for row in measured(report))
    return Figure("throughput", "Throughput against batch size", caption, tuple(drawings), legend)


def _lines(report: Report, cases: Sequence[Mapping[str, Any]], orders: Sequence[bool]) -> list[_Line]:
    """A line for each variant and order of the examples, bucketed or as given, that has two batch sizes."""
    keys = variant_keys(report)
    lines: list[_Line] = []
    for row in measured(report):
        for bucketed in orders:
            points = sorted(
                (case["batch"], result["throughput"]["examples_per_s"])
                for case in cases
                if case["bucketed"] in (bucketed, None) and (result := result_of(row, case["id"])) is not None
            )
            if len({batch for batch, _ in points}) > 1:
                lines.append((keys[row["id"]], bucketed, points))
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
