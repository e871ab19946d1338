"""What the benchmarks write: the harness's report with every raw sample, and the tables made from it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import _run
from benchmarks._workshop import say
from compactor.benching.assembling import Extras, assemble
from compactor.benching.card import machine_card
from compactor.benching.counters import file_bytes, model_hash, parameters
from compactor.benching.plan import Case
from compactor.benching.statistics import NO_DIFFERENCE
from compactor.benching.workload import describe_case
from compactor.reporting.numbers import digits, times
from compactor.reporting.rows import result_of

BUSY = 0.5  # load average before a start beyond which the numbers are not worth keeping
PACKAGES = ("onnxruntime", "torch", "transformers", "openvino", "nncf", "ctranslate2", "optimum-onnx")
_DOTS = ("avx512_vnni", "avx_vnni", "amx", "avx512_bf16", "avx2")  # what decides how fast int8 is


def head(kind: str, script: str, argv: Sequence[str] | None) -> dict[str, Any]:
    """What a result begins with: what it is, and which command made it on which machine."""
    return {"schema": 1, "kind": kind, "command": _run.command(script, argv), "machine": machine_card()}


def make_report(
    title: str,
    rows: Sequence[_run.Row],
    found: _run.Run,
    *,
    baseline: str,
    command: str,
    workload: Mapping[str, Any] | None = None,
    profiles: Mapping[str, list[dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    """The harness's report of some rows of a run.

    Args:
        title: What was measured.
        rows: Which.
        found: The run, which may be of more rows.
        baseline: Id of the row that the others are compared with.
        command: How to do it again.
        workload: The report's block; None is random tokens.
        profiles: Where the time goes, a block for each case, by row; None where nobody asked.
    """
    names = {row.id for row in rows}
    variants = [variant for variant in found.variants if variant.id in names]
    counts = {"file_bytes": file_bytes, "parameters": parameters, "sha256": model_hash}
    counters = {
        variant.id: {name: count(variant) for name, count in counts.items()}
        for variant in variants
        if variant.reason is None
    }
    return assemble(
        title=title,
        command=command,
        variants=variants,
        baseline=baseline,
        cases=found.cases,
        workload=_random_tokens(found.cases) if workload is None else workload,
        settings=found.how,
        measurements=found.measurements,
        extras=Extras(counters=counters, profiles=dict(profiles or {}), machine=machine_card()),
        duration_s=found.duration_s,
    )


def _random_tokens(cases: Sequence[Case]) -> dict[str, Any]:
    """The ``workload`` of the report."""
    described = [describe_case(case) for case in cases]
    return {"kind": "synthetic", **dict.fromkeys(("file", "sha256", "examples", "lengths")), "cases": described}


def failures(reports: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the rows that failed, also those whose answers were wrong."""
    return [row["name"] for report in reports for row in report["variants"] if row["status"] == "failed"]


def time_cell(variant: Mapping[str, Any], case: str) -> str:
    """Median and percentiles in milliseconds, ``15.7 [14.9, 17.2]``."""
    result = result_of(variant, case)
    if result is None:
        return "-"
    median, p10, p90 = (digits(result["summary"][name]) for name in ("median", "p10", "p90"))
    return f"{median} [{p10}, {p90}]"


def speed_cell(variant: Mapping[str, Any], case: str) -> str:
    """Times faster than the baseline, with the interval: ``2.10× [2.04, 2.15]``; or why there is none."""
    result = result_of(variant, case)
    if result is None:
        return str(variant["status"])
    ratio = result["ratio"]
    if ratio is None:
        return "1.00×"
    if ratio["low"] is None or ratio["high"] is None:  # too few rounds for an interval
        return times(ratio["value"])
    sign = " ≈" if ratio["verdict"] == NO_DIFFERENCE else ""
    return f"{times(ratio['value'])} [{ratio['low']:.2f}, {ratio['high']:.2f}]{sign}"


def page(*parts: str) -> str:
    """Markdown of its paragraphs and tables."""
    return "\n\n".join(parts)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; every column but the first is aligned right.

    Raises:
        ValueError: A row has another number of cells than the header.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"expected {len(header)} cells, got {len(row)}: {row}")
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def remarks(report: Mapping[str, Any]) -> list[str]:
    """What stands below a report's table: rows without numbers, and whether to believe the others."""
    lines = [
        f"{row['name']}: {row['status']}: {row['why']['what'].removeprefix('not run: ')}."
        for row in report["variants"]
        if row["status"] != "measured" and row["why"] is not None
    ]
    verdict = report["verdict"]
    judged = "VALID" if verdict["valid"] else f"INVALID: {'; '.join(verdict['reasons'])}"
    return [*lines, f"Measurement {judged}."]


def provenance(report: Mapping[str, Any]) -> list[str]:
    """The last lines of a page: how often, on which machine, with which command."""
    settings = report["settings"]
    how = f"{settings['threads']} threads, {settings['rounds']} rounds in ABBA order, each variant in a new process."
    return [how, machine_line(report), f"`{report['command']}`"]


def machine_line(report: Mapping[str, Any]) -> str:
    """One sentence: machine, versions, commit, by the machine card in ``report``."""
    machine = report["machine"]
    isa = [name for name in machine["isa"] or () if name.startswith(_DOTS)]
    virtual = ", virtual" if machine["virtualised"] else ""
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in PACKAGES if name in machine["versions"])
    changed = " with changed files" if machine["dirty"] else ""
    return (
        f"{device_name(report)} ({', '.join(isa) or 'no AVX2'}), {machine['physical_cores']} cores{virtual}, "
        f"{machine['kernel']}; {versions}; commit {machine['commit']}{changed}."
    )


def device_name(report: Mapping[str, Any]) -> str:
    """The GPU where that was measured and is there, else the CPU."""
    gpus = report["machine"]["gpus"] or ()
    if "cuda" in report.get("settings", {}).get("providers", ()) and gpus:
        return str(gpus[0]["name"])
    return str(report["machine"]["cpu_model"])


def warn_if_busy() -> None:
    """Say on stderr that the machine has other work."""
    load = os.getloadavg()[0]
    if load > BUSY:
        say(f"warning: load average {load:.1f} before the start: the numbers will not be worth keeping")


def publish(result: Mapping[str, Any], text: str, out: Path | None) -> None:
    """Print the tables, and record the result where ``--out`` says."""
    print(text)
    if out is not None:
        write_result(out, result, text)


def write_result(path: Path, result: Mapping[str, Any], markdown: str) -> None:
    """Write the result as JSON, and the tables beside it as Markdown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(compact_json(result) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(markdown + "\n", encoding="utf-8")
    say(f"wrote {path} and {path.with_suffix('.md').name}")


def compact_json(value: Any, indent: int = 0) -> str:
    """JSON with a line for each entry, except that lists of plain values stay on one line."""
    if isinstance(value, Mapping) and value:
        entries = [f"{json.dumps(str(key))}: {compact_json(entry, indent + 1)}" for key, entry in value.items()]
    elif isinstance(value, list | tuple) and any(isinstance(entry, Mapping | list | tuple) for entry in value):
        entries = [compact_json(entry, indent + 1) for entry in value]
    else:
        return json.dumps(value, allow_nan=False)
    opening, closing = "{}" if isinstance(value, Mapping) else "[]"
    line = "\n" + " " * indent
    return f"{opening}{line} {f',{line} '.join(entries)}{line}{closing}"
