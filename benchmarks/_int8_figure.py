"""The figure of ``int8_answers.py``: answers that int8 changes against its speed-up, a panel a model and case."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import _record
from benchmarks._figure import DASHES, LEGEND, SOFT, describe, panels
from compactor.reporting.rows import part_of, result_of

_STYLES = {  # by row: colour, mark
    "fp32": ("#1F2328", "*"),
    "ours, tensor": ("#0072B2", "s"),
    "ours, token": ("#009E73", "o"),
    "ours, token, keep 99.5": ("#009E73", "D"),
    "quantize_dynamic, default": ("#D55E00", "v"),
    "quantize_dynamic, signed, per channel": ("#D55E00", "^"),
    "MatMulNBits, 8 bits": ("#B5489A", "P"),
    "OpenVINO, static": ("#8C6D1F", "X"),
}
_SIZES = {"*": 11, "D": 6}  # of marks that look larger or smaller than others
_SAME_HIT = "same_first_hit"

Point = tuple[str, Mapping[str, Any], float, float]  # row, ratio, percent of answers changed, its standard error


def draw(result: Mapping[str, Any], path: Path) -> bool:
    """Write the figure as SVG, the same bytes for the same result. Returns whether there was anything to draw."""
    found = list(drawn(result))
    if not found:
        return False
    title = f"int8: answers changed against speed, {_record.device_name(result)}"
    size = (5.0 * len(found) + 0.6, 5.0)
    with panels(path, len(found), size, title=title, scores="answers changed, % (lower is better)") as (figure, axes):
        for panel, (model, case, points) in zip(axes, found, strict=True):
            panel.axvline(1, color=SOFT, linewidth=0.8, linestyle=DASHES, zorder=0)
            for row, ratio, changed, se in points:
                colour, mark = _STYLES[row]
                style = {"color": colour, "linewidth": 1.0, "alpha": 0.6, "zorder": 1}
                if ratio["low"] is not None:
                    panel.plot([ratio["low"], ratio["high"]], [changed, changed], **style)
                panel.plot([ratio["value"]] * 2, [max(changed - se, 0), changed + se], **style)
                name = f"{model}-{case}-{row}"
                size_ = _SIZES.get(mark, 7)
                panel.plot(ratio["value"], changed, marker=mark, markersize=size_, color=colour, zorder=3, gid=name)
            describe(panel, f"{model}, {case}", "speed-up over our fp32 (right is better)", "×")
            panel.set_ylim(bottom=-0.1)
        _draw_legend(figure, [row for *_, points in found for row, *_ in points])
    return True


def drawn(result: Mapping[str, Any]) -> Iterator[tuple[str, str, list[Point]]]:
    """Model, case and points of each panel; none of a model whose times are not to be believed."""
    for model, entry in result["models"].items():
        report = entry["report"]
        if not report["verdict"]["valid"]:
            continue
        for case in report["workload"]["cases"]:
            part = part_of(case)
            if part is not None and part["kind"] != "generate":
                continue
            points = []
            for row, variant in zip(entry["rows"], report["variants"], strict=True):
                measured, share = result_of(variant, case["id"]), _changed(entry, row, variant)
                if measured is None or share is None:
                    continue
                ratio = measured["ratio"] or {"value": 1.0, "low": None, "high": None}
                points.append((row, ratio, 100 * share[0], 100 * math.sqrt(share[0] * (1 - share[0]) / share[1])))
            yield model, case["id"], points


def _changed(entry: Mapping[str, Any], row: str, variant: Mapping[str, Any]) -> tuple[float, int] | None:
    """The share of answers that are not fp32's, and of how many; None where that was not judged."""
    if "kept" in entry:
        same, count = entry["kept"][row]
        return 1 - same / count, count
    metrics = (variant["quality"] or {"metrics": {}})["metrics"]
    if _SAME_HIT in metrics:
        return 1 - metrics[_SAME_HIT]["value"], metrics[_SAME_HIT]["n"]
    found = next(iter(metrics.values()), None)
    if found is None:
        return None
    return (found["difference"] or {"changed": 0})["changed"] / found["n"], found["n"]


def _draw_legend(figure: Any, rows: list[str]) -> None:
    from matplotlib.lines import Line2D

    lines = []
    for row in (row for row in _STYLES if row in rows):
        colour, mark = _STYLES[row]
        size = _SIZES.get(mark, 7)
        lines.append(Line2D([], [], linestyle="", marker=mark, markersize=size, color=colour, label=row))
    columns = math.ceil(len(lines) / 2)
    figure.legend(handles=lines, bbox_to_anchor=(0.02, 0.005), ncols=columns, handletextpad=0.3, **LEGEND)
