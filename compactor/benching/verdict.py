"""Can the numbers be believed: VALID, or INVALID with reasons.

Each threshold asks whether something disturbed the measurement that the intervals do not account for. That processes of
one graph run at different speeds is no reason by itself: virtual machines do that, and a ratio's interval shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

LEAST_ROUNDS = 6
"""Of each variant. With five, chance favours one side in all of them in 2 of 32 runs: no rank test reaches 95 %."""
LEAST_SERVER_PROCESSES = 2
"""Of each variant in the server scenario, where every rate that is reported was confirmed with other arrivals."""
DISTURBED_SHARE = 0.25
"""Of a row's processes. A median of medians stands on the other three quarters; percentiles may suffer."""
OTHERS_SHARE = 0.10
"""Of the machine's cores, used by others: on two cores daemons stay below, and a busy process is half of them."""
WAITED_SHARE = 0.05
"""Of the threads' time, ready but without a core: slower by about as much, and by chance."""
STEAL_SHARE = 0.05
"""Of the machine's time, given to other guests by the hypervisor: the same."""
OWN_SHARE = 0.75
"""Of its threads' time that a process got, where ONNX Runtime's threads spin and thus never rest by themselves."""
LOAD_SHARE = 0.5
"""Of the cores, by the load average before the start: an idle system stays far below."""
WIDEST = 2.25
"""Upper end of a ratio's interval over its lower. Two speeds 1.4 apart, as virtual machines have, reach 1.96."""
WIDEST_SPREAD = 0.6
"""Of the processes' medians, where no interval shows it. Two speeds 1.4 apart reach 0.4, and noise comes on top."""
NOTABLE_SPREAD = 0.2
"""Of the processes' medians, to be remarked on: about what a quiet machine stays within."""
_NAMED = 3  # rows that a reason lists
_TICKS_S = 0.05  # the kernel counts others' time in ticks of 10 ms: what rounding may add up to
_ON_A_GPU = ("cuda", "tensorrt")

_Row = tuple[str, Mapping[str, Any], Mapping[str, Any]]  # "name, case"; the variant; the result


def judge(report: Mapping[str, Any]) -> dict[str, Any]:
    """``valid``, and the ``reasons`` why not, in plain words with numbers. What is unknown is no reason.

    Args:
        report: The content of ``report.json``; its ``verdict`` is not read.
    """
    rows = [
        (f"{variant['name']}, {result['case']}", variant, result)
        for variant in report["variants"]
        for result in variant["results"]
    ]
    reasons = [
        *_judge_amount(report, rows),
        *_judge_cores(report),
        *_judge_load(report, rows),
        *_judge_others(report, rows),
        *_judge_waiting(report, rows),
        *_judge_steal(report, rows),
        *_judge_own_time(report, rows),
        *_judge_width(rows),
        *_judge_spread(rows),
    ]
    return {"valid": not reasons, "reasons": reasons}


def remarks(report: Mapping[str, Any]) -> list[str]:
    """What a reader should know that does not make the report INVALID: variants that failed, uneven processes."""
    failed = [
        (variant["name"], variant["why"]["what"]) for variant in report["variants"] if variant["status"] == "failed"
    ]
    uneven = [
        (f"{variant['name']}, {result['case']}", f"{spread:.0%}")
        for variant in report["variants"]
        for result in variant["results"]
        if (spread := result["summary"]["process_spread"]) is not None and spread > NOTABLE_SPREAD
    ]
    return [
        *_list("failed, the others are not affected", failed),
        *_list("processes of the same graph ran at different speeds (width of the middle 80 %)", uneven),
    ]


def _judge_amount(report: Mapping[str, Any], rows: Sequence[_Row]) -> Iterator[str]:
    """Enough processes, of anything at all."""
    measured = [variant for variant in report["variants"] if variant["status"] == "measured"]
    if not measured:
        yield "nothing was measured"
    few = [(name, str(count)) for name, _, result in rows if (count := len(result["rounds_ms"])) < LEAST_ROUNDS]
    yield from _list(f"fewer than {LEAST_ROUNDS} processes", few)
    served = [(variant["name"], len({probe.get("process", 0) for probe in variant["server"]["probes"]}))
              for variant in measured if variant["server"] is not None]  # fmt: skip
    few = [(name, str(count)) for name, count in served if count < LEAST_SERVER_PROCESSES]
    yield from _list(f"fewer than {LEAST_SERVER_PROCESSES} processes", few)


def _judge_cores(report: Mapping[str, Any]) -> Iterator[str]:
    """As many cores as threads, and the right to use them."""
    threads, machine = report["settings"]["threads"], report["machine"]
    pinned = report["settings"]["affinity"]
    cores = machine["affinity_cores"] if pinned is None else len(pinned)
    if cores is not None and threads > cores:
        yield f"{threads} threads shared {cores} core{'s' * (cores != 1)}, so that they took turns"
    quota = machine["cpu_quota"]
    if quota is not None and threads > quota:
        yield f"{threads} threads under a quota of {quota:g} cores, so that the kernel stopped them now and then"


def _judge_load(report: Mapping[str, Any], rows: Sequence[_Row]) -> Iterator[str]:
    """An idle machine before the start; where known, what others used meanwhile tells more, and counts instead.

    The load average still holds what this command did a minute ago.
    """
    known = any(usage["others_cpu_s"] is not None for _, _, result in rows for usage in result["usage"])
    load, cores = report["machine"]["load_before"], report["machine"]["logical_cores"]
    if not known and load is not None and cores and load > LOAD_SHARE * cores:
        yield f"the load average was {load:.1f} on {_cores(cores)} before the start"


def _judge_others(report: Mapping[str, Any], rows: Sequence[_Row]) -> Iterator[str]:
    cores = report["machine"]["logical_cores"]
    if cores:

        def used(usage: Mapping[str, Any], _: Mapping[str, Any]) -> float | None:
            others: float | None = usage["others_cpu_s"]
            return None if others is None else max(0.0, others - _TICKS_S) / usage["wall_s"]

        yield from _list(
            f"other processes used more than {OTHERS_SHARE:.0%} of the machine's {_cores(cores)}",
            _disturbed(rows, used, lambda share: share > OTHERS_SHARE * cores, "{:.2f} cores"),
        )


def _judge_waiting(report: Mapping[str, Any], rows: Sequence[_Row]) -> Iterator[str]:
    def waited(usage: Mapping[str, Any], variant: Mapping[str, Any]) -> float | None:
        threads = 1 if variant["provider"] in _ON_A_GPU else report["settings"]["threads"]
        return None if usage["waited_s"] is None else usage["waited_s"] / (usage["wall_s"] * threads)

    yield from _list(
        f"threads were ready but had no core for more than {WAITED_SHARE:.0%} of the time",
        _disturbed(rows, waited, lambda share: share > WAITED_SHARE, "{:.0%}"),
    )


def _judge_steal(report: Mapping[str, Any], rows: Sequence[_Row]) -> Iterator[str]:
    cores = report["machine"]["logical_cores"]
    if cores:

        def stolen(usage: Mapping[str, Any], _: Mapping[str, Any]) -> float | None:
            return None if usage["steal_s"] is None else usage["steal_s"] / (usage["wall_s"] * cores)

        yield from _list(
            f"the hypervisor gave more than {STEAL_SHARE:.0%} of the machine's time to others",
            _disturbed(rows, stolen, lambda share: share > STEAL_SHARE, "{:.0%}"),
        )


def _judge_own_time(report: Mapping[str, Any], rows: Sequence[_Row]) -> Iterator[str]:
    """CPU time against wall time times threads, of ONNX Runtime on the CPU with spinning threads.

    Where the kernel tells that others used nothing and no quota holds, threads that used little had little to do.
    """
    threads = report["settings"]["threads"]
    cores = report["machine"]["logical_cores"]
    limited = report["machine"]["cpu_quota"] is not None

    def own(usage: Mapping[str, Any], variant: Mapping[str, Any]) -> float | None:
        if variant["engine"] != "onnxruntime" or variant["provider"] != "cpu" or not report["settings"]["spinning"]:
            return None
        taken = [usage[key] for key in ("others_cpu_s", "steal_s")]
        if not limited and cores and None not in taken and sum(taken) < OTHERS_SHARE * cores * usage["wall_s"]:
            return None
        share: float = usage["cpu_s"] / (usage["wall_s"] * threads)
        return share

    yield from _list(
        f"the threads got less than {OWN_SHARE:.0%} of their time",
        _disturbed(rows, own, lambda share: share < OWN_SHARE, "{:.0%}"),
    )


def _judge_width(rows: Sequence[_Row]) -> Iterator[str]:
    wide = [
        (name, f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]")
        for name, _, result in rows
        if (ratio := result["ratio"]) is not None and ratio["low"] is not None
        if ratio["high"] > WIDEST * ratio["low"]
    ]
    yield from _list(f"the interval's upper end is more than {WIDEST:g} times its lower", wide)


def _judge_spread(rows: Sequence[_Row]) -> Iterator[str]:
    """Only where no ratio has an interval that shows it: with nothing to compare, the median itself is the result."""
    if any(result["ratio"] is not None for _, _, result in rows):
        return
    uneven = [
        (name, f"{spread:.0%}")
        for name, _, result in rows
        if (spread := result["summary"]["process_spread"]) is not None and spread > WIDEST_SPREAD
    ]
    yield from _list(f"the medians of the processes lie more than {WIDEST_SPREAD:.0%} apart", uneven)


def _disturbed(
    rows: Sequence[_Row],
    measure: Callable[[Mapping[str, Any], Mapping[str, Any]], float | None],
    is_bad: Callable[[float], bool],
    form: str,
) -> list[tuple[str, str]]:
    """Rows of which too many processes were disturbed, and by how much: the median of those.

    Args:
        rows: All rows.
        measure: From the usage of a process and its variant; None where it is unknown.
        is_bad: Whether that much disturbs.
        form: How to write it.
    """
    found = []
    for name, variant, result in rows:
        known = [
            much for usage in result["usage"] if usage["wall_s"] > 0 and (much := measure(usage, variant)) is not None
        ]
        bad = sorted(much for much in known if is_bad(much))
        if len(bad) > DISTURBED_SHARE * len(known):
            found.append((name, f"{form.format(bad[len(bad) // 2])} in {len(bad)} of {len(known)} processes"))
    return found


def _list(what: str, entries: Sequence[tuple[str, str]]) -> Iterator[str]:
    """One sentence for all that a reason concerns; none where there is nothing."""
    if entries:
        named = "; ".join(f"{name} ({much})" for name, much in entries[:_NAMED])
        more = f"; and {len(entries) - _NAMED} more" if len(entries) > _NAMED else ""
        yield f"{what}: {named}{more}"


def _cores(count: float) -> str:
    return f"{count:g} core{'s' * (count != 1)}"
