"""How fast each variant is, case by case."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compactor.reporting.numbers import count, digits, percent, rate, with_interval
from compactor.reporting.rows import NO_DIFFERENCE, Report, Row, measured, part_of, result_of
from compactor.reporting.tables.table import TONES, Cell, Column, Table, known, make_table, name_cell, uncompared
from compactor.reporting.words import absence, describe_workload

_LEAST_SHARE = 1e-4  # of the largest output: less is rounding


def speed_table(report: Report) -> Table:
    """Times, ratios and rates of each variant, case by case; a column is there where any row has something for it."""
    results = [result for row in measured(report) for result in row["results"]]
    offline = report["settings"]["scenario"] == "offline"
    sample = "all batches of the case, one after the other" if offline else "one batch"
    caption = (
        f"A sample is {sample}. The median is that of the processes' medians. A ratio is the baseline's median over "
        "the row's: above 1× is faster; in brackets its bootstrap 95 % interval over processes and samples."
    )
    columns: list[Column] = [
        ("variant", lambda row, _: name_cell(report, row)),
        (">median, ms", lambda _, result: Cell(digits(result["summary"]["median"]))),
        (">p10 to p90", lambda _, result: Cell(" to ".join(digits(result["summary"][p]) for p in ("p10", "p90")))),
        (">p95", lambda _, result: Cell(digits(result["summary"]["p95"]))),
    ]
    if any(result["summary"]["p99"] is not None for result in results):
        columns.append((">p99", lambda _, result: known(result["summary"]["p99"], digits, "too few")))
        caption += " A p99 takes 1,000 samples."
    if report["baseline"] is not None:
        columns.append((">against the baseline", lambda row, result: ratio_cell(report, row, result)))
    if any(part_of(case) is not None for case in report["workload"]["cases"]):
        caption += (
            " Tokens are those written, batch × new tokens whatever the beams; the encoder's are those of the source."
        )
    if any(result.get("agreement") is not None for result in results):
        columns.append((">outputs differ in", lambda row, result: _agreement(report, row, result)))
        caption += (
            " Outputs differ from the baseline's, on the same inputs, in so many texts, or by so much of the largest "
            "state or logit."
        )
    columns.append((">examples/s", lambda _, result: Cell(rate(result["throughput"]["examples_per_s"]))))
    columns.append((">tokens/s", lambda _, result: Cell(rate(result["throughput"]["tokens_per_s"]))))
    if any(result["macs_per_s"] is not None for result in results):
        columns.append((">MAC/s", lambda _, result: known(result["macs_per_s"], count, "not counted")))
    if any(result["share_of_peak"] is not None for result in results):
        columns.append((">of the peak", lambda _, result: known(result["share_of_peak"], percent, "not measured")))
        caption += " The peak is one large matrix product in the row's precision, measured in the same run."

    def why_absent(row: Row, result: Mapping[str, Any] | None) -> str | None:
        before = " before this case" if row["status"] == "measured" else ""
        return f"{absence(row)}{before}" if result is None else None

    groups = {
        f"{case['id']}: {describe_workload(report, case)}": [
            (row, result_of(row, case["id"])) for row in report["variants"]
        ]
        for case in report["workload"]["cases"]
    }
    return make_table("speed", "Speed", columns, groups, caption, absence=why_absent)


def ratio_cell(report: Report, row: Row, result: Mapping[str, Any]) -> Cell:
    """How many times as fast a row is as the baseline, with what that means in its note."""
    ratio = result["ratio"]
    if ratio is None:
        return uncompared(report, row, "no baseline")
    if ratio["verdict"] == NO_DIFFERENCE:
        return Cell(NO_DIFFERENCE, "muted", note=with_interval(ratio))
    return Cell(with_interval(ratio), TONES.get(ratio["verdict"], "muted"), note=ratio["verdict"])


def _agreement(report: Report, row: Row, result: Mapping[str, Any]) -> Cell:
    found = result.get("agreement")
    if found is None:
        return uncompared(report, row, "not compared")
    if found["texts"] is not None:
        different = found["texts"] - found["same_texts"]
        return Cell(f"{different} of {found['texts']} texts") if different else Cell("no token", "good")
    if found["max_abs_diff"] is None:
        return Cell("not comparable", "bad")
    share = found["max_abs_diff"] / found["max_abs"] if found["max_abs"] else found["max_abs_diff"]
    return Cell(f"{100 * share:.2g} %" if share >= _LEAST_SHARE else f"below {100 * _LEAST_SHARE:g} %")
