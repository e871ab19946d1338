"""What a report says in sentences: the result, how far it can be trusted, what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compactor.reporting.numbers import digits, duration, points, rate, score_of, times, with_interval
from compactor.reporting.rows import (
    NO_DIFFERENCE,
    Report,
    Row,
    baseline_row,
    best_variant,
    is_server,
    measured,
    only_endpoints,
    part_of,
    primary_metric,
    profiles_of,
    quality_of,
    result_of,
)

_NUMERALS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def summary_sentence(report: Report) -> str:
    """The result for someone who reads one sentence: what is fast, against what, at what loss, and whether it is VALID.

    A difference whose interval holds 1 is called none; what could not be compared is not; an INVALID report says so
    first, and ends with every reason, less the rows and numbers behind its colon.
    """
    hero = best_variant(report)
    if hero is None:
        return f"Nothing was measured{_colon(absences(report))}."
    head, tail = _server_words(report, hero) if is_server(report) else _timing_words(report, hero)
    text = head + _quality_clause(report, hero) + tail
    if report["interrupted"]:
        done = max(len(row["load_ms"]) for row in report["variants"])
        text = f"Interrupted after {done} of {report['settings']['rounds']} rounds: {text}"
    if report["verdict"]["valid"]:
        return f"{text}; VALID."
    reasons = [reason.partition(": ")[0].rstrip(".") for reason in report["verdict"]["reasons"]]
    return f"Not to be relied on: {text}. INVALID{_colon(reasons)}."


def absences(report: Report) -> list[str]:
    """The rows without numbers, each with its reason: ``compact fp16 not run: no CUDA device``."""
    return [f"{row['name']} {absence(row)}" for row in report["variants"] if row["status"] != "measured"]


def absence(row: Row, *, short: bool = False) -> str:
    """Why a row has no numbers, or not these: ``not run: no CUDA device``, ``failed: out of memory``, ``not run``."""
    words = "failed" if row["status"] == "failed" else "not run"
    if short:
        return words
    if row["status"] == "measured":
        return f"{words}: interrupted"
    what = str(row["why"]["what"]).removeprefix(f"{words}: ") if row["why"] else "no reason given"
    return f"{words}: {what}"


def absence_in_full(row: Row) -> str:
    """The same in one line with where it happened and what to do, when they are known."""
    why = row["why"] or {}
    parts = (absence(row), why.get("where") and f"at {why['where']}", why.get("todo"))
    return "; ".join(str(part) for part in parts if part)


def describe_workload(report: Report, case: Mapping[str, Any]) -> str:
    """What one sample answers: one batch, or in the offline scenario all of them; and what is made of them.

    ``one 128-token request``, ``a batch of 8 × 128 tokens``, ``32 new tokens for one 128-token request (4 beams)``.
    """
    inputs, part = _inputs(report, case), part_of(case)
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


def _inputs(report: Report, case: Mapping[str, Any]) -> str:
    batch, seq = case["batch"], case["seq"]
    bucketed = ", bucketed by length" if case["bucketed"] else ""
    if report["settings"]["scenario"] == "offline" and case["batches"] != 1:
        order = ", in the order given" if case["bucketed"] is False else bucketed
        width = f" of {seq} tokens" if seq is not None else ""
        groups = f" in batches of {batch}{order}" if batch > 1 else " one at a time"
        return f"{case['examples']:,} requests{width}{groups}"
    if seq is not None:
        return f"one {seq}-token request" if batch == 1 else f"a batch of {batch} × {seq} tokens"
    return "one request of real length" if batch == 1 else f"a batch of {batch} requests{bucketed}"


def bound_words(server: Mapping[str, Any]) -> str:
    """What has to stay below what: ``p99 under 20 ms``; short probes have no p99, and are judged by their slowest."""
    what = "the largest latency" if server["percentile"] >= 100 else f"p{server['percentile']:g}"
    bound = server["bound_ms"]
    return f"{what} under {bound:g} ms" if bound == int(bound) else f"{what} under {digits(bound)} ms"


def _timing_words(report: Report, hero: Row) -> tuple[str, str]:
    """The first case in full, and what follows behind the quality: the other cases, or why nothing is compared."""
    first = hero["results"][0]
    case = next(case for case in report["workload"]["cases"] if case["id"] == first["case"])
    base, part = baseline_row(report), part_of(case)
    verb = "answers" if part is None else "writes" if part["kind"] == "generate" else "runs"
    head = f"{hero['name']} {verb} {describe_workload(report, case)} in {duration(first['summary']['median'])}"
    if report["settings"]["scenario"] == "offline":
        head += f" ({rate(first['throughput']['examples_per_s'])} examples/s)"
    if base is None or hero is base:
        return head, _alone(report, hero)
    base_first = result_of(base, first["case"])
    if first["ratio"] is not None and base_first is not None:
        head += f", {_ratio_clause(first['ratio'], base['name'], base_first['summary']['median'])}"
    ratios = [(result["case"], result["ratio"]) for result in hero["results"] if result["ratio"] is not None]
    return head, _other_cases(ratios) if len(ratios) > 1 else ""


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
    verdicts = list(dict.fromkeys(ratio["verdict"] for _, ratio in ratios))
    number = _NUMERALS[len(ratios)] if len(ratios) < len(_NUMERALS) else str(len(ratios))
    if verdicts == [NO_DIFFERENCE]:
        return f"; {NO_DIFFERENCE} in any of the {number} cases"
    if len(verdicts) == 1:
        every = "both cases" if len(ratios) == 2 else f"all {number} cases"
        ends = dict.fromkeys((times(min(values)), times(max(values))))  # one where they look the same
        return f"; in {every} {' to '.join(ends)} {'faster' if verdicts == ['faster'] else 'of its speed'}"
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
    def reach(row: Row) -> str:
        best = row["server"]["best_qps"]
        return "at no rate that was tried" if best is None else f"at up to {rate(best)}"

    bound = bound_words(hero["server"])
    if hero["server"]["best_qps"] is None:
        head = f"{hero['name']} kept {bound} {reach(hero)}"
    else:
        head = f"{hero['name']} keeps {bound} {reach(hero)} requests/s"
    base = baseline_row(report)
    if base is None or base is hero:
        return head, _alone(report, hero)
    return head, f"; {base['name']} {reach(base)}"


def _quality_clause(report: Report, hero: Row) -> str:
    found = quality_of(report, hero)
    if found is None:
        return "; quality was not measured"
    name, difference = primary_metric(report), found["difference"]
    if difference is None:
        return f", at {score_of(found)} {name}"
    if difference["changed"] == 0:
        return f", with the same answers ({score_of(found)} {name})"
    verdict = "" if difference["verdict"] == NO_DIFFERENCE else f" ({difference['verdict']})"
    return f", at {points(difference)} points {name}{verdict}"


def _colon(parts: Sequence[str]) -> str:
    return f": {'; '.join(parts)}" if parts else ""


def about_words(report: Report) -> str:
    """Where, when and how much, in a line: ``2026-11-23 22:40:00 UTC · AMD EPYC · 2 threads · 8 processes a variant``.

    With the samples of a case in all processes: ``8 processes a variant, 320 samples in each cell``.
    """
    machine, settings = report["machine"], report["settings"]
    parts = [report["created"].replace("T", " ").replace("Z", " UTC")]
    if machine.get("cpu_model"):
        parts.append(machine["cpu_model"])
    parts += [gpu["name"] for gpu in machine.get("gpus") or ()]
    if not only_endpoints(report):
        parts.append(f"{settings['threads']} thread{'s' * (settings['threads'] != 1)}")
    summaries = [result["summary"] for row in measured(report) for result in row["results"]]
    processes = max((summary["processes"] for summary in summaries), default=settings["rounds"])
    sampled = f"{processes} process{'es' * (processes != 1)} a variant"
    if summaries:
        samples = [summary["samples"] for summary in summaries]
        span = dict.fromkeys((f"{min(samples):,}", f"{max(samples):,}"))  # one where they are the same
        sampled += f", {' to '.join(span)} samples in each cell"
    return " · ".join([*parts, sampled])


def placement_words(report: Report) -> list[str]:
    """Where the nodes of each profiled variant ran, and every node that ran somewhere else."""
    lines = []
    for _, name, profile in profiles_of(report):
        placed = ", ".join(f"{nodes:,} on {provider}" for provider, nodes in profile["placement"].items() if nodes)
        misplaced = profile["misplaced"]
        ending = f"; out of place: {'; '.join(misplaced)}" if misplaced else ""
        lines.append(f"Nodes of {name}: {placed}{ending}.")
    return lines
