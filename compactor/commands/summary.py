"""A manifest told in tables: what was removed, how large each stage is, how well the numbers agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from compactor.console import Console, format_bytes, format_count, format_ratio

Row = tuple[str, ...]
Layer = dict[str, Any]

LAYER_COLUMNS = ("layer", ">heads", ">QK width", ">V width", ">neurons")
STAGE_COLUMNS = ("stage", "file", ">size", ">smaller", ">MACs/token", ">fewer", ">weights")
CHECK_COLUMNS = ("stage", ">comparisons", ">largest error", ">relative", ">same answers")


@dataclasses.dataclass(frozen=True)
class Removed:
    """What an export took out of a model, in total."""

    heads: tuple[int, int]
    neurons: tuple[int, int]
    emptied: int
    narrowed: int

    @property
    def is_nothing(self) -> bool:
        """Whether the compact model has all that the original had."""
        return self.heads[0] == self.heads[1] and self.neurons[0] == self.neurons[1] and not self.narrowed

    def sentence(self, *, verb: str = "removed") -> str:
        """One line for people, which begins with ``verb``."""
        if self.is_nothing:
            return "nothing to remove: every head and neuron of this model can change its output"
        parts = [
            f"{before - after} of {before} {name}"
            for name, (before, after) in (("heads", self.heads), ("neurons", self.neurons))
            if before != after
        ]
        if self.narrowed:
            parts.append(f"channels inside the heads of {_counted(self.narrowed, 'layer')}")
        if self.emptied:
            parts.append(f"{_counted(self.emptied, 'whole sublayer')}")
        return f"{verb} " + ", ".join(parts)


def removed(layers: Iterable[Layer]) -> Removed:
    """Add up what the layers of a manifest (or of an inspection) lost."""
    heads, neurons = [0, 0], [0, 0]
    emptied = narrowed = 0
    for layer in layers:
        is_attention = layer["kind"] == "attention"
        before, after = layer["heads" if is_attention else "width"]
        total = heads if is_attention else neurons
        total[0] += before
        total[1] += after
        emptied += before > 0 and after == 0
        if is_attention and after:
            narrowed += any(new < old for old, new in (layer["qk_width"], layer["v_width"]))
    return Removed((heads[0], heads[1]), (neurons[0], neurons[1]), emptied, narrowed)


def layer_rows(layers: Iterable[Layer]) -> list[Row]:
    """One row for each attention, with the feed-forward sublayer of its layer; see ``LAYER_COLUMNS``.

    An attention over the encoder's states has a row of its own, below its layer's.
    """
    rows: list[list[str]] = []
    own: list[str] | None = None  # the row of the layer at hand, while it lacks its feed-forward half
    for layer in layers:
        stem, _, sublayer = layer["path"].rpartition(".")
        stem = stem or layer["path"]
        if layer["kind"] == "attention":
            is_cross = sublayer.startswith("cross_attention")
            name = f"{stem} cross" if is_cross else stem
            rows.append([name, *(_change(layer[key]) for key in ("heads", "qk_width", "v_width")), "-"])
            own = own if is_cross else rows[-1]
        elif own is not None and own[0] == stem:
            own[4] = _change(layer["width"])
            own = None
        else:
            rows.append([stem, "-", "-", "-", _change(layer["width"])])
            own = None
    return [tuple(row) for row in rows]


def describe_layer(layer: Layer) -> Row:
    """A sublayer's path and what it has, before and after."""
    if layer["kind"] == "feed_forward":
        return layer["path"], f"{_change(layer['width'])} neurons"
    text = f"{_change(layer['heads'])} heads"
    if layer["heads"][1]:
        text += f", QK {_change(layer['qk_width'])}, V {_change(layer['v_width'])}"
    if layer.get("uniform_heads"):
        text += f", {layer['uniform_heads']} averaging"
    return layer["path"], text


def stage_rows(manifest: dict[str, Any]) -> list[Row]:
    """One row for each stage, with its ratios to the masked graph; see ``STAGE_COLUMNS``.

    Of a model with several graphs a row's bytes are those that its graph needs; what the graphs of a precision share,
    and store once, has a row of its own.
    """
    masked = {stage.get("graph"): stage for stage in manifest["stages"] if stage["name"] == "masked"}
    rows: list[Row] = []
    for stage in manifest["stages"]:
        first = masked[stage.get("graph")]
        rows.append(
            (
                stage["name"],
                stage["file"] or stage.get("graph", "-"),
                format_bytes(stage["bytes"]),
                format_ratio(first["bytes"], stage["bytes"]),
                format_count(stage["macs_per_token"]),
                format_ratio(first["macs_per_token"], stage["macs_per_token"]),
                format_count(stage["parameters"]),
            )
        )
    for weights in manifest.get("weights", ()):
        rows.append(("shared", weights["file"], format_bytes(weights["bytes"]), "-", "-", "-", "-"))
    return rows


def check_rows(verification: dict[str, Any]) -> list[Row]:
    """One row for each stage that was compared with the masked model; see ``CHECK_COLUMNS``."""
    rows: list[Row] = []
    for stage in dict.fromkeys(case["stage"] for case in verification["cases"]):
        cases = [case for case in verification["cases"] if case["stage"] == stage]
        agreements = [case["argmax_agreement"] for case in cases if case["argmax_agreement"] is not None]
        rows.append(
            (
                stage,
                str(len(cases)),
                _largest(case["max_abs_diff"] for case in cases),
                _largest(case["max_rel_diff"] for case in cases),
                f"{sum(agreements) / len(agreements):.1%}" if agreements else "-",
            )
        )
    return rows


def operator_tables(stages: Sequence[dict[str, Any]]) -> list[tuple[str | None, Row, list[Row]]]:
    """The operators of each stage, as saved and as ONNX Runtime runs them; most frequent first.

    Returns:
        For each graph, whose name is None where it is the only one: its name, the columns and the rows.
    """
    graphs = dict.fromkeys(stage.get("graph") for stage in stages)
    return [(graph, *_operator_rows([stage for stage in stages if stage.get("graph") == graph])) for graph in graphs]


def _operator_rows(stages: Iterable[dict[str, Any]]) -> tuple[Row, list[Row]]:
    counted = []
    for stage in stages:
        if stage["file"] is not None:
            counted.append((f">{stage['name']}, saved", stage["operators"]))
            if stage["executed_operators"] is not None:
                counted.append((f">{stage['name']}, run", stage["executed_operators"]))
    names = {name for _, operators in counted for name in operators}
    order = sorted(names, key=lambda name: (-max(operators.get(name, 0) for _, operators in counted), name))
    columns = ("operator", *(title for title, _ in counted))
    return columns, [(name, *(str(operators.get(name, "-")) for _, operators in counted)) for name in order]


def print_stages(console: Console, manifest: dict[str, Any]) -> None:
    """Print the sizes of each stage."""
    console.heading("Sizes")
    console.table(STAGE_COLUMNS, stage_rows(manifest))


def print_verification(console: Console, verification: dict[str, Any]) -> None:
    """Print how well each stage agrees with the masked model."""
    passed = "passed" if verification["passed"] else "FAILED"
    console.heading(f"Verification against the masked model: {passed}")
    stages = {case["stage"] for case in verification["cases"]}
    only = next(iter(stages)) if len(stages) == 1 else "compact"
    console.line(f"largest error of the {only} model: {verification['max_abs_diff']:.2g}")
    if verification["cases"]:
        console.table(CHECK_COLUMNS, check_rows(verification))


def _change(pair: list[int]) -> str:
    before, after = pair
    return str(before) if before == after else f"{before} -> {after}"


def _largest(differences: Iterable[float | None]) -> str:
    known = list(differences)
    return "not finite" if None in known else f"{max(number for number in known if number is not None):.2g}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
