"""The tables of ``families.py``: targets, what exports cost, how fast each row is, and where the time goes.

"Stock int8" is what ``quantize_dynamic`` makes of the plain export or of optimum's, whichever is faster in a case.
OpenVINO's static int8 stands beside it, and is judged by no target.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import _record
from compactor.benching.statistics import NO_DIFFERENCE, Ratio, ratio
from compactor.reporting.numbers import bytes_text, digits, interval, percent, times
from compactor.reporting.rows import result_of

SST2 = "SST-2"
STOCK_INT8 = ("dense-plain-int8", "dense-optimum-int8")
STOCK_FP32 = ("dense-plain-fp32", "dense-optimum-fp32")
OPENVINO = ("dense-openvino-int8",)
DENSE, PRUNED = "dense-ours-int8", "pruned-ours-int8"

DENSE_BARS = {"1x128": 1.2, "8x128": 1.2, "batch 1": 1.2, "batch 8": 1.2, SST2: 1.7}  # by case
DEBERTA_BAR = 1.5  # in every case, where the case asks for no more
PRUNED_BAR = 3.0
EXPORT_S, EXPORT_SHARE = 90.0, 4.0  # of wall time; peak memory as a multiple of the model's bytes
_OPERATORS = 5  # that a profile's row names
_SUBLAYERS = ("attention", "feed_forward")

Entry = Mapping[str, Any]  # what a result says of a family


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Ours against others.

    Attributes:
        title: For tables.
        ours: End of the row's id.
        theirs: Ends of the rows' ids; the fastest counts.
        judged: Whether there are targets.
    """

    title: str
    ours: str
    theirs: tuple[str, ...]
    judged: bool = False


COMPARISONS = (
    Comparison("ours int8, dense, against stock int8", DENSE, STOCK_INT8, judged=True),
    Comparison("ours int8, pruned, against stock int8, dense", PRUNED, STOCK_INT8, judged=True),
    Comparison("ours int8, dense, against OpenVINO int8", DENSE, OPENVINO),
    Comparison("ours int8, pruned, against OpenVINO int8, dense", PRUNED, OPENVINO),
    Comparison("ours int8, pruned, against dense", PRUNED, (DENSE,)),
    Comparison("ours fp32, dense, against stock fp32", "dense-ours-fp32", STOCK_FP32),
)


def render(result: Mapping[str, Any]) -> str:
    """The page of all families that a result holds, which may be of different runs."""
    families: Mapping[str, Entry] = result["families"]
    parts = [
        "# The encoders that people deploy today",
        "Random weights in the published sizes. `dense`: all of them; `pruned`: half of the heads and two thirds of "
        "the neurons of every layer planted dead. `plain export`: `torch.onnx.export` of the stock model, its rotary "
        "tables repeated for the batch; int8 of it and of optimum's by `quantize_dynamic` (signed weights, one scale a "
        "column). Stock is the faster of these two in each case. Batch × length, random tokens without padding, or "
        "pictures; `SST-2`: its lengths in batches of 32, in file order, all batches one sample.",
        "## Targets",
        _record.markdown_table(["target", "reached", "missed"], target_rows(families)).replace("---:", "---"),
        "## What exports cost",
        _export_table(families),
        "One export each, in a process of its own, verification included. `left`: of those that the export recognised, "
        "over all layers; the planted number is in brackets where the export kept another.",
    ]
    for entry in families.values():
        parts += _family_page(entry)
    return _record.page(
        *parts,
        "In square brackets: p10 and p90 of all samples, then the 95 % bootstrap interval; ≈ stands for no significant "
        "difference. `error`: root mean square of the difference from PyTorch in fp32 on the same weights, as a share "
        "of the outputs'; the largest over the cases. `memory`: the peak of the process that answered.",
    )


def target_rows(families: Mapping[str, Entry]) -> list[list[str]]:
    """Which cases of which family reach each target; one row a target."""
    verdicts: dict[str, tuple[list[str], list[str]]] = {}
    for entry in families.values():
        for target, what, reached in _verdicts(entry):
            verdicts.setdefault(target, ([], []))[0 if reached else 1].append(what)
    return [
        [target, *("; ".join(found) or "-" for found in (reached, missed))]
        for target, (reached, missed) in verdicts.items()
    ]


def _verdicts(entry: Entry) -> Iterator[tuple[str, str, bool]]:
    """The target, what of this family it is asked of and what came of that, and whether it is reached."""
    name = entry["title"].partition(" (")[0]
    for comparison in COMPARISONS:
        for case in _cases(entry):
            wanted = bar(entry, comparison, case)
            found = compare(entry["report"], comparison, case)
            if wanted is not None and found is not None:
                target = f"{comparison.title}: {times(wanted)}"
                yield target, f"{name} {case} {times(found.value)}", found.value >= wanted
    for kind, cost in entry["exports"].items():
        share = cost["peak_bytes"] / cost["model_bytes"]
        yield f"export under {EXPORT_S:g} s", f"{name} {kind} {cost['wall_s']:.0f} s", cost["wall_s"] < EXPORT_S
        yield f"export's peak under {EXPORT_SHARE:g}×", f"{name} {kind} {times(share)}", share < EXPORT_SHARE


def bar(entry: Entry, comparison: Comparison, case: str) -> float | None:
    """How many times faster ours is to be; None where nothing is asked."""
    if not comparison.judged:
        return None
    if comparison.ours == PRUNED:
        return PRUNED_BAR
    least = DEBERTA_BAR if entry["title"].startswith("DeBERTa") else 0.0
    return max(DENSE_BARS.get(case, 0.0), least) or None


def compare(report: Mapping[str, Any], comparison: Comparison, case: str) -> Ratio | None:
    """How many times faster ours is than the fastest of theirs in the same run; None where one was not measured."""
    ours = _fastest(report, (comparison.ours,), case)
    theirs = _fastest(report, comparison.theirs, case)
    if ours is None or theirs is None:
        return None
    return ratio(theirs["rounds_ms"], ours["rounds_ms"])


def _fastest(report: Mapping[str, Any], ends: tuple[str, ...], case: str) -> Mapping[str, Any] | None:
    """The result of the fastest of the rows whose ids end so."""
    rows = [variant for variant in report["variants"] if variant["id"].endswith(ends)]
    results = [found for variant in rows if (found := result_of(variant, case)) is not None]
    return min(results, key=lambda found: float(found["summary"]["median"]), default=None)


def _cases(entry: Entry) -> list[str]:
    return [case["id"] for case in entry["report"]["workload"]["cases"]]


def _family_page(entry: Entry) -> list[str]:
    report, cases = entry["report"], _cases(entry)
    rows = [_speed_row(entry, variant, cases) for variant in report["variants"] if variant["status"] != "not run"]
    gains = [
        [comparison.title, *(_gain(entry, comparison, case) for case in cases)]
        for comparison in COMPARISONS
        if any(compare(report, comparison, case) is not None for case in cases)
    ]
    parts = [
        f"## {entry['title']}",
        "Milliseconds, then × against the first row.",
        _record.markdown_table(["row", "file", "memory", *cases, "error"], rows),
    ]
    if gains:
        parts.append(_record.markdown_table(["speed", *cases], gains))
    profiles = [row for variant in report["variants"] for row in _profile_rows(variant)]
    if profiles:
        header = ["graph and case", "all nodes, ms", "attention", "feed-forward", "the rest", "slowest operators"]
        parts += ["Where the time goes, by ONNX Runtime's profile:", _record.markdown_table(header, profiles)]
    return [*parts, *_record.remarks(report), *_record.provenance(report)]


def _speed_row(entry: Entry, variant: Mapping[str, Any], cases: Sequence[str]) -> list[str]:
    size, peak = variant["counters"]["file_bytes"], variant["counters"]["peak_rss_bytes"]
    errors = entry["relative_error"].get(variant["id"], {}).values()
    worst = max((error for error in errors if error is not None), default=None)
    return [
        variant["name"],
        "-" if size is None else bytes_text(size),
        "-" if peak is None else bytes_text(peak),
        *(f"{_record.time_cell(variant, case)} {_record.speed_cell(variant, case)}" for case in cases),
        "-" if worst is None else f"{worst:.1e}",
    ]


def _gain(entry: Entry, comparison: Comparison, case: str) -> str:
    """``1.31× [1.28, 1.34], 1.20× reached``."""
    found = compare(entry["report"], comparison, case)
    if found is None:
        return "-"
    sign = " ≈" if found.verdict == NO_DIFFERENCE else ""
    text = f"{times(found.value)} {interval(found.low, found.high)}".rstrip() + sign
    wanted = bar(entry, comparison, case)
    return text if wanted is None else f"{text}, {times(wanted)} {'reached' if found.value >= wanted else 'missed'}"


def _profile_rows(variant: Mapping[str, Any]) -> Iterator[list[str]]:
    """A row for each case: what sublayers and operators take; of graphs that name no sublayers operators alone."""
    for block in variant["profiles"]:
        shares = dict.fromkeys((*_SUBLAYERS, "other"), 0.0)
        for layer in block["layers"]:
            kind = layer["name"].rpartition(".")[2]
            shares[kind if kind in _SUBLAYERS else "other"] += layer["share"]
        named = shares["other"] < 1 - 1e-6
        slowest = [f"{operator['name']} {percent(operator['share'])}" for operator in block["operators"][:_OPERATORS]]
        yield [
            f"{variant['name']}, {block['case']}",
            digits(block["total_ms"]),
            *(percent(share) if named else "-" for share in shares.values()),
            ", ".join(slowest),
        ]


def _export_table(families: Mapping[str, Entry]) -> str:
    rows = []
    for entry in families.values():
        for kind, cost in entry["exports"].items():
            share = cost["peak_bytes"] / cost["model_bytes"]
            rows.append(
                [
                    f"{entry['title']}, {kind}",
                    bytes_text(cost["model_bytes"]),
                    f"{cost['wall_s']:.0f} s",
                    f"{bytes_text(cost['peak_bytes'])}, {times(share)}",
                    *(_left(entry, kind, cost, part) for part in ("heads", "neurons")),
                    "yes" if cost["packed"] else "no",
                ]
            )
    header = ["export", "model", "wall time", "peak memory", "heads left", "neurons left", "packed"]
    return _record.markdown_table(header, rows)


def _left(entry: Entry, kind: str, cost: Mapping[str, Any], part: str) -> str:
    """``72 of 144``, or what was not recognised, or not removed."""
    before, after = cost["left"][part]
    planted = entry["planted"][part][1 if kind == "pruned" else 0]
    if before != entry["planted"][part][0]:
        return f"{after:,} of {before:,} recognised ({planted:,} of {entry['planted'][part][0]:,})"
    return f"{after:,} of {before:,}" + ("" if after == planted else f" ({planted:,})")
