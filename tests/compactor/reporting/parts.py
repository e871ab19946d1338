"""Reports of encoder-decoders, made up: those of ``reports.py`` with every part of every shape."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from compactor.benching.plan import Part
from compactor.benching.report import report_problems
from tests.compactor.reports import make_report

PARTS = (
    Part("generate", new_tokens=32, beams=1),
    Part("generate", new_tokens=32, beams=4),
    Part("encoder"),
    Part("first step"),
    Part("step", past=16),
)
SHAPES = ("1x128", "8x128")


def make_parts_report(shapes: tuple[str, ...] = SHAPES[:1], **knobs: Any) -> dict[str, Any]:
    """A made-up report with every part of every shape; the PyTorch row is the baseline."""
    report = make_report(cases=shapes, **knobs)
    cases = {case["id"]: case for case in report["workload"]["cases"]}
    report["workload"]["cases"] = [_case(cases[shape], part) for shape in shapes for part in PARTS]
    for row in report["variants"]:
        results = {found["case"]: found for found in row["results"]}
        row["results"] = [_result(row, results[shape], part) for shape in shapes for part in PARTS if results]
        row["profiles"] = []
        if row["profile"] is not None:
            kinds = (PARTS[0], *PARTS[2:])
            row["profiles"] = [row["profile"] | {"case": f"{part.words}, {shapes[0]}"} for part in kinds]
            row["profile"] = row["profiles"][0]
    report["layers"] = [
        {"name": name, "heads_before": 12, "heads_after": heads, "neurons_before": before, "neurons_after": before}
        for name, heads, before in (
            ("encoder.layers.0", 5, 3072),
            ("decoder.layers.0", 4, 3072),
            ("decoder.layers.0, cross-attention", 3, None),
        )
    ]
    assert report_problems(report) == []
    return report


def _case(case: dict[str, Any], part: Part) -> dict[str, Any]:
    fields = dataclasses.asdict(part)
    del fields["may_end"]
    return case | {"id": f"{part.words}, {case['id']}", "part": fields}


def _result(row: dict[str, Any], result: dict[str, Any], part: Part) -> dict[str, Any]:
    found: dict[str, Any] = copy.deepcopy(result) | {"case": f"{part.words}, {result['case']}", "agreement": None}
    if found["ratio"] is not None:
        same = 8 if row["precision"] == "fp32" else 3
        texts = {"texts": 8, "same_texts": same, "max_abs_diff": None, "max_abs": None}
        numbers = {"texts": None, "same_texts": None, "max_abs_diff": 1e-6 if same == 8 else 0.0123, "max_abs": 4.56}
        found["agreement"] = texts if part.kind == "generate" else numbers
    return found
