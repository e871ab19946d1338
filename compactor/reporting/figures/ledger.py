"""What int8 costs, by layer: the error of each alone, and the time it saves, by the ledger of an export."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from compactor.reporting.canvas import MUTED, TRACK, WIDTH, Drawing, draw, pixels, shorten
from compactor.reporting.figures.figure import SMALL, Figure, Key
from compactor.reporting.numbers import MINUS
from compactor.reporting.rows import Report

_KEYS = {"int8": Key(1, "8", "int8"), "fp32": Key(3, "32", "stays in fp32")}
_LAYER = re.compile(r"\blayers\.(\d+)\.")
_NAMES, _ERRORS, _TIMES = 0, 122, 240  # where the columns begin, pixels
_LONGEST = 66  # pixels of a bar; beside it is its number
_HEAD, _STEP = 20, 19


def ledger_figure(report: Report) -> Figure | None:
    """Error against time of each layer that int8 may take, and the choice; a drawing for each artefact with a ledger.

    None where no target's int8 was chosen by data, and for reports from before there were ledgers.
    """
    names = {row["target"]: row["name"] for row in report["variants"] if row["precision"] == "int8"}
    drawings = [
        _ledger(f"ledger-{index}", names.get(entry["target"], entry["target"]), entry["ledger"])
        for index, entry in enumerate(report.get("ledgers", ()))
    ]
    if not drawings:
        return None
    caption = (
        "Each layer alone in int8. Left: how far it moves the outputs, root mean square as a share of fp32's. Right: "
        "milliseconds that it saves in a batch of the texts that it was chosen by, when it was exported. Bold: stays "
        "in fp32. A table of embeddings saves bytes, and no time."
    )
    return Figure("ledger", "What int8 costs, by layer", caption, tuple(drawings), tuple(_KEYS.values()))


def _ledger(identity: str, name: str, ledger: Mapping[str, Any]) -> Drawing:
    units = ledger["units"]
    gains = [unit["fp32_ms"] - unit["int8_ms"] for unit in units]
    most_error = max((unit["error"] for unit in units), default=0.0) or 1.0
    low, high = min(0.0, *gains), max(0.0, *gains)
    span = high - low or 1.0
    zero = _TIMES - low / span * _LONGEST  # bars of layers that int8 makes slower go to the left of it

    def paint(figure: Any) -> None:
        axes = pixels(figure)
        for x, words in ((_ERRORS, "error"), (_TIMES, "ms saved")):
            axes.text(x, 11, words, fontsize=SMALL, color=MUTED)
        for index, (unit, gain) in enumerate(zip(units, gains, strict=True)):
            y, colour = _HEAD + 8 + _STEP * index, _KEYS[unit["precision"]].colour
            weight = "bold" if unit["precision"] == "fp32" else "normal"
            axes.text(_NAMES, y + 4, shorten(_unit_name(unit), 18), fontsize=SMALL, fontweight=weight)
            length = _LONGEST * unit["error"] / most_error
            axes.barh(y, length, left=_ERRORS, height=11, color=colour)
            axes.text(_ERRORS + length + 4, y + 4, f"{100 * unit['error']:.2g} %", fontsize=SMALL)
            if unit["shape"] is None:
                axes.text(_TIMES, y + 4, "table", fontsize=SMALL, color=MUTED)
                continue
            axes.barh(y, gain / span * _LONGEST, left=zero, height=11, color=colour)
            end = zero + max(gain, 0.0) / span * _LONGEST
            axes.text(end + 4, y + 4, _ms(gain), fontsize=SMALL)
        bottom = _HEAD + _STEP * len(units)
        axes.plot([zero, zero], [_HEAD, bottom], color=TRACK, linewidth=1.0, zorder=0)
        axes.plot([_ERRORS, _ERRORS], [_HEAD, bottom], color=TRACK, linewidth=1.0, zorder=0)
        axes.set_xlim(0, WIDTH)

    said = ", ".join(
        f"{unit['unit']}: error {100 * unit['error']:.2g} %, {_ms(gain)} ms saved, {unit['precision']}"
        for unit, gain in zip(units, gains, strict=True)
    )
    kept = ledger["kept"]["held_out"]
    title = f"{name}: {kept:.4g} % of {ledger['counts']['held_out']} held-out {ledger['measure']} kept"
    return draw(identity, _HEAD + _STEP * len(units) + 4, paint, label=f"{title}; {said}", title=title)


def _ms(gain: float) -> str:
    return f"{gain:.3f}".replace("-", MINUS)


def _unit_name(unit: Mapping[str, Any]) -> str:
    """Without what all names share; of a table, what it is of."""
    if unit["shape"] is None:
        return str(unit["unit"]).removesuffix(".weight").rpartition(".")[2]
    return _LAYER.sub(r"\1 ", str(unit["unit"])).replace("feed_forward", "feed-forward")
