"""The tables of ``bart.py``: how fast each model is, and where the time of a generation goes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import _record
from benchmarks._generation import FORWARD, GENERATE, HEAD, NEXT_STEPS, PARTS
from compactor.reporting.numbers import digits, duration, percent
from compactor.reporting.rows import result_of

BAR = {"fp32": 1.35, "int8": 2.5}  # times faster than dense fp32, of BAR_PLAN's generation
BAR_PLAN = "base-3.4"

_KINDS = ("attention", "cross_attention", "feed_forward", HEAD, "other")  # of the nodes of a step


def render(result: Mapping[str, Any]) -> str:
    """The tables of each size, which may be of different runs: speed, and where the time of a generation goes."""
    workload = result["workload"]
    plans = {plan["id"]: plan for plan in result["plans"]}
    parts = [
        "# BART: the paper's table 4",
        f"Input 1 × {workload['source']} tokens, no padding. `forward`: the encoder, and the decoder once over "
        f"{workload['tokens']} given tokens. `generate`: {workload['tokens']} new tokens, beam {workload['beams']}, by "
        "transformers' `generate`.",
        "Weights are random. Of the published checkpoints only sums are known (weights of the decoder, weights and "
        "heads of the whole model); sizes of the layers are made up, by the rules in `benchmarks/_bart_shapes.py`.",
    ]
    for size, report in result["reports"].items():
        parts += _size_page(size, report, result["details"][size], plans)
    return _record.page(
        *parts,
        "In brackets: the 95 % bootstrap interval of a speed-up; ≈ stands for no significant difference. `tokens`: "
        "how many of the generated ones are PyTorch's on the same weights, from the first one on; `error`: of the "
        "logits of `forward`, against PyTorch's. With random weights no token is much better than the next one, so "
        "that int8 may write others from the start; its `error` says more.",
    )


def _size_page(
    size: str, report: Mapping[str, Any], details: Mapping[str, Any], plans: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    base = next(variant for variant in report["variants"] if variant["id"] == report["baseline"])
    rows = [_speed_row(variant, plans, details) for variant in report["variants"]]
    header = ["model", "heads", "neurons", "decoder", FORWARD, "speed-up", GENERATE, "speed-up", "tokens", "error"]
    lines = [f"## BART-{size}", f"Against {base['name']}.", _record.markdown_table(header, rows)]
    lines += [line for precision, bar in BAR.items() if (line := bar_line(report, precision, bar))]
    names = {variant["id"]: variant["name"] for variant in report["variants"]}
    if details["parts"]:
        header = ["model", *PARTS, "a step", "share of the next steps"]
        rows = [_parts_row(names[id], details["parts"][id]) for id in names if details["parts"].get(id)]
        lines += ["Where the time of a generation goes, ms:", _record.markdown_table(header, rows)]
    if details["steps"]:
        header = ["model", "all nodes", *_KINDS, f"share of {HEAD}"]
        rows = [_step_row(names[id], details["steps"][id]) for id in names if id in details["steps"]]
        title = "Where the time of one step goes, ms, by ONNX Runtime's profile:"
        lines += [title, _record.markdown_table(header, rows)]
    return [*lines, *_record.remarks(report), *_record.provenance(report)]


def _speed_row(
    variant: Mapping[str, Any], plans: Mapping[str, Mapping[str, Any]], details: Mapping[str, Any]
) -> list[str]:
    plan = plans[variant["target"].removeprefix("bart-")]
    heads, neurons = (sum(sum(stack[kind]) for stack in plan["layers"].values()) for kind in ("heads", "neurons"))
    error = details["errors"].get(variant["id"])
    return [
        variant["name"],
        f"{heads}",
        f"{neurons:,}",
        f"{plan['decoder_weights'] / 1e6:.1f}M",
        *(cell(variant, case) for case in (FORWARD, GENERATE) for cell in (_record.time_cell, _record.speed_cell)),
        str(details["tokens"].get(variant["id"], "-")),
        "-" if error is None else f"{error:.1g}",
    ]


def bar_line(report: Mapping[str, Any], precision: str, bar: float) -> str | None:
    """Whether the issue's bar is reached; None where it was not measured here."""
    variant = next((row for row in report["variants"] if row["id"] == f"{BAR_PLAN}-{precision}"), None)
    found = result_of(variant, GENERATE)
    if variant is None or found is None or found["ratio"] is None:
        return None
    reached = "reached" if found["ratio"]["value"] >= bar else "missed"
    return f"Bar for {precision}: {bar:g}×, {reached}: {_record.speed_cell(variant, GENERATE)}."


def _parts_row(name: str, processes: Sequence[Mapping[str, float]]) -> list[str]:
    middle = {part: statistics.median(found[part] for found in processes) for part in (*PARTS, "steps")}
    step = duration(middle[NEXT_STEPS] / max(1.0, middle["steps"]))
    share = middle[NEXT_STEPS] / sum(middle[part] for part in PARTS)
    return [name, *(digits(middle[part]) for part in PARTS), step, percent(share)]


def _step_row(name: str, step: Mapping[str, Any]) -> list[str]:
    parts = {kind: step["parts"].get(kind, 0.0) for kind in _KINDS}
    return [name, digits(step["ms"]), *map(digits, parts.values()), percent(parts[HEAD] / step["ms"])]
