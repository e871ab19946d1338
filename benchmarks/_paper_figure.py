"""The paper's figure 2: score against speed-up, a panel a shape, the paper's GPU beside what was measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import _record, plant
from benchmarks._figure import DASHES, INK, LEGEND, SOFT, describe, panels

PAPER, PAPER_HARDWARE = "paper", "RTX 3090, batch 128"
PRECISIONS = {"cpu": ("fp32", "int8"), "cuda": ("fp16",)}
TASK = "squadv1"
DENSE_BASE = "squadv1-dense-768"
DENSE_F1 = 88.5  # of BERT-base on SQuAD v1.1, in the paper
COLOURS = {
    "dense": "#1F2328",
    "hybrid": "#0072B2",
    "filled": "#009E73",
    "filled, large teacher": "#B5489A",
    "struct": "#D55E00",
    "BERT-large, filled": "#5B5B5B",
    "BERT-large, hybrid": "#8C6D1F",
}
_OTHER = "#999999"
_MARKS = ("o", "s", "D", "^")
_BAR = "#D8DCE2"
_TICKS = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)

Point = tuple[Mapping[str, Any], str, str | None, Mapping[str, Any]]  # checkpoint, group, case, ratio


def draw(result: Mapping[str, Any], path: Path) -> bool:
    """Write the figure as SVG, the same bytes for the same result. Returns whether anything was measured to draw."""
    found = points(result)
    if all(case is None for _, _, case, _ in found):
        return False
    report = next(iter(result["reports"].values()))
    cases = [case["id"] for case in report["workload"]["cases"]]
    title = f"F1 (quoted) against speed-up: the paper's checkpoints on {_record.device_name(report)}"
    size = (max(5.6 * len(cases), 6.4), 5.9)
    with panels(path, len(cases), size, title=title, scores="F1 on SQuAD v1.1, as published") as (figure, axes):
        marks = dict(zip((PAPER, *PRECISIONS[result["provider"]]), _MARKS, strict=False))
        for panel, case in zip(axes, cases, strict=True):
            _draw_panel(panel, [point for point in found if point[2] in (None, case)], marks)
            _scale(panel, [1.0, *(ratio["value"] for *_, ratio in found)])
            name = f"batch × length: {case.replace('x', ' × ')}"
            describe(panel, name, "speed-up over the dense model of the same size (log scale)", "×")
        device = "this GPU" if result["provider"] == "cuda" else "this CPU"
        _draw_legends(figure, found, marks, device)
    return True


def points(result: Mapping[str, Any]) -> list[Point]:
    """Every entry on SQuAD v1.1 and the dense BERT-base.

    Returns:
        The checkpoint; who measured it, the paper or we in one precision, which gives the mark; where, None stands in
        every panel; how many times faster than the dense model, with the interval where that is known.
    """
    variants = {variant["id"]: variant for report in result["reports"].values() for variant in report["variants"]}
    drawn = [entry for entry in result["entries"] if entry["task"] == TASK]
    if DENSE_BASE in result["reports"]:
        drawn.append({"id": DENSE_BASE, "method": plant.DENSE, "score": DENSE_F1, "gpu_speedup": 1.0})
    found: list[Point] = []
    for entry in drawn:
        found.append((entry, PAPER, None, {"value": entry["gpu_speedup"], "low": None, "high": None}))
        for precision in PRECISIONS[result["provider"]]:
            measured = variants[f"{entry['id']}-{precision}"]["results"]
            found += [(entry, precision, each["case"], each["ratio"]) for each in measured if each["ratio"] is not None]
    return found


def _draw_panel(panel: Any, found: Sequence[Point], marks: Mapping[str, str]) -> None:
    """One shape: a bar from the slowest to the fastest of each checkpoint, and a mark for each measurement."""
    for checkpoint, score in {entry["id"]: entry["score"] for entry, *_ in found}.items():
        speeds = [ratio["value"] for entry, *_, ratio in found if entry["id"] == checkpoint]
        panel.plot([min(speeds), max(speeds)], [score] * 2, color=_BAR, linewidth=2.5, zorder=1)
    for entry, group, _, ratio in sorted(found, key=lambda point: list(marks).index(point[1])):
        colour = COLOURS.get(entry["method"], _OTHER)
        if None not in (ratio["low"], ratio["high"]):
            panel.plot([ratio["low"], ratio["high"]], [entry["score"]] * 2, color=colour, linewidth=1.2, zorder=2)
        panel.plot(
            ratio["value"],
            entry["score"],
            marker=marks[group],
            markersize=6.5,
            markeredgewidth=1.4,
            color=colour,
            markerfacecolor="white" if group == PAPER else colour,
            zorder=3,
            gid=f"{group}-{entry['id']}",
        )
    panel.axvline(1, color=SOFT, linewidth=0.8, linestyle=DASHES, zorder=0)


def _scale(panel: Any, speeds: Sequence[float]) -> None:
    """A logarithmic axis that holds all of them."""
    from matplotlib.ticker import FixedLocator, NullLocator

    least, most = min(speeds), max(speeds)
    panel.set_xscale("log")
    panel.set_xlim(least / 1.12, most * 1.12)
    panel.xaxis.set_major_locator(FixedLocator([tick for tick in _TICKS if least / 1.1 <= tick <= most * 1.1]))
    panel.xaxis.set_minor_locator(NullLocator())


def _draw_legends(figure: Any, found: Sequence[Point], marks: Mapping[str, str], device: str) -> None:
    """Colours are methods, marks are who measured."""
    from matplotlib.lines import Line2D

    who, methods = [], []
    for group, mark in marks.items():
        label = f"paper: {PAPER_HARDWARE}" if group == PAPER else f"{device}, {group}"
        inside = "white" if group == PAPER else INK
        who.append(Line2D([], [], linestyle="", marker=mark, color=INK, label=label, markerfacecolor=inside))
    for name in dict.fromkeys(entry["method"] for entry, *_ in found):
        colour = COLOURS.get(name, _OTHER)
        methods.append(Line2D([], [], linestyle="", marker="o", markersize=8, color=colour, label=name))
    for lines, height in ((who, 0.06), (methods, 0.015)):
        figure.legend(handles=lines, bbox_to_anchor=(0.02, height), ncols=len(lines), handletextpad=0.3, **LEGEND)
