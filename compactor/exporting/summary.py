"""A manifest told in tables: what was removed, how large each stage is, how well the numbers agree."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from compactor.console import Section, format_bytes, format_count, format_ratio
from compactor.tasks import GENERATION, TASKS

Row = tuple[str, ...]
Layer = dict[str, Any]

LAYER_COLUMNS = ("layer", ">heads", ">QK width", ">V width", ">neurons")
STAGE_COLUMNS = ("stage", "file", ">size", ">smaller", ">MACs/token", ">fewer", ">weights")
CHECK_COLUMNS = ("stage", ">comparisons", ">largest error", ">relative", ">same answers")
_IN_JAVASCRIPT = ("text-classification", "feature-extraction")  # what is tested there


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
        """One line for people, which begins with ``verb``; what was not recognised is not in it."""
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


def export_sections(manifest: dict[str, Any], path: Path, *, shown_as: Path) -> list[Section]:
    """What an export did, and how to open what it wrote.

    Args:
        manifest: Its manifest.
        path: The artefact.
        shown_as: The artefact, as the user calls it.
    """
    written = Section(f"Written to {shown_as}", next_steps(manifest, path, shown_as=shown_as))
    return [*made_sections(manifest), written, *unrecognised_sections(manifest)]


def made_sections(manifest: dict[str, Any]) -> list[Section]:
    """What became of the checkpoint."""
    source, loss = manifest["source"], removed(manifest["layers"])
    origin = f"{source['path_name']} ({source['format']}, {manifest['task']})"
    notes = [f"  {note}" for note in source["notes"]]
    sections = [Section(lines=[origin, *notes, loss_sentence(manifest)])]
    if not loss.is_nothing:
        sections.append(Section("Layers", columns=LAYER_COLUMNS, rows=layer_rows(manifest["layers"])))
    sections += [stages_section(manifest), verification_section(manifest["verification"])]
    if (line := ledger_line(manifest)) is not None:
        sections.append(Section("Answers", [line]))
    return sections


def loss_sentence(manifest: dict[str, Any]) -> str:
    """What an export took out, in a line that claims nothing about sublayers which were not recognised."""
    loss = removed(manifest["layers"])
    if not manifest.get("unrecognised") or not loss.is_nothing:
        return loss.sentence()
    return "nothing removed" + (" from the sublayers that were recognised" if manifest["layers"] else "")


def unrecognised_sections(manifest: dict[str, Any]) -> list[Section]:
    """How many sublayers were left as they are, and why; nothing where all were recognised.

    A reason that holds for several is said once.
    """
    places: dict[str, list[str]] = {}
    for entry in manifest.get("unrecognised", ()):
        places.setdefault(f"{entry['kind'].replace('_', '-')}: {entry['reason']}", []).append(entry["path"])
    left = sum(map(len, places.values()))
    if not left:
        return []
    rows = [(reason, str(len(where)), where[0]) for reason, where in places.items()]
    title = f"{left} of {left + len(manifest['layers'])} sublayers were left as they are"
    return [Section(title, columns=("why", ">times", "first"), rows=rows)]


def stages_section(manifest: dict[str, Any]) -> Section:
    """The sizes of each stage."""
    return Section("Sizes", columns=STAGE_COLUMNS, rows=stage_rows(manifest))


def ledger_line(manifest: dict[str, Any]) -> str | None:
    """What int8 keeps of fp32's answers; None where it was not chosen by data."""
    ledger = manifest.get("ledger")
    if ledger is None:
        return None
    source = ledger["file"] or "random inputs, which tell less than texts do"
    in_fp32 = sum(unit["precision"] == "fp32" for unit in ledger["units"])
    one = 100 / ledger["counts"]["held_out"]
    coarse = "" if one <= 100 - ledger["keep"] else f"; one of them is {one:.2g} %, so more texts would tell more"
    kept, count = ledger["kept"]["held_out"], ledger["counts"]["held_out"]
    return (
        f"int8 keeps {kept:.4g} % of {count} held-out {ledger['measure']} ({ledger['keep']:g} % asked for), "
        f"with {in_fp32} of {len(ledger['units'])} layers in fp32; by {source}{coarse}"
    )


def ledger_sections(manifest: dict[str, Any]) -> Iterator[Section]:
    """Error against time of each layer that int8 may take, and the choice."""
    ledger = manifest.get("ledger")
    if ledger is None:
        return
    lines = [str(ledger_line(manifest))]
    lines += [f"accuracy: {name} {share:.2%}" for name, share in ledger.get("accuracy", {}).items()]
    rows = [
        (
            unit["unit"],
            "table" if unit["shape"] is None else " x ".join(map(str, unit["shape"])),
            f"{unit['fp32_ms']:.3f}",
            f"{unit['int8_ms']:.3f}",
            f"{unit['error']:.2g}",
            str(unit["changed"]),
            unit["precision"],
        )
        for unit in ledger["units"]
    ]
    columns = ("layer", "weights", ">fp32 ms", ">int8 ms", ">error", ">changed", "choice")
    yield Section("Ledger of int8: each layer alone", lines, columns, rows)


def verification_section(verification: dict[str, Any]) -> Section:
    """How well each stage agrees with the masked model."""
    stages = {case["stage"] for case in verification["cases"]}
    only = next(iter(stages)) if len(stages) == 1 else "compact"
    return Section(
        f"Verification against the masked model: {'passed' if verification['passed'] else 'FAILED'}",
        [f"largest error of the {only} model: {verification['max_abs_diff']:.2g}"],
        CHECK_COLUMNS if verification["cases"] else (),
        check_rows(verification),
    )


def next_steps(manifest: dict[str, Any], path: Path, *, shown_as: Path) -> list[str]:
    """How to open the artefact with the tools that people have: its last, most compact stage."""
    last = f"layer by layer:  compactor explain {shlex.quote(str(shown_as))}"
    if manifest["task"] == GENERATION:
        precision, merged = manifest["recipe"]["precision"][-1], manifest["recipe"].get("decoder") == "merged"
        return [
            f"generate:  compactor.runtime.generation.EncoderDecoder.open({str(shown_as)!r}, precision={precision!r})",
            f"optimum:  ORTModelForSeq2SeqLM.from_pretrained({str(shown_as)!r})",
            *([_in_javascript("AutoModelForSeq2SeqLM.from_pretrained", (shown_as,), precision)] if merged else []),
            last,
        ]
    file = next(stage["file"] for stage in reversed(manifest["stages"]) if stage["file"])
    if manifest["recipe"]["layout"] == "triton":
        return [
            f"serve:  tritonserver --model-repository={shlex.quote(str(path))}",
            f"settings:  {shown_as / file.partition('/')[0] / 'config.pbtxt'}",
            "clients:  pad texts to a few lengths, as docs/serving-triton.md and examples/triton_client.py do",
            last,
        ]
    lines = [f"onnxruntime:  InferenceSession({str(shown_as / file)!r})"]
    folder, _, name = file.rpartition("/")
    subfolder = f"subfolder={folder!r}, " if folder else ""
    if (path / "modules.json").is_file():
        from compactor.runtime.sentences import SentenceSettings  # it brings numpy

        sentences = SentenceSettings.read(path)
        kind = sentences.kind if sentences is not None else ""
        lines.append(
            f"sentence-transformers:  {kind}({str(shown_as)!r}, backend='onnx', model_kwargs={{'file_name': {file!r}}})"
        )
    elif manifest["task"] in TASKS:
        head = TASKS[manifest["task"]].auto_class.removeprefix("AutoModel") or "ForFeatureExtraction"
        lines.append(f"optimum:  ORTModel{head}.from_pretrained({str(shown_as)!r}, {subfolder}file_name={name!r})")
    if manifest["task"] in _IN_JAVASCRIPT and folder and manifest["target"] != "cuda":
        lines.append(_in_javascript("pipeline", (manifest["task"], shown_as), manifest["recipe"]["precision"][-1]))
    return [*lines, last]


def _in_javascript(function: str, arguments: Iterable[object], precision: str) -> str:
    """How transformers.js opens it, which names precisions in its own way."""
    dtype = {"int8": "q8"}.get(precision, precision)
    return f"transformers.js:  {function}({', '.join(repr(str(each)) for each in arguments)}, {{ dtype: {dtype!r} }})"


def _change(pair: list[int]) -> str:
    before, after = pair
    return str(before) if before == after else f"{before} -> {after}"


def _largest(differences: Iterable[float | None]) -> str:
    known = list(differences)
    return "not finite" if None in known else f"{max(number for number in known if number is not None):.2g}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
