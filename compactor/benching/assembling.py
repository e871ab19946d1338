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
    base = measurements.variants.get(baseline) if baseline is not None else None
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
        "variants": [
            _describe(
                variant,
                measurements.variants.get(variant.id),
                None if variant.id == baseline else base,
                cases,
                settings,
                extras,
                serve,
            )
            for variant in variants
        ],
        "layers": extras.layers,
        "peak": extras.peak,
        "machine": extras.machine,
        "notes": extras.notes,
    }
    report["verdict"] = judge(report)
    report["notes"] = [*report["notes"], *remarks(report)]
    return report


def _describe(
    variant: Variant,
    measured: Measured | None,
    base: Measured | None,
    cases: Sequence[Case],
    settings: Settings,
    extras: Extras,
    serve: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The row of one variant."""
    failure = _failure(variant, measured)
    usable = measured if failure is None else None
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
        "environment": {} if usable is None else usable.environment,
        "counters": {
            "file_bytes": counters.get("file_bytes"),
            "parameters": counters.get("parameters"),
            "peak_rss_bytes": None if usable is None else max(usable.peak_rss_bytes, default=None),
            "rss_before_bytes": None if usable is None else max(usable.rss_before_bytes, default=None),
        },
        "load_ms": [] if usable is None else usable.load_ms,
        "results": []
        if usable is None
        else [
            _result(variant, case, usable.cases[case.id], _samples(base, case.id), settings, extras)
            for case in cases
            if case.id in usable.cases
        ],
        "server": _server(usable, serve),
        "quality": extras.quality.get(variant.id),
        "profile": next(iter(extras.profiles.get(variant.id, ())), None),
        "profiles": extras.profiles.get(variant.id, []),
    }


def _failure(variant: Variant, measured: Measured | None) -> dict[str, str | None] | None:
    """Why the row has no numbers; None where it has some."""
    if variant.reason is not None:
        return {"what": variant.reason, "where": None, "todo": None}
    if measured is None or (measured.error is None and not measured.load_ms and not measured.serve):
        return {"what": "interrupted before its first process ended", "where": None, "todo": None}
    return measured.error


def _samples(measured: Measured | None, case: str) -> list[list[float]] | None:
    """The samples of each process; None where there are none."""
    if measured is None or measured.error is not None or case not in measured.cases:
        return None
    return [found["samples_ms"] for found in measured.cases[case]]


def _result(
    variant: Variant,
    case: Case,
    processes: Sequence[Mapping[str, Any]],
    base: Sequence[Sequence[float]] | None,
    settings: Settings,
    extras: Extras,
) -> dict[str, Any]:
    """The samples of one case and what follows from them."""
    rounds = [found["samples_ms"] for found in processes]
    summary = summarise(rounds)
    # A sample of a case with several batches is one of them in turn, or in the offline scenario all of them.
    share = 1 if settings.scenario == "offline" else len(case.files)
    per_second = means.median(1e3 * len(samples) / sum(samples) for samples in rounds)
    macs = extras.macs.get(variant.id, {}).get(case.id)
    rate = None if macs is None else macs * per_second
    peak = (extras.peak or {}).get("int8" if variant.precision == "int8" else _peak_precision(variant, extras))
    return {
        "case": case.id,
        "rounds_ms": rounds,
        "first_ms": [found["first_ms"] for found in processes],
        "usage": [found["usage"] for found in processes],
        "summary": dataclasses.asdict(summary),
        "throughput": {
            "examples_per_s": case.examples / share * per_second,
            "tokens_per_s": case.tokens / share * per_second,
        },
        "ratio": None if base is None else dataclasses.asdict(ratio(base, rounds, seed=settings.seed)),
        "agreement": extras.agreements.get(variant.id, {}).get(case.id),
        "macs": macs,
        "macs_per_s": rate,
        "share_of_peak": None if rate is None or peak is None else rate / peak["macs_per_s"],
    }


def _peak_precision(variant: Variant, extras: Extras) -> str:
    """Which of the measured peaks limits a variant that is not int8."""
    return "fp16" if variant.precision == "fp16" and "fp16" in (extras.peak or {}) else "fp32"


def _server(measured: Measured | None, serve: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if serve is None or measured is None or not measured.serve:
        return None
    from compactor.benching.server.serving import combine

    return combine(measured.serve)
