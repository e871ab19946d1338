"""What the paper found, and what holds here, by a result of ``sst2.py``.

Everything is computed from the result: a claim holds where the paired difference on the same sentences is significant,
is *not shown* where it is not, and does *not hold* where it is significant the other way.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from compactor.evaluation.quality import BETTER, WORSE, difference
from compactor.reporting.numbers import percent, points, times
from compactor.reporting.rows import result_of

HYBRID = ("hybrid", "hybrid, longer", "hybrid, by λ", "hybrid, filled")
NEAR = 0.02  # densities that differ by no more are equal
SLACK = 5e-4  # of a density that is bounded from above: a block more or less

Row = Mapping[str, Any]
Difference = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Page:
    """A result, with what the tables look up in it.

    Attributes:
        result: What ``sst2.py`` writes.
    """

    result: Mapping[str, Any]

    @property
    def cases(self) -> list[str]:
        """What was timed; nothing before the measurement."""
        report = self.result["latency"]
        return [] if report is None else [case["id"] for case in report["workload"]["cases"]]

    def row(self, name: str) -> Row:
        """The row of that id."""
        return next(row for row in self.result["rows"] if row["id"] == name)

    def find(self, name: str) -> Row | None:
        """The row of that id where it was made."""
        row = self.row(name)
        return row if is_made(row) else None

    def of(self, *families: str) -> list[Row]:
        """The rows of these families, made or not, in their order."""
        return [row for family in families for row in self.result["rows"] if row["family"] == family]

    def made(self, *families: str) -> list[Row]:
        """The rows of runs that were made: of these families, or all."""
        return [row for row in (self.of(*families) if families else self.result["rows"]) if is_made(row)]

    def teachers(self) -> list[tuple[Row, Row]]:
        """Runs with a teacher, made or not, beside the same without."""
        return [(self.row(row["id"].replace("-nt", "")), row) for row in self.of("hybrid, no teacher")]

    def variant(self, row: Row) -> Mapping[str, Any] | None:
        """What was measured of its int8 graph; None where that was another graph, or none."""
        report = self.result["latency"]
        for found in [] if report is None else report["variants"]:
            if found["id"] == f"{row['id']}-int8" and found["sha256"] == row["graphs"]["int8"]:
                return dict(found)
        return None

    def speed(self, row: Row, case: str) -> Mapping[str, Any] | None:
        """The ratio of its int8 graph to the dense fp32 one, with its interval; None where it was not measured."""
        measured = result_of(self.variant(row), case)
        return None if measured is None else measured["ratio"]

    def compare(self, row: Row, other: Row, way: str = "masked") -> Difference:
        """How much better ``row``, asked in one way, answers than ``other``, masked, on the same sentences."""
        texts = (row["answers"][way], other["answers"]["masked"], self.result["references"])
        return difference("accuracy", *([int(digit) for digit in text] for text in texts))


def is_made(row: Row) -> bool:
    """Whether a run was made."""
    return bool(row["status"] == "measured")


def findings(page: Page) -> list[list[str]]:
    """Subject, what the paper says, and what was found here."""

    def told(subject: str, paper: str, found: Iterator[str], otherwise: str = "not run") -> list[str]:
        return [subject, paper, "; ".join(found) or otherwise]

    timed = "not measured"
    everywhere = "hybrid is faster than square blocks everywhere"
    teacher = "helps: +1.0 on SST-2 with 82 % of the weights, +0.8 with 21 %"
    return [
        told("accuracy kept", "hybrid: 88.1 of 88.5 F1 with 24 % of the weights", _bar(page, 0.45, 0.015)),
        told("", "hybrid: 86.1 of 88.5 F1 with 12 %", _bar(page, 0.30, 0.03)),
        told("hybrid and magnitude", "movement beats magnitude at equal density", _more_accurate(page, "magnitude")),
        told("hybrid and struct", "struct is less accurate", _more_accurate(page, "struct")),
        told("", "struct is faster", _faster(page, "struct", "hybrid"), timed),
        told("hybrid and blocks", everywhere, _faster(page, "hybrid", "block-32"), timed),
        told("filled", "filling the surviving heads helps accuracy", _filled(page)),
        told("teacher", teacher, _teacher_helps(page)),
        told("heads", "blocks of 32 leave 54 of 144 heads, rows and columns 86", _heads_left(page)),
        told("block size", "larger blocks are faster; flat from 16 on", _larger_is_faster(page), timed),
        told("int8", "costs 1.5 F1 on a hybrid model, 3.3 times smaller", _int8_costs(page)),
        told("nn_pruning's code", "-", _beats_peer(page)),
    ]


def _bar(page: Page, density: float, loss: float) -> Iterator[str]:
    """Whether the best hybrid model by `dev.tsv`, of those of at most that density, loses at most that much."""
    best = _best_hybrid(page, density)
    asked = f"at most {100 * loss:g} points lost with at most {percent(density)}"
    if best is None:
        yield f"{asked}: not run"
        return
    lost = best["quality"]["masked"]["difference"]
    said = "yes" if lost["value"] >= -loss else "no"
    yield f"{asked}: **{said}**, {best['id']}: {points(lost)} with {percent(best['density'])}"


def _best_hybrid(page: Page, density: float) -> Row | None:
    """Of at most that density, by how good it was while it trained.

    A choice may rest on that, unlike on the sentences that it is judged on.
    """
    rows = [row for row in page.made(*HYBRID) if row["density"] <= density + SLACK]
    return max(rows, key=lambda row: float(row["dev"]["accuracy"]["value"]), default=None)


def _claim(found: Difference, where: str) -> str:
    """A paired difference that should be above zero."""
    held = {BETTER: "**yes**", WORSE: "**no**"}.get(found["verdict"], "not shown")
    return f"{held} {where}: {points(found)} points, p {_p(found['p'])}"


def _p(value: float) -> str:
    return "< 0.001" if value < 1e-3 else f"= {value:.3f}" if value < 0.1 else f"= {value:.2f}"


def _alike(page: Page, name: str, other: str) -> list[tuple[Row, Row]]:
    """The runs that were made of two kinds, wherever both have one of the same density."""
    kinds = ([row for row in page.made() if row["id"].startswith(f"{kind}-0")] for kind in (name, other))
    pairs = itertools.product(*kinds)
    return [(mine, theirs) for mine, theirs in pairs if abs(mine["density"] - theirs["density"]) <= NEAR]


def _more_accurate(page: Page, kind: str) -> Iterator[str]:
    """Whether hybrid is, than another kind of the same density."""
    for hybrid, other in _alike(page, "hybrid", kind):
        yield _claim(page.compare(hybrid, other), f"at {percent(hybrid['density'])}")


def _faster(page: Page, kind: str, than: str) -> Iterator[str]:
    """Whether int8 of one kind is faster than that of another of the same density."""
    for mine, other in _alike(page, kind, than):
        for case in page.cases:
            first, second = page.speed(mine, case), page.speed(other, case)
            if first is not None and second is not None:
                told = f"{times(first['value'])} and {times(second['value'])}"
                yield f"{_held(first, second)} at {percent(mine['density'])}, {case}: {told}"


def _held(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """Whether the interval of one ratio lies above that of the other."""
    if None in (first["low"], first["high"], second["low"], second["high"]):
        return "not shown"
    return "**yes**" if first["low"] > second["high"] else "**no**" if first["high"] < second["low"] else "not shown"


def _filled(page: Page) -> Iterator[str]:
    for row in page.made("hybrid, filled"):
        before = page.find(row["id"].replace("-filled", ""))
        if before is not None:
            where = f"from {percent(before['density'])} to {percent(row['density'])}, {row['steps']:,} steps later"
            yield _claim(page.compare(row, before), where)


def _teacher_helps(page: Page) -> Iterator[str]:
    for row, without in page.teachers():
        if is_made(row) and is_made(without):
            yield _claim(page.compare(row, without), f"at {percent(row['density'])}")


def _heads_left(page: Page) -> Iterator[str]:
    rows = page.made("attention only")
    if len(rows) < 2:
        return
    left = {row["id"].removeprefix("attention-"): row["heads"][0] for row in rows}
    square, lines = left.get("32x32"), left.get("dim")
    held = "" if square is None or lines is None else "**yes**, " if square < lines else "**no**, "
    yield f"{held}of {rows[0]['heads'][1]}: {', '.join(f'{name} {heads}' for name, heads in left.items())}"


def block(row: Row) -> str:
    """The size of a run's blocks: ``32×32``."""
    size = row["id"].split("-")[1]
    return f"{size}×{size}"


def _larger_is_faster(page: Page) -> Iterator[str]:
    rows = page.made("block")[::-1]
    for case in page.cases:
        speeds = [(row, ratio) for row in rows if (ratio := page.speed(row, case)) is not None]
        if len(speeds) > 1:
            told = ", ".join(f"{block(row)} {times(ratio['value'])}" for row, ratio in speeds)
            first, last = speeds[0][1], speeds[-1][1]
            known = first["high"] is not None and last["low"] is not None
            held = "**yes**" if known and last["low"] > first["high"] else "not shown"
            yield f"{held} at {case}: {told}"


def _int8_costs(page: Page) -> Iterator[str]:
    """On the hybrid models: what int8 changes beside the masked model."""
    for row in page.made("hybrid"):
        found = page.compare(row, row, "int8")
        smaller = row["bytes"]["fp32"] / row["bytes"]["int8"]
        yield f"{row['id']}: {points(found)} points, p {_p(found['p'])}, {smaller:.1f} times smaller"


def _beats_peer(page: Page) -> Iterator[str]:
    """The best hybrid model by `dev.tsv` that has no more weights than nn_pruning's."""
    peer = page.find("nn-pruning")
    best = None if peer is None else _best_hybrid(page, peer["density"])
    if peer is not None and best is not None:
        right = [row["quality"]["masked"]["correct"] for row in (best, peer)]
        where = f"{best['id']} with {percent(best['density'])}, {right[0]} right, against {right[1]}"
        yield _claim(page.compare(best, peer), f"{where} with {percent(peer['density'])}")
