"""How fast each variant is, case by case."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compactor.reporting.numbers import count, digits, percent, rate, with_interval
from compactor.reporting.tables.table import Cell, Table, Tone, name_cell
from compactor.reporting.words import (
    NO_DIFFERENCE,
    Report,
    Row,
    absence,
    baseline_row,
    describe_workload,
    measured,
    part_of,
    result_of,
)

_LEAST_SHARE = 1e-4  # of the largest output: less is rounding


def speed_table(report: Report) -> Table:
    """Times, ratios and rates of each variant, case by case."""
    results = [result for row in measured(report) for result in row["results"]]
    with_p99 = any(result["summary"]["p99"] is not None for result in results)
    with_macs = any(result["macs_per_s"] is not None for result in results)
    with_share = any(result["share_of_peak"] is not None for result in results)
    with_agreement = any(result.get("agreement") is not None for result in results)
    base = baseline_row(report)
    columns = ["variant", ">median, ms", ">p10 to p90", ">p95"]
    columns += [">p99"] * with_p99
    columns += [">against the baseline"] * (report["baseline"] is not None)
    columns += [">outputs differ in"] * with_agreement
    columns += [">examples/s", ">tokens/s"]
    columns += [">MAC/s"] * with_macs + [">of the peak"] * with_share

    def cells(row: Row, case: Mapping[str, Any]) -> tuple[Cell, ...]:
        result = result_of(row, case["id"])
        if row["status"] != "measured":
            return (name_cell(report, row), Cell(absence(row), "muted", absent=True))
        if result is None:
            return (name_cell(report, row), Cell("not run: interrupted before this case", "muted", absent=True))
        summary, throughput = result["summary"], result["throughput"]
        found = [
            name_cell(report, row),
            Cell(digits(summary["median"])),
            Cell(f"{digits(summary['p10'])} to {digits(summary['p90'])}"),
            Cell(digits(summary["p95"])),
        ]
        if with_p99:
            found.append(Cell(digits(summary["p99"])) if summary["p99"] is not None else Cell("too few", "muted"))
        if report["baseline"] is not None:
            found.append(_ratio(report, row, base, result))
        if with_agreement:
            found.append(_agreement(report, row, result))
        found += [Cell(rate(throughput["examples_per_s"])), Cell(rate(throughput["tokens_per_s"]))]
        if with_macs:
            found.append(_rate_of_macs(result["macs_per_s"]))
        if with_share:
            share = result["share_of_peak"]
            found.append(Cell("not measured", "muted") if share is None else Cell(percent(share)))
        return tuple(found)

    groups = tuple(
        (f"{case['id']}: {describe_workload(report, case)}", tuple(cells(row, case) for row in report["variants"]))
        for case in report["workload"]["cases"]
    )
    sample = (
        "all batches of the case, one after the other" if report["settings"]["scenario"] == "offline" else "one batch"
    )
    caption = (
        f"A sample is {sample}. The median is that of the processes' medians. A ratio is the baseline's median over "
        "the row's: above 1× is faster; in brackets its bootstrap 95 % interval over processes and samples."
    )
    if with_p99:
        caption += " A p99 takes 1,000 samples."
    if any(part_of(case) is not None for case in report["workload"]["cases"]):
        caption += (
            " Tokens are those written, batch × new tokens whatever the beams; the encoder's are those of the source."
        )
    if with_agreement:
        caption += (
            " Outputs differ from the baseline's, on the same inputs, in so many texts, or by so much of the largest "
            "state or logit."
        )
    if with_share:
        caption += " The peak is one large matrix product in the row's precision, measured in the same run."
    return Table("speed", "Speed", tuple(columns), groups, caption)


def _ratio(report: Report, row: Row, base: Row | None, result: Mapping[str, Any]) -> Cell:
    ratio = result["ratio"]
    if ratio is None:
        return Cell("baseline" if row["id"] == report["baseline"] else "no baseline", "muted")
    if ratio["verdict"] == NO_DIFFERENCE:
        return Cell(NO_DIFFERENCE, "muted", note=with_interval(ratio))
    tone: Tone = {"faster": "good", "slower": "bad"}.get(ratio["verdict"], "muted")  # type: ignore[assignment]
    return Cell(with_interval(ratio), tone, note=ratio["verdict"])


def _agreement(report: Report, row: Row, result: Mapping[str, Any]) -> Cell:
    found = result.get("agreement")
    if found is None:
        return Cell("baseline" if row["id"] == report["baseline"] else "not compared", "muted")
    if found["texts"] is not None:
        different = found["texts"] - found["same_texts"]
        return Cell(f"{different} of {found['texts']} texts") if different else Cell("no token", "good")
    if found["max_abs_diff"] is None:
        return Cell("not comparable", "bad")
    share = found["max_abs_diff"] / found["max_abs"] if found["max_abs"] else found["max_abs_diff"]
    return Cell(f"{100 * share:.2g} %" if share >= _LEAST_SHARE else f"below {100 * _LEAST_SHARE:g} %")


def _rate_of_macs(value: float | None) -> Cell:
    return Cell("not counted", "muted") if value is None else Cell(count(int(value)))
