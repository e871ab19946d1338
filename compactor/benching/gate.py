"""A gate for a pipeline: does what will be served keep enough of the baseline's answers, and is it fast enough?

Judged is one variant of each target, the one that serving takes: int8 where there is one, else fp16, bf16, fp32.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from compactor.errors import MeasurementError, UsageError

_SERVED = ("int8", "fp16", "bf16", "fp32")  # the first that a target has
_SAME_HIT = "same_first_hit"
_EXPECTED = "expected answers=99.5, speed=1.5 or both, with a comma"


@dataclasses.dataclass(frozen=True)
class Gate:
    """What is asked.

    Attributes:
        answers: Percent of the baseline's answers to keep at least; None does not ask.
        speed: Times as fast as the baseline at least, in every case; None does not ask.
    """

    answers: float | None = None
    speed: float | None = None

    @classmethod
    def parse(cls, text: str) -> Gate:
        """``answers=99.5,speed=1.5``.

        Raises:
            UsageError: It is not that.
        """
        found: dict[str, float] = {}
        for part in text.split(","):
            name, _, number = part.strip().partition("=")
            try:
                value = float(number.strip().removesuffix("%").removesuffix("x"))
            except ValueError as error:
                raise UsageError(f"--gate: '{part.strip()}' asks for nothing", todo=_EXPECTED) from error
            if name not in ("answers", "speed") or name in found:
                raise UsageError(f"--gate: '{name}' is {'twice in it' if name in found else 'unknown'}", todo=_EXPECTED)
            if not (math.isfinite(value) and value > 0) or (name == "answers" and value > 100):
                raise UsageError(f"--gate: {name} cannot be {value:g}", todo=_EXPECTED)
            found[name] = value
        return cls(**found)


@dataclasses.dataclass(frozen=True)
class Judged:
    """One variant at the gate.

    Attributes:
        name: Of the variant.
        facts: What was found, with what was asked: ``99.66 % of 872 answers kept (asked 99.5 %)``.
        misses: Those of the facts that are not enough.
    """

    name: str
    facts: tuple[str, ...]
    misses: tuple[str, ...]

    def __str__(self) -> str:
        """A line for a log."""
        return f"gate {'failed' if self.misses else 'passed'}: {self.name}: {'; '.join(self.misses or self.facts)}"


def judge_gate(report: Mapping[str, Any], gate: Gate) -> list[Judged]:
    """Hold a report's variants against a gate.

    Args:
        report: Of ``bench``.
        gate: What is asked.

    Returns:
        One entry for each target that is not just the baseline.

    Raises:
        MeasurementError: There is nothing to judge, or what is asked was not measured.
    """
    judged = [_judge(variant, gate) for variant in _served(report)]
    if not judged:
        raise MeasurementError(
            "the gate has nothing to judge: only the baseline was measured", todo="name the artefact beside --baseline"
        )
    return judged


def _served(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The variant of each target that serving takes: failed ones too, but none that cannot run here.

    The baseline's own target counts only where there is no other: int8 beside the fp32 of one artefact.
    """
    here = [variant for variant in report["variants"] if variant["status"] != "not run"]
    others = [variant for variant in here if variant["id"] != report["baseline"]]
    whole = next((variant["target"] for variant in here if variant["id"] == report["baseline"]), None)
    apart = [variant for variant in others if variant["target"] != whole]
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for variant in apart or others:
        key = (variant["target"], variant["provider"])
        if key not in found or _rank(variant) < _rank(found[key]):
            found[key] = variant
    return list(found.values())


def _rank(variant: Mapping[str, Any]) -> int:
    precision = variant["precision"]
    return _SERVED.index(precision) if precision in _SERVED else len(_SERVED)


def _judge(variant: Mapping[str, Any], gate: Gate) -> Judged:
    name = variant["name"]
    if variant["status"] != "measured":
        return Judged(name, (), (f"not measured: {variant['why']['what']}",))
    facts: list[str] = []
    misses: list[str] = []

    def note(fact: str, *, enough: bool) -> None:
        facts.append(fact)
        if not enough:
            misses.append(fact)

    if gate.answers is not None:
        kept, count = _kept(variant)
        fact = f"{100 * kept:.2f} % of {count:,} answers kept (asked {gate.answers:g} %)"
        note(fact, enough=100 * kept >= gate.answers)
    if gate.speed is not None:
        ratios = [(result["case"], result["ratio"]) for result in variant["results"] if result["ratio"] is not None]
        if not ratios:
            raise MeasurementError(
                f"the gate asks for a speed, and {name} has none beside the baseline",
                todo="pass --baseline, and leave out --scenario server",
            )
        for case, ratio in ratios:
            fact = f"{ratio['value']:.2f} times as fast at {case} (asked {gate.speed:g})"
            note(fact, enough=ratio["value"] >= gate.speed)
    return Judged(name, tuple(facts), tuple(misses))


def _kept(variant: Mapping[str, Any]) -> tuple[float, int]:
    """The share of the baseline's answers, labels or first hits, that a variant gives too, and how many there are."""
    metrics = (variant["quality"] or {}).get("metrics") or {}
    if _SAME_HIT in metrics:
        return metrics[_SAME_HIT]["value"], metrics[_SAME_HIT]["n"]
    for found in metrics.values():
        if found["difference"] is not None and found["difference"].get("changed") is not None:
            return 1 - found["difference"]["changed"] / found["n"], found["n"]
    raise MeasurementError(
        f"the gate asks for answers, and those of {variant['name']} were not held against the baseline's",
        todo="pass --data FILE with labelled texts, or with pairs for vectors",
    )
