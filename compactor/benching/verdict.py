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

_Variant = Mapping[str, Any]
_Usage = Mapping[str, Any]  # of a process
_Row = tuple[str, _Variant, Mapping[str, Any]]  # "name, case"; the variant; the result


def judge(report: Mapping[str, Any]) -> dict[str, Any]:
    """``valid``, and the ``reasons`` why not, in plain words with numbers. What is unknown is no reason.

    Args:
        report: The content of ``report.json``; its ``verdict`` is not read.
    """
    rows = _rows(report)
    reasons = [
        *_judge_amount(report, rows),
        *_judge_cores(report, rows),
        *_judge_usage(report, rows),
        *_judge_width(rows),
    ]
    return {"valid": not reasons, "reasons": reasons}


def remarks(report: Mapping[str, Any]) -> list[str]:
    """What a reader should know that does not make the report INVALID: variants that failed, uneven processes."""
    failed = [
        (variant["name"], variant["why"]["what"]) for variant in report["variants"] if variant["status"] == "failed"
    ]
    what = "processes of the same graph ran at different speeds (width of the middle 80 %)"
    return [
        *_list("failed, the others are not affected", failed),
        *_list(what, _uneven(_rows(report), NOTABLE_SPREAD)),
    ]


def _rows(report: Mapping[str, Any]) -> list[_Row]:
    return [
        (f"{variant['name']}, {result['case']}", variant, result)
        for variant in report["variants"]
        for result in variant["results"]
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


def _judge_cores(report: Mapping[str, Any], rows: Sequence[_Row]) -> Iterator[str]:
    """As many cores as threads, the right to use them, and an idle machine before the start.

    Where it is known what others used meanwhile, that tells more, and counts instead of the load average, which still
    holds what this command did a minute ago.
    """
    threads, machine = report["settings"]["threads"], report["machine"]
    pinned = report["settings"]["affinity"]
    cores = machine["affinity_cores"] if pinned is None else len(pinned)
    if cores is not None and threads > cores:
        yield f"{threads} threads shared {_cores(cores)}, so that they took turns"
    quota = machine["cpu_quota"]
    if quota is not None and threads > quota:
        yield f"{threads} threads under a quota of {quota:g} cores, so that the kernel stopped them now and then"
    known = any(usage["others_cpu_s"] is not None for _, _, result in rows for usage in result["usage"])
    load, cores = machine["load_before"], machine["logical_cores"]
    if not known and load is not None and cores and load > LOAD_SHARE * cores:
        yield f"the load average was {load:.1f} on {_cores(cores)} before the start"


def _judge_usage(report: Mapping[str, Any], rows: Sequence[_Row]) -> Iterator[str]:
    """What the processes got of the machine, and what was taken from them; each None where it is unknown."""
    threads, spinning = report["settings"]["threads"], report["settings"]["spinning"]
    cores = report["machine"]["logical_cores"] or 0
    limited = report["machine"]["cpu_quota"] is not None

    def others(usage: _Usage, _: _Variant) -> float | None:
        used = usage["others_cpu_s"]
        return None if used is None or not cores else max(0.0, used - _TICKS_S) / usage["wall_s"]

    def waited(usage: _Usage, variant: _Variant) -> float | None:
        waiting = 1 if variant["provider"] in _ON_A_GPU else threads
        return None if usage["waited_s"] is None else usage["waited_s"] / (usage["wall_s"] * waiting)

    def stolen(usage: _Usage, _: _Variant) -> float | None:
        return None if usage["steal_s"] is None or not cores else usage["steal_s"] / (usage["wall_s"] * cores)

    def own(usage: _Usage, variant: _Variant) -> float | None:
        """CPU time against wall time times threads, of ONNX Runtime on the CPU with spinning threads.

        Where the kernel tells that others used nothing and no quota holds, threads that used little had little to do.
        """
        if variant["engine"] != "onnxruntime" or variant["provider"] != "cpu" or not spinning:
            return None
        taken = [usage[key] for key in ("others_cpu_s", "steal_s")]
        if not limited and cores and None not in taken and sum(taken) < OTHERS_SHARE * cores * usage["wall_s"]:
            return None
        share: float = usage["cpu_s"] / (usage["wall_s"] * threads)
        return share

    used_more = f"other processes used more than {OTHERS_SHARE:.0%} of the machine's {_cores(cores)}"
    had_none = f"threads were ready but had no core for more than {WAITED_SHARE:.0%} of the time"
    gave_away = f"the hypervisor gave more than {STEAL_SHARE:.0%} of the machine's time to others"
    got_less = f"the threads got less than {OWN_SHARE:.0%} of their time"
    yield from _list(used_more, _disturbed(rows, others, lambda share: share > OTHERS_SHARE * cores, "{:.2f} cores"))
    yield from _list(had_none, _disturbed(rows, waited, lambda share: share > WAITED_SHARE))
    yield from _list(gave_away, _disturbed(rows, stolen, lambda share: share > STEAL_SHARE))
    yield from _list(got_less, _disturbed(rows, own, lambda share: share < OWN_SHARE))


def _judge_width(rows: Sequence[_Row]) -> Iterator[str]:
    """Intervals of ratios; where there is none, with nothing to compare, the median itself is the result."""
    wide = [
        (name, f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]")
        for name, _, result in rows
        if (ratio := result["ratio"]) is not None and ratio["low"] is not None
        if ratio["high"] > WIDEST * ratio["low"]
    ]
    yield from _list(f"the interval's upper end is more than {WIDEST:g} times its lower", wide)
    if all(result["ratio"] is None for _, _, result in rows):
        what = f"the medians of the processes lie more than {WIDEST_SPREAD:.0%} apart"
        yield from _list(what, _uneven(rows, WIDEST_SPREAD))


def _uneven(rows: Sequence[_Row], most: float) -> list[tuple[str, str]]:
    """Rows whose processes' medians lie further apart."""
    return [
        (name, f"{spread:.0%}")
        for name, _, result in rows
        if (spread := result["summary"]["process_spread"]) is not None and spread > most
    ]


def _disturbed(
    rows: Sequence[_Row],
    measure: Callable[[_Usage, _Variant], float | None],
    is_bad: Callable[[float], bool],
    form: str = "{:.0%}",
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
