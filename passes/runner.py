"""Runs passes over a graph, and collects what they say of it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from compactor.passes.base import RewriteResult

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Record:
    """What a run of passes did, for the manifest.

    Attributes:
        passes: The text of each of our passes that ran.
        rules: One entry for each rule applied: pass, layer, rule, count.
        refused: One entry for each place left alone: pass, layer, reason.
    """

    passes: list[str] = dataclasses.field(default_factory=list)
    rules: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    refused: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def count(self, rule: str) -> int:
        """How often ``rule`` was applied, over all layers."""
        return sum(entry["count"] for entry in self.rules if entry["rule"] == rule)

    def add(self, other: Record) -> None:
        """Append what another run did; passes that ran in both are named once, at their last place."""
        self.passes = [text for text in self.passes if text not in other.passes] + other.passes
        self.rules += other.rules
        self.refused += [entry for entry in other.refused if entry not in self.refused]


def run_passes(model: ir.Model, passes: Sequence[ir.passes.PassBase], record: Record | None = None) -> None:
    """Run ``passes`` over ``model`` in place and add what they report to ``record``."""
    for step in passes:
        result = step(model)
        if not isinstance(result, RewriteResult):
            continue
        name = str(step).partition("{")[0]
        logger.debug("%s: %d rules applied, %d places left alone", step, len(result.applied), len(result.refused))
        if record is None:
            continue
        record.passes.append(str(step))
        for applied in result.applied:
            _merge(record.rules, {"pass": name, "layer": applied.layer, "rule": applied.rule}, applied.count)
        for refusal in result.refused:
            entry = {"pass": name, "layer": refusal.layer, "reason": refusal.reason}
            if entry not in record.refused:
                record.refused.append(entry)


def _merge(rules: list[dict[str, Any]], key: dict[str, Any], count: int) -> None:
    for entry in rules:
        if all(entry[name] == value for name, value in key.items()):
            entry["count"] += count
            return
    rules.append({**key, "count": count})
