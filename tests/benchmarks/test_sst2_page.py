"""What the tables and the figure say of pruned MiniLM on SST-2."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import _sst2_figure, _sst2_page, sst2
from benchmarks._sst2_findings import Page
from tests.benchmarks.made_up import CASE
from tests.benchmarks.made_up_sst2 import made, make_result, run_called


def absent(why: str) -> dict[str, Any]:
    return {"status": "not run", "why": why}


def section(text: str, title: str) -> str:
    """What stands below a heading."""
    return text.split(f"## {title}")[1].split("\n## ")[0]


def line(text: str, start: str) -> str:
    """The table's line that begins so."""
    return next(each for each in text.splitlines() if each.startswith(f"| {start} |"))


def test_the_bar_is_met_or_missed_by_the_model_that_the_development_set_prefers() -> None:
    text = section(_sst2_page.render(make_result()), "What the paper found")
    assert "at most 1.5 points lost with at most 45.0 %: **yes**, hybrid-0.45: \N{MINUS SIGN}0.50 ± 0.35 with" in text
    assert "at most 3 points lost with at most 30.0 %: **yes**, hybrid-0.30: \N{MINUS SIGN}2.50" in text
    worse = make_result(rows={"hybrid-0.30": {"dev": {"accuracy": {"value": 0.1}}}})
    text = section(_sst2_page.render(worse), "What the paper found")
    assert "at most 3 points lost with at most 30.0 %: **no**, hybrid-longer-0.30: \N{MINUS SIGN}5.00" in text


def test_a_claim_is_held_or_not_or_not_shown_by_paired_differences() -> None:
    text = section(_sst2_page.render(make_result()), "What the paper found")
    magnitude = line(text, "hybrid and magnitude")
    assert "**yes** at 30.0 %: +12.50 ± 1.65 points, p < 0.001" in magnitude
    assert "**yes** at 45.0 %: +4.50" in magnitude
    equal = make_result(rows={"magnitude-0.30": {"answers": made(run_called("hybrid-0.30"))["answers"]}})
    assert "not shown at 30.0 %: 0.00 ± 0.00 points, p = 1.00" in _sst2_page.render(equal)
    reverse = make_result(
        rows={
            "hybrid-0.30": {"answers": made(run_called("magnitude-0.30"))["answers"]},
            "magnitude-0.30": {"answers": made(run_called("hybrid-0.30"))["answers"]},
        }
    )
    assert "**no** at 30.0 %: \N{MINUS SIGN}12.50" in line(_sst2_page.render(reverse), "hybrid and magnitude")


def test_models_of_different_density_are_not_compared() -> None:
    apart = make_result(rows={"magnitude-0.30": {"density": 0.34}, "magnitude-0.45": absent("no time")})
    assert line(_sst2_page.render(apart), "hybrid and magnitude").endswith("| not run |")


def test_faster_is_what_lies_outside_of_the_intervals() -> None:
    text = section(_sst2_page.render(make_result()), "What the paper found")
    assert re.search(r"\| struct is faster \| .*\*\*yes\*\* at 30\.0 %, 1x8: 10\.0× and 5\.00×", text)
    assert "not shown at 45.0 %, 1x8: 4.00× and 4.00×" in text
    assert "**no** at 30.0 %, 1x8: 5.00× and 6.67×" in line(text, "hybrid and blocks")
    assert "**yes** at 1x8: 4×4 2.50×, 8×8 4.00×, 16×16 4.00×, 32×32 6.67×" in line(text, "block size")


def test_heads_teachers_fillings_and_int8_have_their_lines() -> None:
    text = section(_sst2_page.render(make_result()), "What the paper found")
    assert "**yes**, of 72: 32x32 40, head 60, dim 60" in line(text, "heads")
    assert "not shown at 15.0 %" not in line(text, "teacher")
    assert "**no** at 15.0 %: \N{MINUS SIGN}2.50" in line(text, "teacher")
    assert "**no** from 30.0 % to 41.0 %, 600 steps later" in line(text, "filled")
    assert "hybrid-0.45: \N{MINUS SIGN}0.50 ± 0.35 points, p = 0.50, 4.0 times smaller" in line(text, "int8")
    assert "hybrid-0.30 with 30.0 %, 350 right, against 340 with 42.9 %: +2.50" in line(text, "nn_pruning's code")


def test_each_table_tells_what_is_left_and_how_fast_it_is() -> None:
    text = _sst2_page.render(make_result())
    overview = section(text, "1. ")
    assert re.match(
        r"\| hybrid-0\.30 \| 21\.5 \| 30\.0 % \| 60 of 72 \| 3,000 of 9,216 \| 87\.50 \| .2\.50 ± 0\.78 \| 5\.00× \[",
        line(overview, "hybrid-0.30"),
    )
    assert line(overview, "hybrid-0.45").count("≈") == 1, "a difference of 2 sentences is not significant"
    assert "| dense | - | 100.0 % |" in overview
    assert line(section(text, "3. "), "32x32").startswith("| 32x32 | 30.0 % | 40 of 72 | 7 7 7 7 6 6 |")
    assert [each.split(" |")[0] for each in section(text, "4. ").splitlines() if "×" in each[:10]] == [
        "| 4×4",
        "| 8×8",
        "| 16×16",
        "| 32×32",
    ]
    assert "differ from their masked models in 0 of 9,600 answers" in text
    assert line(section(text, "5. "), "dense").startswith("| dense | 360 | 358 | \N{MINUS SIGN}0.50 ± 0.35 | 2 | 1 |")


def test_a_run_that_was_not_made_is_a_row_in_its_table_and_a_remark() -> None:
    missing = {
        "struct-0.45": absent("it was not trained"),
        "block-8-0.30": absent("it was not trained"),
        "attention-dim": absent("it was not trained"),
        "hybrid-nt-0.15": {"status": "failed", "why": "the loss is no number"},
        "nn-pruning": absent("no checkpoint given: --peer"),
    }
    text = _sst2_page.render(make_result(rows=missing))
    assert "| struct-0.45 | not run | - |" in section(text, "1. ")
    assert "| 8×8 | not run | - |" in section(text, "4. ")
    assert "| dim | not run | - |" in section(text, "3. ")
    assert "| hybrid-0.15 | hybrid-nt-0.15: failed | - |" in section(text, "2. ")
    assert "- struct-0.45: not run: it was not trained." in text
    assert "- hybrid-nt-0.15: failed: the loss is no number." in text


def test_what_was_trained_otherwise_is_a_remark() -> None:
    other = {"other_settings": ["steps"], "settings": {"steps": 400}, "warnings": ["nothing was pruned"]}
    text = _sst2_page.render(make_result(rows={"hybrid-0.45": other}))
    assert "- hybrid-0.45: trained with other settings than the rest: steps 400." in text
    assert "- hybrid-0.45: nothing was pruned." in text


def test_times_of_another_graph_are_not_quoted() -> None:
    result = make_result(rows={"hybrid-0.30": {"graphs": {"fp32": None, "int8": "another"}}})
    assert line(section(_sst2_page.render(result), "1. "), "hybrid-0.30").endswith("| not measured | 10 |")


@pytest.mark.parametrize("done", range(len(sst2.RUNS) + 1))
def test_a_page_can_be_made_after_every_run(done: int, tmp_path: Path) -> None:
    rows = {run.id: absent("it was not trained") for run in (*sst2.RUNS[done:], sst2.OTHERS)}
    result = make_result(rows=rows, timed=False)
    text = _sst2_page.render(result)
    assert "Nothing was timed yet." in text
    assert text.count(": not run: it was not trained.") == len(rows)
    if done in (0, 1, len(sst2.RUNS)):  # a figure takes time
        _sst2_figure.draw(result, tmp_path / "figure.svg")
        assert (tmp_path / "figure.svg").exists() == (done > 0)


def test_the_figure_has_a_mark_for_every_run_and_is_the_same_every_time(tmp_path: Path) -> None:
    result = make_result(rows={"struct-0.45": absent("it was not trained")})
    page = Page(result)
    drawn = [row["id"] for places in _sst2_figure.drawn(page, None).values() for _, _, row in places]
    assert len(drawn) == len(sst2.RUNS) - 1 - 3 - 3 + 1, "one not made, attention alone, small blocks; nn_pruning's"
    densities = [x for x, _, _ in _sst2_figure.drawn(page, None)["hybrid"]]
    assert densities == sorted(densities)
    assert [x for x, _, _ in _sst2_figure.drawn(page, CASE.id)["struct"]] == pytest.approx([10.0])
    for name in ("one.svg", "two.svg"):
        _sst2_figure.draw(copy.deepcopy(result), tmp_path / name)
    one, two = ((tmp_path / name).read_text(encoding="utf-8") for name in ("one.svg", "two.svg"))
    assert one == two
    assert {f"{case}-hybrid-0.30" for case in ("density", CASE.id)} <= set(re.findall(r'id="([^"]+)"', one))
    assert np.isfinite([float(number) for number in re.findall(r'width="([\d.]+)pt"', one)]).all()
