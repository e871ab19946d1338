"""The paper's shapes: which rows are measured, how they are told, and the figure."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _graphs, _paper_figure, _record, paper, plant
from benchmarks._run import EXACT, LOOSE, Row
from benchmarks._workshop import Planted
from compactor.benching.report import report_problems
from tests.benchmarks.made_up import CASE, ENTRY, in_this_process, run_of

BASE, LARGE = plant.read_entries()[0], plant.read_entries()[12]


def _rows(provider: str = "cpu", entries: tuple[plant.Entry, ...] = (BASE, LARGE)) -> list[Row]:
    return paper.make_rows([Planted(Path("work"), entry) for entry in entries], provider)


def test_the_default_entries_are_the_rows_of_table_2_and_the_large_ones() -> None:
    entries = plant.read_entries()
    chosen = [entries[i] for i in paper.parse_entries(paper.ENTRIES, len(entries))]
    millions = {(paper.method(entry), round(entry.linear_weights / 1e6, 1)) for entry in chosen if entry.hidden == 768}
    assert millions == {
        *(("hybrid", size) for size in (20.8, 15.6, 14.4, 10.9)),
        *(("filled", size) for size in (30.8, 21.6, 16.4, 22.2)),
        ("struct", 14.1),
        *(("filled, large teacher", size) for size in (38.6, 20.2, 16.7)),
    }
    assert [entry.score for entry in chosen if entry.hidden == 1024] == [91.027, 90.163]
    assert {entry.task for entry in chosen} == {"squadv1"}


def test_every_model_is_measured_beside_the_dense_one_of_its_size() -> None:
    assert [row.id for row in _rows()] == [
        "squadv1-dense-768-fp32",
        "squadv1-dense-768-int8",
        "squadv1-hybrid-filled-87.709-fp32",
        "squadv1-hybrid-filled-87.709-int8",
        "squadv1-dense-1024-fp32",
        "squadv1-dense-1024-int8",
        "squadv1-large-hybrid-filled-91.027-fp32",
        "squadv1-large-hybrid-filled-91.027-int8",
    ]
    assert {row.precision: row.tolerance for row in _rows()} == {"fp32": EXACT, "int8": LOOSE}


def test_the_gpu_rows_are_half_precision_and_say_so_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "not_run_reason", lambda provider: "not run: no CUDA device")
    rows = _rows("cuda")
    assert {row.precision for row in rows} == {"fp16"}
    assert {row.make().reason for row in rows} == {"not run: no CUDA device"}
    monkeypatch.setattr(paper, "not_run_reason", lambda provider: None)
    assert {row.missing for row in _rows("cuda")} == {None}
    assert {row.provider for row in _rows("cuda")} == {"cuda"}


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "17", "0-17", "1,,2"])
def test_entries_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(SystemExit, match="expected indices below 17"):
        paper.parse_entries(text, 17)
    assert paper.parse_entries("3,0-2,1", 17) == [3, 0, 1, 2]


def _result(times: dict[str, float]) -> dict[str, Any]:
    """Of a run in which both checkpoints took these times."""
    shops = [Planted(Path("work"), entry) for entry in (BASE, LARGE)]
    rows = _rows()
    run = run_of(rows, times)
    reports = {
        shop.dense.folder.name: _record.make_report(
            "A title",
            [row for row in rows if row.shop in (shop, shop.dense)],
            run,
            baseline=paper.row_id(shop.dense, "fp32"),
            command="python benchmarks/paper.py",
        )
        for shop in shops
    }
    entries = [paper.describe(shop) for shop in shops]
    return {"provider": "cpu", "entries": entries, "relative_error": run.errors, "reports": reports}


TIMES = {
    "squadv1-dense-768-fp32": 20.0,
    "squadv1-dense-768-int8": 10.0,
    "squadv1-hybrid-filled-87.709-fp32": 5.0,
    "squadv1-hybrid-filled-87.709-int8": 2.5,
    "squadv1-dense-1024-fp32": 60.0,
    "squadv1-dense-1024-int8": 30.0,
    "squadv1-large-hybrid-filled-91.027-fp32": 12.0,
}


def test_each_is_compared_with_its_own_dense_model_and_the_paper_beside_it() -> None:
    text = paper.render(_result(TIMES))
    base = next(line for line in text.splitlines() if line.startswith("| BERT-base filled 22.2M"))
    assert re.fullmatch(
        r"\| BERT-base filled 22\.2M \| 64 \| 6,293 \| 87\.709 \| 2\.44× \| 4\.00× \[[^]]+\] \| 8\.00× \[[^]]+\] \|",
        base,
    )
    large = next(line for line in text.splitlines() if line.startswith("| BERT-large filled"))
    assert re.search(r"\| 91\.027 \| 2\.88× \| 5\.00× \[[^]]+\] \| not run \|$", large)
    assert "dense BERT-base: ours int8: 2.00× [" in text
    assert "weights here are random" in text
    assert "BERT-large filled 73.7M: ours int8: not run: it is absent." in text
    assert text.count("Measurement ") == 2, "each table has a verdict of its own"


def test_the_figure_holds_what_was_measured_and_the_paper() -> None:
    points = _paper_figure.points(_result(TIMES))
    speeds = {(entry["id"], group, case): round(ratio["value"], 2) for entry, group, case, ratio in points}
    assert speeds == {
        ("squadv1-hybrid-filled-87.709", "paper", None): 2.44,
        ("squadv1-hybrid-filled-87.709", "fp32", "1x8"): 4.0,
        ("squadv1-hybrid-filled-87.709", "int8", "1x8"): 8.0,
        ("squadv1-large-hybrid-filled-91.027", "paper", None): 2.88,
        ("squadv1-large-hybrid-filled-91.027", "fp32", "1x8"): 5.0,
        ("squadv1-dense-768", "paper", None): 1.0,
        ("squadv1-dense-768", "int8", "1x8"): 2.0,
    }


def test_other_tasks_have_no_place_among_f1_scores() -> None:
    result = _result(TIMES)
    result["entries"] = [{**entry, "task": "mnli"} for entry in result["entries"]]
    assert {entry["id"] for entry, *_ in _paper_figure.points(result)} == {"squadv1-dense-768"}


def test_the_figure_is_the_same_for_the_same_points_and_marks_each(tmp_path: Path) -> None:
    result, other = _result(TIMES), dataclasses.replace(CASE, id="2x8")
    for report in result["reports"].values():
        report["workload"]["cases"].append({**report["workload"]["cases"][0], "id": other.id})
        for variant in report["variants"]:
            variant["results"] += [{**measured, "case": other.id} for measured in variant["results"]]
    for name in ("one.svg", "two.svg"):
        assert _paper_figure.draw(result, tmp_path / name)
    text = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert text == (tmp_path / "two.svg").read_text(encoding="utf-8")
    for group in ("paper", "fp32"):  # the paper's stands in both panels
        assert len(re.findall(f'id="{group}-squadv1-hybrid-filled-87.709"', text)) == 2
    assert "<dc:date>" not in text


def test_there_is_no_figure_of_nothing(tmp_path: Path) -> None:
    assert not _paper_figure.draw(_result({}), tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()


@pytest.mark.slow
def test_the_whole_way_from_shapes_to_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = dataclasses.replace(ENTRY, hidden=32, kept_heads=(2,), kept_ffn=(7,), attention_nnz=(512,))
    monkeypatch.setattr(plant, "read_entries", lambda: [tiny])
    monkeypatch.setattr(_paper_figure, "DENSE_BASE", plant.dense_twin(tiny).slug)
    # Torch is here already: seven more processes would load it again.
    monkeypatch.setattr(_graphs, "in_fresh_process", in_this_process)
    monkeypatch.setattr(_graphs, "_quieten", lambda: None)
    out = tmp_path / "result.json"
    argv = ["--entries", "0", "--shapes", "1x8", "--rounds", "1", "--measure-s", "0", "--threads", "1"]
    code = paper.main([*argv, "--work", str(tmp_path / "work"), "--out", str(out)])
    result = json.loads(out.read_text(encoding="utf-8"))
    (report,) = result["reports"].values()
    assert code == 0, [row["why"] for row in report["variants"]]
    assert report_problems(report) == []
    assert [row["status"] for row in report["variants"]] == ["measured"] * 4
    assert report["baseline"] == "squadv1-dense-32-fp32"
    assert result["relative_error"]["squadv1-hybrid-80.5-fp32"]["1x8"] < EXACT
    assert 0 < result["relative_error"]["squadv1-hybrid-80.5-int8"]["1x8"] < LOOSE
    assert str(tmp_path) not in out.read_text(encoding="utf-8"), "no place of this machine is recorded"
    assert "| BERT-base hybrid" in out.with_suffix(".md").read_text(encoding="utf-8")
    assert "<svg" in out.with_suffix(".svg").read_text(encoding="utf-8")
