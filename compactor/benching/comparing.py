"""Did it get slower: two reports of the same measurement, side by side.

Two runs lie hours apart, and a machine is not the same then. Where both measured the same baseline, what is compared is
the speed-up over it, in which the machine cancels; otherwise times are, with room for what a machine may do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compactor.benching.statistics import NO_DIFFERENCE, Ratio, change, ratio, verdict_of
from compactor.errors import UsageError

MACHINE_DRIFT = 1.05
"""How much faster or slower a machine may be at another time; the intervals of bare times reach that much further."""
RATE_TOLERANCE = 1.15
"""How far the server's best rates may differ: they are known to 3 %, of a limit that itself hangs on rare latencies."""
NOT_COMPARABLE = "not comparable"
_SAME_CASE = ("batch", "seq", "batches", "examples", "tokens", "positions", "bucketed", "part")
_SAME_SETTINGS = ("affinity", "spinning", "quick", "rounds", "clock", "seed")

_Report = Mapping[str, Any]
_Both = tuple[_Report | None, _Report | None]  # before and after


def compare(before: _Report, after: _Report) -> dict[str, Any]:
    """What changed between two reports, as JSON values. A ratio above 1 means faster than before, as in a report.

    Args:
        before: The content of the first ``report.json``.
        after: Of the second.

    Returns:
        ``slower``: Whether any row is.
        ``rows``: For each variant and case in both: ``variant``, ``name``, ``case``, ``before_ms``, ``after_ms``
            (medians), ``time`` (a ratio), ``speedup`` (null, or ``before``, ``after`` and the ratio of the two),
            ``decided_by`` (``"speed-up"``, ``"time"`` or null) and ``verdict``. The intervals hold in all rows at once.
        ``server``: For each variant of the server scenario: ``variant``, ``name``, ``before_qps``, ``after_qps``,
            ``value``, ``verdict``, and ``common``: latencies at rates that were tried in both.
        ``baseline``: The id of the baseline, where it is the same in both; null where bare times had to decide.
        ``notes``: How it was decided, and what else differs.

    Raises:
        UsageError: The reports have nothing in common that could be compared.
    """
    _refuse_different_questions(before, after)
    notes = [*_differences(before, after)]
    same_machine = before["machine"]["cpu_model"] == after["machine"]["cpu_model"]
    cases = _common_cases(before, after, notes)
    mine, theirs = _measured(before), _measured(after)
    common = [key for key in mine if key in theirs and _is_same_way(mine[key], theirs[key], notes)]
    notes.extend(_missing(before, after))
    baseline = _common_baseline(before, after, common, notes)
    shown = [key for key in common if key != baseline]
    first, second = ({key: _by_case(row) for key, row in side.items()} for side in (mine, theirs))
    bases = ({}, {}) if baseline is None else (first[baseline], second[baseline])
    pairs = [(key, case) for key in shown for case in cases if case in first[key] and case in second[key]]
    how = {"seed": after["settings"]["seed"], "comparisons": len(pairs)}
    rows = [
        {"variant": key, "name": theirs[key]["name"], "case": case}
        | _row(first[key][case], second[key][case], (bases[0].get(case), bases[1].get(case)), same_machine, how)
        for key, case in pairs
    ]
    server = [
        _server_row(mine[key], theirs[key], notes, same_machine=same_machine)
        for key in shown
        if mine[key]["server"] is not None and theirs[key]["server"] is not None
    ]
    if not rows and not server:
        raise UsageError(
            "the two reports have no variant and case in common",
            where=f"first: {', '.join(mine) or 'nothing measured'}; second: {', '.join(theirs) or 'nothing measured'}",
            todo="measure the same targets on the same inputs in both",
        )
    if baseline is not None:
        notes.extend(_drift_notes(theirs[baseline]["name"], *bases, cases, how["seed"]))
    return {
        "slower": any(row["verdict"] == "slower" for row in (*rows, *server)),
        "rows": rows,
        "server": server,
        "baseline": baseline,
        "notes": notes,
    }


def _refuse_different_questions(before: _Report, after: _Report) -> None:
    """Raises UsageError where the numbers answer different questions."""
    for key in ("scenario", "threads"):
        first, second = before["settings"][key], after["settings"][key]
        if first != second:
            raise UsageError(
                f"the two reports differ in their {key}",
                where=f"first: {first}; second: {second}",
                todo="measure both in the same way",
            )


def _differences(before: _Report, after: _Report) -> Iterator[str]:
    """What the reader should know, apart from the numbers."""
    for words, report in (("first", before), ("second", after)):
        if not report["verdict"]["valid"]:
            yield f"The {words} report is INVALID: {'; '.join(report['verdict']['reasons'])}."
        if report["interrupted"]:
            yield f"The {words} report was interrupted."
    machines = before["machine"], after["machine"]
    versions = [machine["versions"] for machine in machines]
    settings = before["settings"], after["settings"]
    for what, (first, second) in (
        *((key.replace("_", " "), [machine[key] for machine in machines]) for key in ("cpu_model", "kernel")),
        *((name, [side.get(name) for side in versions]) for name in sorted(versions[0].keys() | versions[1].keys())),
        *((f"setting of {key}", [side[key] for side in settings]) for key in _SAME_SETTINGS),
    ):
        if first != second:
            yield f"Another {what}: {first}, then {second}."


def _common_cases(before: _Report, after: _Report, notes: list[str]) -> list[str]:
    """The cases with the same inputs in both reports."""
    first, second = ({case["id"]: case for case in report["workload"]["cases"]} for report in (before, after))
    for key in ("kind", "sha256"):
        if before["workload"][key] != after["workload"][key]:
            notes.append("The inputs come from different files, so no times can be compared.")
            return []
    same = []
    for name in first.keys() & second.keys():
        if all(first[name].get(key) == second[name].get(key) for key in _SAME_CASE):  # reports once had no part
            same.append(name)
        else:
            notes.append(f"The case {name} has other inputs in the second report.")
    return [name for name in first if name in same]


def _measured(report: _Report) -> dict[str, _Report]:
    return {variant["id"]: variant for variant in report["variants"] if variant["status"] == "measured"}


def _by_case(variant: _Report) -> dict[str, _Report]:
    return {result["case"]: result for result in variant["results"]}


def _is_same_way(before: _Report, after: _Report, notes: list[str]) -> bool:
    """Whether two variants of the same id ran in the same way."""
    for key in ("engine", "provider", "precision"):
        if before[key] != after[key]:
            notes.append(f"{after['name']} has another {key}: {before[key]}, then {after[key]}; it is left out.")
            return False
    return True


def _missing(before: _Report, after: _Report) -> Iterator[str]:
    """Variants without numbers in one of the two."""
    for words, one, other in (("second", before, after), ("first", after, before)):
        found = {variant["id"]: variant for variant in other["variants"]}
        for key, variant in _measured(one).items():
            if key not in found:
                yield f"{variant['name']} is not in the {words} report."
            elif found[key]["status"] != "measured":
                yield f"{variant['name']} has no numbers in the {words} report: {found[key]['why']['what']}."


def _common_baseline(before: _Report, after: _Report, common: list[str], notes: list[str]) -> str | None:
    """The id of the baseline, where both reports measured the same one in the same way, and something beside it."""
    if after["settings"]["scenario"] == "server":
        notes.append(f"Rates have no interval: what fell by a factor above {RATE_TOLERANCE:g} counts as slower.")
        return None
    name: str | None = after["baseline"]
    first, second = _measured(before).get(before["baseline"]), _measured(after).get(name or "")
    if first is None or second is None:
        reason = "there is no measured baseline in both reports"
    elif first["id"] != second["id"]:
        reason = f"the reports have different baselines, {first['name']} and {second['name']}"
    elif first["sha256"] != second["sha256"]:
        reason = f"the baseline {second['name']} is another file than before"
    elif first["environment"] != second["environment"]:
        reason = f"the baseline {second['name']} ran with other versions or settings than before"
    elif common == [name]:
        reason = f"there is nothing beside the baseline {second['name']}"
    else:
        notes.append(f"Decided by the speed-up over {second['name']}, the same in both: the machine cancels.")
        return name
    notes.append(
        f"Decided by times alone, with {MACHINE_DRIFT - 1:.0%} of room for what the machine may have changed: {reason}."
    )
    return None


def _row(
    first: _Report,
    second: _Report,
    bases: tuple[_Report | None, _Report | None],
    same_machine: bool,
    how: Mapping[str, int],
) -> dict[str, Any]:
    """One variant and case, beside what the baseline took for it; None where it has no such case."""
    time = ratio(first["rounds_ms"], second["rounds_ms"], paired=False, **how)
    if time.low is not None and time.high is not None:  # the interval also holds what the machine may have changed
        low, high = time.low / MACHINE_DRIFT, time.high * MACHINE_DRIFT
        time = Ratio(time.value, low, high, verdict_of(low, high))
    speedup = None
    before, after = bases
    if before is not None and after is not None:
        found = change((before["rounds_ms"], first["rounds_ms"]), (after["rounds_ms"], second["rounds_ms"]), **how)
        speedup = {
            "before": before["summary"]["median"] / first["summary"]["median"],
            "after": after["summary"]["median"] / second["summary"]["median"],
            **dataclasses.asdict(found),
        }
    return {
        "before_ms": first["summary"]["median"],
        "after_ms": second["summary"]["median"],
        "time": dataclasses.asdict(time),
        "speedup": speedup,
        "decided_by": "speed-up" if speedup is not None else "time" if same_machine else None,
        "verdict": speedup["verdict"] if speedup is not None else time.verdict if same_machine else NOT_COMPARABLE,
    }


def _drift_notes(
    name: str, first: Mapping[str, _Report], second: Mapping[str, _Report], cases: Sequence[str], seed: int
) -> Iterator[str]:
    """Where the baseline itself took another time: the machine changed."""
    for case in cases:
        if case in first and case in second:
            found = ratio(first[case]["rounds_ms"], second[case]["rounds_ms"], paired=False, seed=seed)
            if found.verdict in ("faster", "slower"):
                times = ", then ".join(f"{side[case]['summary']['median']:.2f} ms" for side in (first, second))
                yield f"The machine itself is {found.verdict} than before: {name} took {times} for {case}."


def _server_row(before: _Report, after: _Report, notes: list[str], *, same_machine: bool) -> dict[str, Any]:
    """The highest rates of one variant: without an interval, for the search gives one rate."""
    first, second = before["server"], after["server"]
    rates = first["best_qps"], second["best_qps"]
    same_question = first["max_batch"] == second["max_batch"] and first["bound_ms"] == second["bound_ms"]
    value = rates[1] / rates[0] if rates[0] and rates[1] else None
    if not same_question:
        asked = ", then ".join(
            f"{side['bound_ms']:.1f} ms with batches up to {side['max_batch']}" for side in (first, second)
        )
        notes.append(f"{after['name']} had to keep {asked}: give both runs the same bound to compare rates.")
    if not same_question or not same_machine:
        verdict = NOT_COMPARABLE
    elif rates[0] and (value is None or value < 1 / RATE_TOLERANCE):
        verdict = "slower"  # also where a rate was found and now none is
    elif rates[1] and (value is None or value > RATE_TOLERANCE):
        verdict = "faster"
    else:
        verdict = NO_DIFFERENCE
    # Latencies at the rates that both tried; the first probe of each.
    tried = [{probe["qps"]: probe for probe in reversed(side["probes"])} for side in (first, second)]
    return {
        "variant": after["id"],
        "name": after["name"],
        "before_qps": rates[0],
        "after_qps": rates[1],
        "value": value,
        "verdict": verdict,
        "common": [
            {"qps": rate} | {key: [side[rate][key] for side in tried] for key in ("p50_ms", "p90_ms", "p99_ms")}
            for rate in sorted(tried[0].keys() & tried[1].keys())
        ],
    }
