"""Put together what was measured: the content of ``report.json``, with every number that derives from the samples."""

from __future__ import annotations

import dataclasses
import datetime
import statistics as means
from collections.abc import Mapping, Sequence
from typing import Any

from compactor.benching.plan import Case, Settings, Variant
from compactor.benching.processes import Measured, Measurements
from compactor.benching.report import KIND, SCHEMA_VERSION
from compactor.benching.server.serving import combine
from compactor.benching.statistics import ratio, summarise
from compactor.benching.verdict import judge, remarks


@dataclasses.dataclass
class Extras:
    """What is found out beside the clock; by variant id where it belongs to one.

    Attributes:
        counters: ``file_bytes``, ``parameters``, ``sha256``.
        macs: Multiply-adds of one sample, by case.
        profiles: The ``profiles``.
        agreements: The ``agreement`` block, by case.
        quality: The ``quality`` block.
        peak: The machine's own limit; None where it was not measured.
        layers: Kept heads and neurons; None where no target tells.
        ledgers: What int8 costs, by layer, of each target that says so.
        machine: The machine card.
        notes: What the reader should know.
    """

    counters: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    macs: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    profiles: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    agreements: dict[str, dict[str, dict[str, Any]]] = dataclasses.field(default_factory=dict)
    quality: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    peak: dict[str, Any] | None = None
    layers: list[dict[str, Any]] | None = None
    ledgers: list[Mapping[str, Any]] = dataclasses.field(default_factory=list)
    machine: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)


def assemble(
    *,
    title: str,
    command: str,
    variants: Sequence[Variant],
    baseline: str | None,
    cases: Sequence[Case],
    workload: Mapping[str, Any],
    settings: Settings,
    measurements: Measurements,
    extras: Extras,
    duration_s: float,
    metric: str | None = None,
    serve: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The report, as ``docs/report.md`` describes it.

    Args:
        title: What was measured.
        command: How to do it again.
        variants: All rows, in order, also those that could not run.
        baseline: Id of the variant that the others are compared with; None compares nothing.
        cases: What was timed.
        workload: The inputs, for the reader.
        settings: How it was measured.
        measurements: What the processes gave.
        extras: All the rest.
        duration_s: Of the whole run.
        metric: The quality metric that was asked for.
        serve: The block that the server scenario was started with; None in the others.
    """
    base = measurements.variants.get(baseline or "", Measured())

    def describe(variant: Variant) -> dict[str, Any]:
        """The row of one variant."""
        measured = measurements.variants.get(variant.id, Measured())
        failure = _failure(variant, measured)
        if failure is not None:
            measured = Measured()  # what it gave before it failed counts for nothing
        counters = extras.counters.get(variant.id, {})
        return {
            "id": variant.id,
            "name": variant.name,
            "target": variant.target,
            "engine": variant.engine,
            "provider": variant.provider,
            "precision": variant.precision,
            "file": None if variant.is_endpoint else variant.path.name,
            "sha256": counters.get("sha256"),
            "status": "not run" if variant.reason is not None else "failed" if failure is not None else "measured",
            "why": failure,
            "environment": measured.environment,
            "counters": {
                "file_bytes": counters.get("file_bytes"),
                "parameters": counters.get("parameters"),
                "peak_rss_bytes": max(measured.peak_rss_bytes, default=None),
                "rss_before_bytes": max(measured.rss_before_bytes, default=None),
            },
            "load_ms": measured.load_ms,
            "results": [result(variant, case, measured.cases[case.id]) for case in cases if case.id in measured.cases],
            "server": combine(measured.serve) if serve is not None and measured.serve else None,
            "quality": extras.quality.get(variant.id),
            "profile": next(iter(extras.profiles.get(variant.id, ())), None),
            "profiles": extras.profiles.get(variant.id, []),
        }

    def result(variant: Variant, case: Case, processes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The samples of one case and what follows from them."""
        rounds = [found["samples_ms"] for found in processes]
        ratios = None
        if variant.id != baseline and base.error is None and case.id in base.cases:
            baselines = [found["samples_ms"] for found in base.cases[case.id]]
            ratios = dataclasses.asdict(ratio(baselines, rounds, seed=settings.seed))
        # A sample of a case with several batches is one of them in turn, or in the offline scenario all of them.
        share = 1 if settings.scenario == "offline" else len(case.files)
        per_second = means.median(1e3 * len(samples) / sum(samples) for samples in rounds)
        macs = extras.macs.get(variant.id, {}).get(case.id)
        rate = None if macs is None else macs * per_second
        peaks = extras.peak or {}
        limited = variant.precision == "int8" or (variant.precision == "fp16" and "fp16" in peaks)
        peak = peaks.get(variant.precision if limited else "fp32")
        return {
            "case": case.id,
            "rounds_ms": rounds,
            "first_ms": [found["first_ms"] for found in processes],
            "usage": [found["usage"] for found in processes],
            "summary": dataclasses.asdict(summarise(rounds)),
            "throughput": {
                "examples_per_s": case.examples / share * per_second,
                "tokens_per_s": case.tokens / share * per_second,
            },
            "ratio": ratios,
            "agreement": extras.agreements.get(variant.id, {}).get(case.id),
            "macs": macs,
            "macs_per_s": rate,
            "share_of_peak": None if rate is None or peak is None else rate / peak["macs_per_s"],
        }

    report: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "kind": KIND,
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": command,
        "duration_s": round(duration_s, 1),
        "interrupted": measurements.interrupted,
        "title": title,
        "settings": {
            "scenario": settings.scenario,
            "providers": list(dict.fromkeys(variant.provider for variant in variants)),
            "threads": settings.threads,
            "threads_reason": settings.threads_reason,
            "affinity": None if settings.affinity is None else list(settings.affinity),
            "spinning": settings.spinning,
            "rounds": settings.rounds,
            "order": "ABBA",
            "clock": dataclasses.asdict(settings.clock),
            "seed": settings.seed,
            "quick": settings.quick,
            "metric": metric,
        },
        "workload": dict(workload),
        "baseline": baseline,
        "variants": [describe(variant) for variant in variants],
        "layers": extras.layers,
        "ledgers": extras.ledgers,
        "peak": extras.peak,
        "machine": extras.machine,
        "notes": extras.notes,
    }
    report["verdict"] = judge(report)
    report["notes"] = [*report["notes"], *remarks(report)]
    return report


def _failure(variant: Variant, measured: Measured) -> dict[str, str | None] | None:
    """Why the row has no numbers; None where it has some."""
    what = variant.reason
    if what is None and measured.error is None and not measured.load_ms and not measured.serve:
        what = "interrupted before its first process ended"
    return measured.error if what is None else {"what": what, "where": None, "todo": None}
