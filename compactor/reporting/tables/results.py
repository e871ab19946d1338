"""The results: how fast each variant is, case by case or under load, and what it needs and gives."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from compactor.reporting.numbers import bytes_text, count, digits, percent, points, rate, score_of, with_interval
from compactor.reporting.rows import (
    NO_DIFFERENCE,
    Report,
    Row,
    best_probe,
    is_server,
    measured,
    metric_name,
    metric_of,
    metrics_of,
    only_endpoints,
    part_of,
    result_of,
)
from compactor.reporting.tables.table import TONES, Cell, Column, Table, known, make_table, name_cell, uncompared
from compactor.reporting.words import absence, bound_words, describe_workload

_LEAST_SHARE = 1e-4  # of the largest output: less is rounding


def result_tables(report: Report) -> list[Table]:
    """What a decision needs: speed, then what it costs."""
    first = server_table(report) if is_server(report) else speed_table(report)
    return [first] if only_endpoints(report) else [first, cost_table(report)]


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


def server_table(report: Report) -> Table:
    """The highest rate of each variant, and the latency there."""
    bound = next((f" with {bound_words(row['server'])}" for row in measured(report)), "")
    columns: list[Column] = [
        ("variant", lambda row, _: name_cell(report, row)),
        (f">highest rate{bound}, 1/s", lambda row, best: Cell(rate(best["qps"]), note=row["server"]["note"] or "")),
        (">p50, ms", _number("p50_ms")),
        (">p90, ms", _number("p90_ms")),
        (">p99, ms", _number("p99_ms", "too few queries")),
        (">mean batch", _number("mean_batch")),  # which nobody here sees of an endpoint
    ]

    def why_absent(row: Row, best: Mapping[str, Any] | None) -> str | None:
        if row["server"] is None:
            return absence(row)
        return None if best is not None else row["server"]["note"] or "none of the rates tried"

    caption = (
        "Poisson arrivals with a fixed seed; latency counts from the scheduled arrival, waiting in the queue included."
    )
    rows = [(row, best_probe(row["server"])) for row in report["variants"]]
    title = "Highest rate under the bound"
    return make_table("server-rates", title, columns, {None: rows}, caption, absence=why_absent)


def probe_tables(report: Report) -> list[Table]:
    """Every rate that was tried, a table for each variant; none but in the server scenario."""
    columns: list[Column] = [
        (">offered, 1/s", lambda probe: Cell(rate(probe["qps"]))),
        (">achieved, 1/s", lambda probe: Cell(rate(probe["achieved_qps"]))),
        (">queries", lambda probe: Cell(f"{probe['queries']:,}")),
        (">p50, ms", _number("p50_ms", "no answer")),
        (">p90, ms", _number("p90_ms", "no answer")),
        (">p99, ms", _number("p99_ms", "too few queries")),
        (">max, ms", _number("max_ms", "no answer")),
        (">mean batch", _number("mean_batch")),
        ("within the bound", _within_the_bound),
    ]
    tables = []
    for index, row in enumerate(row for row in measured(report) if row["server"] is not None):
        probes = [(probe,) for probe in sorted(row["server"]["probes"], key=lambda probe: probe["qps"])]
        tables.append(make_table(f"probes-{index}", f"Rates tried: {row['name']}", columns, {None: probes}))
    return tables


def _number(field: str, missing: str = "unknown") -> Callable[..., Cell]:
    """What makes a cell of a field of the last of its arguments, such as a probe."""
    return lambda *thing: known(thing[-1][field], digits, missing)


def _within_the_bound(probe: Mapping[str, Any]) -> Cell:
    """Whether the rate held; where queries failed, how many of each kind."""
    if probe["ok"] and not probe["saturated"]:
        return Cell("yes", "good")
    statuses = (probe.get("statuses") or {}).items()
    failed = [f"{number:,} {name.replace('_', ' ')}" for name, number in statuses if number and name != "ok"]
    return Cell("no: saturated" if probe["saturated"] else "no", "bad", note=", ".join(failed))


def cost_table(report: Report) -> Table:
    """What each variant needs and gives: file, memory, start, quality."""
    differences = [metric["difference"] for row in report["variants"] for metric in _compared(row)]
    columns: list[Column] = [
        ("variant", lambda row: name_cell(report, row)),
        (">file", lambda row: known(row["counters"]["file_bytes"], bytes_text)),
        (">parameters", lambda row: known(row["counters"]["parameters"], count)),
    ]
    always = len(columns)  # also where nothing was measured
    for name in metrics_of(report):
        columns.append(
            (f">{metric_name(name)}", lambda row, name=name: known(metric_of(row, name), score_of, "not measured"))
        )
        if any((metric_of(row, name) or {}).get("difference") is not None for row in report["variants"]):
            columns.append((">difference, points", lambda row, name=name: _difference(report, row, name)))
    with_quality = len(columns) > always
    if any(difference["changed"] is not None for difference in differences):
        columns.append((">answers changed", lambda row: _changed(report, row)))
    columns.append((">peak memory", lambda row: _peak(row["counters"])))
    columns.append((">load, ms", lambda row: _median(row["load_ms"])))
    if not is_server(report):
        columns.append(
            (">first answer, ms", lambda row: _median(row["results"][0]["first_ms"] if row["results"] else []))
        )
    caption = "Load and first answer are medians over processes, each new. Peak memory is that of the whole process."
    if with_quality:
        caption = f"Quality ± standard error. {caption}"
    if differences:
        caption = f"Differences are paired, example by example, with the baseline. {caption}"
    title = "Size, quality, memory" if with_quality else "Size and memory"
    rows = {None: [(row,) for row in report["variants"]]}

    def why_absent(row: Row) -> str | None:
        return None if row["status"] == "measured" else absence(row)

    return make_table("cost", title, columns, rows, caption, absence=why_absent, always=always)


def _compared(row: Row) -> list[Mapping[str, Any]]:
    """The metrics that were compared with the baseline's."""
    metrics = row["quality"]["metrics"].values() if row["quality"] else ()
    return [metric for metric in metrics if metric["difference"] is not None]


def _difference(report: Report, row: Row, name: str) -> Cell:
    difference = (metric_of(row, name) or {}).get("difference")
    if difference is None:
        return uncompared(report, row, "not measured")
    if difference["changed"] == 0:
        return Cell("none", note="the same answers")
    return Cell(points(difference), TONES.get(difference["verdict"], ""), note=difference["verdict"])


def _changed(report: Report, row: Row) -> Cell:
    for metric in _compared(row):
        if metric["difference"]["changed"] is not None:
            return Cell(f"{metric['difference']['changed']:,} of {metric['n']:,}")
    return uncompared(report, row, "not measured")


def _peak(counters: Mapping[str, Any]) -> Cell:
    peak, before = counters["peak_rss_bytes"], counters["rss_before_bytes"]
    if peak is None:
        return Cell("not measured", "muted")
    return Cell(bytes_text(peak), note="" if before is None else f"{bytes_text(before)} before loading")


def _median(values: Sequence[float]) -> Cell:
    return known(statistics.median(values) if values else None, digits, "not measured")
