"""What a report says in sentences: the result, how far it can be trusted, what is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from compactor.reporting.numbers import digits, duration, error_text, points, rate, score, times, with_interval

Report = Mapping[str, Any]
Row = Mapping[str, Any]

NO_DIFFERENCE = "no significant difference"
_NUMERALS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def summary_sentence(report: Report) -> str:
    """The result for someone who reads one sentence: what is fast, against what, at what loss, and whether it is VALID.

    A difference whose interval holds 1 is called none; what could not be compared is not; an INVALID report says so
    first.
    """
    ending = verdict_words(report)
    hero = best_variant(report)
    if hero is None:
        return f"Nothing was measured{_colon(absences(report))}."
    head, tail = _server_words(report, hero) if is_server(report) else _timing_words(report, hero)
    text = head + _quality_clause(report, hero) + tail
    opening = "" if report["verdict"]["valid"] else "Not to be relied on: "
    if report["interrupted"]:
        opening += f"Interrupted after {_rounds_done(report)} of {report['settings']['rounds']} rounds: "
    return f"{opening}{text}{'; ' if report['verdict']['valid'] else '. '}{ending}"


def verdict_words(report: Report) -> str:
    """``VALID.``, or ``INVALID`` with every reason, less the rows and numbers behind its colon."""
    verdict = report["verdict"]
    reasons = [reason.partition(": ")[0].rstrip(".") for reason in verdict["reasons"]]
    return "VALID." if verdict["valid"] else f"INVALID{_colon(reasons)}."


def absences(report: Report) -> list[str]:
    """The rows without numbers, each with its reason: ``compact fp16 not run: no CUDA device``."""
    return [f"{row['name']} {absence(row)}" for row in report["variants"] if row["status"] != "measured"]


def absence(row: Row, *, short: bool = False) -> str:
    """Why a row has no numbers: ``not run: no CUDA device``, ``failed: out of memory``."""
    words = "not run" if row["status"] == "not run" else "failed"
    if short:
        return words
    what = str(row["why"]["what"]).removeprefix(f"{words}: ") if row["why"] else "no reason given"
    return f"{words}: {what}"


def absence_in_full(row: Row) -> str:
    """The same, with where it happened and what to do."""
    words = "not run" if row["status"] == "not run" else "failed"
    return f"{words}: {error_text(row['why']).removeprefix(f'{words}: ')}"


def describe_case(case: Mapping[str, Any]) -> str:
    """Inputs in words: ``one 128-token request``, ``a batch of 8 × 128 tokens``; and what is made of them."""
    return _with_part(case, _describe_inputs(case))


def _describe_inputs(case: Mapping[str, Any]) -> str:
    if case["seq"] is not None:
        if case["batch"] == 1:
            return f"one {case['seq']}-token request"
        return f"a batch of {case['batch']} × {case['seq']} tokens"
    bucketed = ", bucketed by length" if case["bucketed"] else ""
    return "one request of real length" if case["batch"] == 1 else f"a batch of {case['batch']} requests{bucketed}"


def part_of(case: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What of an encoder-decoder a case runs; None for a model with one graph, as in all older reports."""
    part: Mapping[str, Any] | None = case.get("part")
    return part


def _with_part(case: Mapping[str, Any], inputs: str) -> str:
    part = part_of(case)
    if part is None:
        return inputs
    match part["kind"]:
        case "generate":
            search = "greedy search" if part["beams"] == 1 else f"{part['beams']} beams"
            return f"{part['new_tokens']} new tokens for {inputs} ({search})"
        case "step":
            return f"one more token, after {part['past']}, for {inputs}"
        case "first step":
            return f"the decoder's first token for {inputs}"
        case _:
            return f"the encoder on {inputs}"


def describe_workload(report: Report, case: Mapping[str, Any]) -> str:
    """What one sample answers: one batch, or in the offline scenario all of them."""
    if report["settings"]["scenario"] != "offline" or case["batches"] == 1:
        return describe_case(case)
    bucketed = (
        ", bucketed by length" if case["bucketed"] else ", in the order given" if case["bucketed"] is False else ""
    )
    width = f" of {case['seq']} tokens" if case["seq"] is not None else ""
    groups = f" in batches of {case['batch']}{bucketed}" if case["batch"] > 1 else " one at a time"
    return _with_part(case, f"{case['examples']:,} requests{width}{groups}")


def is_server(report: Report) -> bool:
    """Whether the rate of arrivals was searched, and no single case timed."""
    return bool(report["settings"]["scenario"] == "server")


def only_endpoints(report: Report) -> bool:
    """Whether all rows are endpoints that somebody else runs: nothing is known of their files, threads and memory."""
    return all(row["engine"] == "http" for row in report["variants"])


def bound_words(server: Mapping[str, Any]) -> str:
    """What has to stay below what: ``p99 under 20 ms``; short probes have no p99, and are judged by their slowest."""
    what = "the largest latency" if server["percentile"] >= 100 else f"p{server['percentile']:g}"
    bound = server["bound_ms"]
    return f"{what} under {bound:g} ms" if bound == int(bound) else f"{what} under {digits(bound)} ms"


def measured(report: Report) -> list[Row]:
    """The rows with numbers, in order."""
    rows = [row for row in report["variants"] if row["status"] == "measured"]
    return [row for row in rows if row["server"] is not None or row["results"]]


def baseline_row(report: Report) -> Row | None:
    """The row that the others are compared with; None where there is none or it has no numbers."""
    return next((row for row in measured(report) if row["id"] == report["baseline"]), None)


def result_of(row: Row | None, case: str) -> Mapping[str, Any] | None:
    """What a row measured in a case; None where it did not."""
    if row is None:
        return None
    return next((result for result in row["results"] if result["case"] == case), None)


def best_variant(report: Report) -> Row | None:
    """The fastest row that is not the baseline; the baseline where it is alone; None where nothing was measured."""
    rows = measured(report)
    others = [row for row in rows if row["id"] != report["baseline"]] or rows
    if not others:
        return None
    if is_server(report):
        return max(others, key=lambda row: row["server"]["best_qps"] or 0.0)
    most = max(len(row["results"]) for row in others)  # after an interrupt, one with every case before one without
    return min((row for row in others if len(row["results"]) == most), key=_typical_ms)


def primary_metric(report: Report) -> str | None:
    """The metric that stands beside speed: the one asked for, or the first that any row has."""
    names = list(
        dict.fromkeys(name for row in report["variants"] if row["quality"] for name in row["quality"]["metrics"])
    )
    wanted = report["settings"]["metric"]
    return wanted if wanted in names else names[0] if names else None


def metric_of(row: Row, metric: str | None) -> Mapping[str, Any] | None:
    """A row's value of a metric; None where it has none."""
    if metric is None or row["quality"] is None:
        return None
    found: Mapping[str, Any] | None = row["quality"]["metrics"].get(metric)
    return found


def metric_name(metric: str) -> str:
    """A metric's name for people: ``exact match``."""
    return metric.replace("_", " ")


def _timing_words(report: Report, hero: Row) -> tuple[str, str]:
    """The first case in full, and what follows behind the quality: the other cases, or why nothing is compared."""
    cases = {case["id"]: case for case in report["workload"]["cases"]}
    first = hero["results"][0]
    base = baseline_row(report)
    base_first = result_of(base, first["case"])
    part = part_of(cases[first["case"]])
    verb = "answers" if part is None else "writes" if part["kind"] == "generate" else "runs"
    head = f"{hero['name']} {verb} {describe_workload(report, cases[first['case']])} in {_time(report, first)}"
    if base is None or hero is base:
        return head, _alone(report, hero)
    if first["ratio"] is not None and base_first is not None:
        head += f", {_ratio_clause(first['ratio'], base['name'], base_first['summary']['median'])}"
    ratios = [(result["case"], result["ratio"]) for result in hero["results"] if result["ratio"] is not None]
    return head, _other_cases(ratios) if len(ratios) > 1 else ""


def _time(report: Report, result: Mapping[str, Any]) -> str:
    text = duration(result["summary"]["median"])
    if report["settings"]["scenario"] == "offline":
        text += f" ({rate(result['throughput']['examples_per_s'])} examples/s)"
    return text


def _ratio_clause(ratio: Mapping[str, Any], base: str, base_ms: float) -> str:
    against = f"{base} ({duration(base_ms)})"
    if ratio["verdict"] == "faster":
        return f"{with_interval(ratio)} faster than {against}"
    if ratio["verdict"] == "slower":
        return f"slower than {against}, at {with_interval(ratio)} of its speed"
    if ratio["verdict"] == NO_DIFFERENCE:
        return f"{NO_DIFFERENCE} from {against}: {with_interval(ratio)}"
    return f"{with_interval(ratio)} the speed of {against}, from {ratio['verdict']}"


def _other_cases(ratios: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """What holds over all cases, once the first was told."""
    values = [ratio["value"] for _, ratio in ratios]
    verdicts = [ratio["verdict"] for _, ratio in ratios]
    number = _NUMERALS[len(ratios)] if len(ratios) < len(_NUMERALS) else str(len(ratios))
    every = "both cases" if len(ratios) == 2 else f"all {number} cases"
    if set(verdicts) == {NO_DIFFERENCE}:
        return f"; {NO_DIFFERENCE} in any of the {number} cases"
    if len(set(verdicts)) == 1:
        ends = dict.fromkeys((times(min(values)), times(max(values))))  # one where they look the same
        span = " to ".join(ends)
        return f"; in {every} {span}" + (" faster" if verdicts[0] == "faster" else " of its speed")
    parts = []
    for verdict in dict.fromkeys(("faster", NO_DIFFERENCE, "slower", *verdicts)):
        held = [f"{case} ({times(ratio['value'])})" for case, ratio in ratios if ratio["verdict"] == verdict]
        if held:
            parts.append(f"{verdict} in {', '.join(held)}")
    return f"; over the {number} cases {'; '.join(parts)}"


def _alone(report: Report, hero: Row) -> str:
    """Why the row is compared with nothing."""
    if hero["id"] == report["baseline"]:
        return "; it is the baseline, and nothing else was measured"
    if report["baseline"] is not None:
        row = next(row for row in report["variants"] if row["id"] == report["baseline"])
        why = absence(row) if row["status"] != "measured" else "has no samples"
        return f"; there is no ratio, because the baseline {row['name']} {why}"
    number = len(measured(report))
    return f"; the fastest of the {number} that ran" if number > 1 else ""


def _server_words(report: Report, hero: Row) -> tuple[str, str]:
    server = hero["server"]
    bound = bound_words(server)
    if server["best_qps"] is None:
        head = f"{hero['name']} kept {bound} at no rate that was tried"
    else:
        head = f"{hero['name']} keeps {bound} at up to {rate(server['best_qps'])} requests/s"
    base = baseline_row(report)
    if base is None or base is hero:
        return head, _alone(report, hero)
    other = base["server"]["best_qps"]
    return head, f"; {base['name']} " + (
        f"at up to {rate(other)}" if other is not None else "at no rate that was tried"
    )


def _quality_clause(report: Report, hero: Row) -> str:
    metric = primary_metric(report)
    found = metric_of(hero, metric)
    if metric is None or found is None:
        return "; quality was not measured"
    name, difference = metric_name(metric), found["difference"]
    if difference is None:
        return f", at {score(found['value'], found['se'])} {name}"
    if difference["changed"] == 0:
        return f", with the same answers ({score(found['value'], found['se'])} {name})"
    verdict = "" if difference["verdict"] == NO_DIFFERENCE else f" ({difference['verdict']})"
    return f", at {points(difference)} points {name}{verdict}"


def _typical_ms(row: Row) -> float:
    """The geometric mean over the cases: each counts the same, however long its inputs."""
    logs = [math.log(max(result["summary"]["median"], 1e-9)) for result in row["results"]]
    return math.exp(sum(logs) / len(logs))


def _rounds_done(report: Report) -> int:
    return max((len(row["load_ms"]) for row in report["variants"]), default=0)


def _colon(parts: Sequence[str]) -> str:
    return f": {'; '.join(parts)}" if parts else ""


def about_words(report: Report) -> str:
    """Where, when and how much, in a line: ``23 November 2026, AMD EPYC, 2 threads, 8 processes a variant``."""
    machine = report["machine"]
    parts = [report["created"].replace("T", " ").replace("Z", " UTC")]
    if machine.get("cpu_model"):
        parts.append(machine["cpu_model"])
    parts += [gpu["name"] for gpu in machine.get("gpus") or ()]
    threads = report["settings"]["threads"]
    if not only_endpoints(report):
        parts.append(f"{threads} thread{'s' if threads != 1 else ''}")
    parts.append(sample_words(report))
    return " · ".join(parts)


def sample_words(report: Report) -> str:
    """What was sampled: ``8 processes a variant, 320 samples a case``."""
    results = [result for row in measured(report) for result in row["results"]]
    if not results:
        return _processes(report["settings"]["rounds"])
    samples = sorted(result["summary"]["samples"] for result in results)
    processes = max(result["summary"]["processes"] for result in results)
    span = f"{samples[0]:,}" if samples[0] == samples[-1] else f"{samples[0]:,} to {samples[-1]:,}"
    return f"{_processes(processes)}, {span} samples in each cell"


def _processes(number: int) -> str:
    return f"{number} process{'es' if number != 1 else ''} a variant"


def profiles_of(report: Report, row: Row) -> list[tuple[str, Mapping[str, Any]]]:
    """What was profiled of a row, with a name: the row's, and of an encoder-decoder the part's."""
    found = row.get("profiles") or ([] if row["profile"] is None else [row["profile"]])
    parts = {case["id"]: part_of(case) for case in report["workload"]["cases"]}
    return [
        (row["name"] if (part := parts.get(profile["case"])) is None else f"{row['name']}, {part['kind']}", profile)
        for profile in found
    ]


def placement_words(report: Report) -> list[str]:
    """Where the nodes of each profiled variant ran, and every node that ran somewhere else."""
    lines = []
    for name, profile in (pair for row in report["variants"] for pair in profiles_of(report, row)):
        placed = ", ".join(f"{nodes:,} on {provider}" for provider, nodes in profile["placement"].items() if nodes)
        misplaced = profile["misplaced"]
        ending = f"; out of place: {'; '.join(misplaced)}" if misplaced else ""
        lines.append(f"Nodes of {name}: {placed}{ending}.")
    return lines
