"""The report ``report.json``: the only truth of a measurement, from which every page and picture derives.

``report.schema.json`` beside this file is the only definition of its shape; ``docs/report.md`` describes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compactor.errors import ModelDirectoryError
from compactor.schema import load_document, read_schema, schema_problems

REPORT_NAME = "report.json"
SCHEMA_VERSION = 1
KIND = "compactor-bench"

_MAX_BYTES = 512 * 2**20  # a million samples take 8 MB; the largest grids of cases have a few millions
_NUMBER = r"-?\d[-+.\deE]*"
_NUMBERS = re.compile(rf"\[\n\s+({_NUMBER}(?:,\n\s+{_NUMBER})*)\n\s*\]")  # strings in JSON hold no line breaks


def report_schema() -> dict[str, Any]:
    """The JSON Schema of ``report.json``, as a dictionary. Do not modify it."""
    return read_schema("compactor.benching", "report.schema.json")


def report_problems(report: object) -> list[str]:
    """Every way in which ``report`` departs from the schema, as ``place: problem``; empty when there is none."""
    problems = schema_problems(report, report_schema(), "report")
    if not problems and isinstance(report, dict):
        problems.extend(_dangling_names(report))
    return problems


def dump_report(report: Mapping[str, Any]) -> str:
    """``report`` as the text of ``report.json``, with every list of numbers on one line.

    Raises:
        ValueError: The report does not follow the schema or holds a NaN. Only our own code writes one.
    """
    problems = report_problems(report)
    if problems:
        raise ValueError("invalid report: " + "; ".join(problems[:10]))
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def load_report(path: str | Path) -> dict[str, Any]:
    """Read and check a report.

    Args:
        path: The file, or the folder that holds it as ``report.json``.

    Raises:
        ModelDirectoryError: There is none, it is something else, damaged, or of a newer compactor.
    """
    path = Path(path)
    file = path / REPORT_NAME if path.is_dir() else path
    remedy = "measure again with 'compactor bench ... -o DIR'"
    if not file.is_file():
        raise ModelDirectoryError(
            f"no '{REPORT_NAME}' in this folder" if path.is_dir() else "no such report",
            where=str(path),
            todo="give the DIR of an earlier 'compactor bench ... -o DIR', or its report.json",
        )
    return load_document(
        file,
        name="report",
        version=SCHEMA_VERSION,
        max_bytes=_MAX_BYTES,
        problems=report_problems,
        remedy=remedy,
        kind=KIND,
    )


def _dangling_names(report: Mapping[str, Any]) -> Iterator[str]:
    """Names of variants and cases that occur twice, or that nothing bears: whoever reads the report looks them up."""
    variants = [variant["id"] for variant in report["variants"]]
    cases = [case["id"] for case in report["workload"]["cases"]]
    for place, names in (("report.variants", variants), ("report.workload.cases", cases)):
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"{place}: two are called '{name}'"
    if report["baseline"] is not None and report["baseline"] not in variants:
        yield f"report.baseline: there is no variant '{report['baseline']}'"
    for index, variant in enumerate(report["variants"]):
        for result in variant["results"]:
            if result["case"] not in cases:
                yield f"report.variants[{index}].results: there is no case '{result['case']}'"
