"""The page of the families: which rows are compared, what targets are judged by, and what it says of exports."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _families_page, _record, families
from benchmarks._families_page import SST2
from benchmarks._family_models import FAMILIES, Family
from tests.benchmarks.made_up import CASE, run_of

MODERNBERT, DEBERTA = FAMILIES[0], FAMILIES[1]
TIMES = {
    "dense-plain-fp32": 40.0,
    "dense-plain-int8": 20.0,
    "dense-optimum-fp32": 38.0,
    "dense-optimum-int8": 18.0,
    "dense-openvino-int8": 10.0,
    "dense-ours-fp32": 30.0,
    "dense-ours-int8": 13.0,
    "pruned-ours-int8": 5.0,
}
COST = {
    "wall_s": 60.0,
    "peak_bytes": 2_400_000_000,
    "model_bytes": 600_000_000,
    "left": {"heads": [264, 264], "neurons": [25_344, 25_344]},
    "packed": True,
}


def _entry(
    family: Family = MODERNBERT,
    times: Mapping[str, float] = TIMES,
    case: str = "1x128",
    exports: Mapping[str, Any] | None = None,
    profiles: Mapping[str, list[dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    rows = families.make_rows(Path("work"), family, "python")
    found = run_of(
        rows, {f"{family.name}-{id}": ms for id, ms in times.items()}, dataclasses.replace(CASE, id=case, seq=None)
    )
    report = _record.make_report(
        "A title", rows, found, baseline=rows[0].id, command="a command", profiles=profiles or {}
    )
    entry = families.describe(Path("work"), family, found, report)
    return {**entry, "exports": exports or {}}


def _targets(*entries: dict[str, Any]) -> dict[str, tuple[str, str]]:
    rows = _families_page.target_rows({entry["title"]: entry for entry in entries})
    return {target: (reached, missed) for target, reached, missed in rows}


def test_ours_is_judged_by_the_better_of_the_two_stock_recipes() -> None:
    found = _targets(_entry())
    assert found == {
        "ours int8, dense, against stock int8: 1.20×": ("ModernBERT-base 1x128 1.38×", "-"),
        "ours int8, pruned, against stock int8, dense: 3.00×": ("ModernBERT-base 1x128 3.60×", "-"),
    }
    alone = {id: ms for id, ms in TIMES.items() if "optimum" not in id}
    reached, _ = _targets(_entry(times=alone))["ours int8, dense, against stock int8: 1.20×"]
    assert reached == "ModernBERT-base 1x128 1.54×"


@pytest.mark.parametrize(
    ("family", "case", "wanted"),
    [
        (MODERNBERT, "8x128", 1.2),
        (MODERNBERT, "1x512", None),
        (MODERNBERT, SST2, 1.7),
        (DEBERTA, "8x128", 1.5),
        (DEBERTA, "1x512", 1.5),
        (DEBERTA, SST2, 1.7),
        (FAMILIES[4], "batch 8", 1.2),
    ],
)
def test_each_case_has_its_target(family: Family, case: str, wanted: float | None) -> None:
    entry = _entry(family, case=case)
    dense, pruned, *others = _families_page.COMPARISONS
    assert _families_page.bar(entry, dense, case) == wanted
    assert _families_page.bar(entry, pruned, case) == 3.0
    assert {_families_page.bar(entry, other, case) for other in others} == {None}


def test_what_misses_its_target_is_told_and_what_was_not_measured_is_not_judged() -> None:
    slow = {**TIMES, "dense-ours-int8": 17.0, "pruned-ours-int8": 9.0}
    found = _targets(_entry(times=slow), _entry(DEBERTA))
    assert found["ours int8, dense, against stock int8: 1.20×"] == ("-", "ModernBERT-base 1x128 1.06×")
    assert found["ours int8, dense, against stock int8: 1.50×"] == ("-", "DeBERTa-v3-base 1x128 1.38×")
    assert found["ours int8, pruned, against stock int8, dense: 3.00×"] == (
        "DeBERTa-v3-base 1x128 3.60×",
        "ModernBERT-base 1x128 2.00×",
    )
    assert _targets(_entry(times={"dense-plain-fp32": 1.0, "dense-ours-int8": 1.0})) == {}


def test_exports_are_judged_by_time_and_by_memory() -> None:
    slow = {**COST, "wall_s": 90.0, "peak_bytes": 2_399_000_000}
    found = _targets(_entry(times={}, exports={"dense": COST, "pruned": slow}))
    assert found == {
        "export under 90 s": ("ModernBERT-base dense 60 s", "ModernBERT-base pruned 90 s"),
        "export's peak under 4×": ("ModernBERT-base pruned 4.00×", "ModernBERT-base dense 4.00×"),
    }


def test_the_page_tells_what_exports_left() -> None:
    unseen = {**COST, "left": {"heads": [0, 0], "neurons": [25_344, 10_000]}, "packed": False}
    page = _families_page.render({"families": {"modernbert": _entry(exports={"dense": COST, "pruned": unseen})}})
    export = "600 MB | 60 s | 2.40 GB, 4.00× |"
    assert f"| ModernBERT-base, dense | {export} 264 of 264 | 25,344 of 25,344 | yes |" in page
    expected = "0 of 0 recognised (132 of 264) | 10,000 of 25,344 (8,448) | no |"
    assert f"| ModernBERT-base, pruned | {export} {expected}" in page


def test_the_page_tells_gains_and_where_the_time_goes() -> None:
    def block(*layers: str) -> list[dict[str, Any]]:
        share = 1 / len(layers)
        return [
            {
                "case": "1x128",
                "runs": 3,
                "total_ms": 5.0,
                "operators": [
                    {"name": name, "provider": "cpu", "count": 1, "ms": 1.0, "share": share, "macs": 0}
                    for name in ("Softmax", "Add")
                ],
                "layers": [{"name": name, "ms": 1.0, "share": share} for name in layers],
                "placement": {"cpu": 2},
                "misplaced": [],
                "macs": 0,
            }
        ]

    ours = block("layers.0.attention", "layers.1.attention", "layers.0.feed_forward", "other")
    profiles = {"modernbert-dense-ours-int8": ours, "modernbert-dense-plain-int8": block("layers.0", "other")}
    page = _families_page.render({"families": {"modernbert": _entry(profiles=profiles)}})
    assert "| ours int8, dense, against stock int8 | 1.38× [1.3" in page
    assert "], 1.20× reached |" in page
    assert "| ours int8, dense, against OpenVINO int8 | 0.77× [" in page
    assert "| ours int8, pruned, against dense | 2.60× [" in page
    operators = "Softmax {0}, Add {0} |"
    assert f"ours int8, 1x128 | 5.00 | 50.0 % | 25.0 % | 25.0 % | {operators.format('25.0 %')}" in page
    assert f"int8, 1x128 | 5.00 | - | - | - | {operators.format('50.0 %')}" in page
    assert "pruned: ours fp32: not run: it is absent." in page
    assert "`a command`" in page
