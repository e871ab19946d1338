"""Pruned MiniLM on SST-2: which runs there are, what is kept of them, and what the tables say of a result."""

from __future__ import annotations

import argparse
import copy
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import _graphs, _record, _sst2_figure, _sst2_page, sst2
from benchmarks._run import Row
from benchmarks._sst2_findings import Page
from benchmarks._workshop import Given
from compactor.trainer.methods import METHODS
from tests.benchmarks.made_up import CASE, SETTINGS, run_of
from tests.compactor.trainer.tiny import write_model, write_sentences

SENTENCES = 400
DENSITY = {"dense": 1.0, "nn-pruning": 0.429, "hybrid-filled-0.30": 0.41, "hybrid-filled-0.15": 0.24}
RIGHT = {"dense": 360, "hybrid-0.45": 358, "hybrid-0.30": 350, "magnitude-0.30": 300, "hybrid-0.15": 330}
MS = {"dense": 20.0, "hybrid-0.30": 8.0, "struct-0.30": 4.0, "block-32-0.30": 6.0, "block-4-0.30": 16.0}


def options(*arguments: str) -> argparse.Namespace:
    """As if they were typed."""
    parser = argparse.ArgumentParser()
    sst2.add_options(parser)
    return parser.parse_args(["--data", "data", *arguments])


def bench_in(folder: Path, **changes: Any) -> sst2.Bench:
    """Of runs in ``folder``, where nothing is yet."""
    common = sst2.common_settings(options())
    values = {"given": {}, "dense_steps": 1250, "threads": 1} | changes
    return sst2.Bench(work=folder, data=folder / "data", common=common, **values)


def answers(right: int) -> str:
    """Of which the first ``right`` are right, where 1 is the right answer to all."""
    return "1" * right + "0" * (SENTENCES - right)


def made(run: sst2.Run) -> dict[str, Any]:
    """The row of a run that nobody made."""
    right = RIGHT.get(run.id, 340)
    texts = {"masked": right, "fp32": right, "int8": right - 2, "int8 alone": right - 1}
    judged = {
        "answers": {way: answers(count) for way, count in texts.items()},
        "bytes": {"fp32": 88_000_000, "int8": 22_000_000},
        "graphs": {"fp32": None, "int8": None},
    }
    name = re.search(r"0\.\d\d$", run.id)
    density = DENSITY.get(run.id, 0.75 if name is None else float(name[0]))
    facts = {
        "steps": 600,
        "settings": {"method": "hybrid"},
        "other_settings": [],
        "dev": {"accuracy": {"value": right / SENTENCES, "se": 0.01, "n": 1000}},
        "density": density,
        "density_attention": 0.3,
        "lambda": None if run.id == "dense" else 21.5,
        "seconds": 600.0,
        "weights": [round(density * 1000), 1000],
        "heads": [40 if run.id == "attention-32x32" else 60, 72],
        "neurons": [3000, 9216],
        "heads_by_layer": [7, 7, 7, 7, 6, 6],
        "warnings": [],
    }
    return sst2.make_row(run, facts, judged, "1" * SENTENCES, answers(RIGHT["dense"]))


def run_called(name: str) -> sst2.Run:
    return next(run for run in sst2.RUNS if run.id == name)


def make_result(*, rows: Mapping[str, Mapping[str, Any]] | None = None, timed: bool = True) -> dict[str, Any]:
    """Of all runs, those in ``rows`` changed."""
    found = [{**made(run), **(rows or {}).get(run.id, {})} for run in (*sst2.RUNS, sst2.OTHERS)]
    report = None
    if timed:
        shop = Given(Path("work"), Path("model"))
        names = ["dense-plain", "dense-fp32", *(f"{row['id']}-int8" for row in found)]
        variants = [Row(name, name, shop, lambda: Path("model.onnx")) for name in names]
        times = {"dense-plain": 40.0, "dense-fp32": 38.0}
        times |= {f"{row['id']}-int8": MS.get(row["id"], 10.0) for row in found if row["status"] == "measured"}
        report = _record.make_report(
            "A title",
            variants,
            run_of(variants, times),
            baseline="dense-plain",
            command="python benchmarks/sst2.py",
        )
    machine = {"machine": a_machine() if report is None else report["machine"]}
    return {
        "kind": "compactor-sst2",
        "command": "python benchmarks/sst2.py",
        **machine,
        "budget": {**sst2.common_settings(options()), "dense_steps": 1250, "threads": 2},
        "data": {"train.tsv": {"sentences": 60_614}},
        "references": "1" * SENTENCES,
        "rows": found,
        "latency": report,
        "relative_error": {},
    }


def a_machine() -> dict[str, Any]:
    """As much of a machine card as a page needs."""
    return {
        "isa": ["avx2"],
        "virtualised": True,
        "versions": {},
        "dirty": False,
        "physical_cores": 2,
        "kernel": "6",
        "commit": "abc",
        "gpus": [],
        "cpu_model": "a CPU",
    }


def in_this_process(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """In place of ``_graphs.in_fresh_process``, which takes seconds to import what is here already."""
    return function(*args, **kwargs)


def absent(why: str) -> dict[str, Any]:
    return {"status": "not run", "why": why}


def section(text: str, title: str) -> str:
    """What stands below a heading."""
    return text.split(f"## {title}")[1].split("\n## ")[0]


def line(text: str, start: str) -> str:
    """The table's line that begins so."""
    return next(each for each in text.splitlines() if each.startswith(f"| {start} |"))


# The runs


def test_every_question_of_the_paper_has_its_runs() -> None:
    ids = [run.id for run in sst2.RUNS]
    assert len(set(ids)) == len(ids)
    assert ids[0] == "dense", "all others start from it"
    families = {family: sum(run.family == family for run in sst2.RUNS) for family in {run.family for run in sst2.RUNS}}
    assert families == {
        "dense": 1,
        "hybrid": 3,
        "hybrid, longer": 1,
        "hybrid, by λ": 3,
        "hybrid, no teacher": 2,
        "hybrid, filled": 2,
        "struct": 2,
        "magnitude": 2,
        "attention only": 3,
        "block": 4,
    }


@pytest.mark.parametrize("run", sst2.RUNS, ids=lambda run: run.id)
def test_every_run_is_of_one_budget_and_steered_to_what_its_name_says(run: sst2.Run, tmp_path: Path) -> None:
    config = bench_in(tmp_path).config(run)
    assert config.method in METHODS
    assert config.steps == (1250 if run.id == "dense" else 600 * run.budget)
    assert config.freeze_embeddings
    named = re.search(r"0\.\d\d$", run.id)
    if named is not None and run.first is None:
        assert config.target_density == float(named[0])
    if run.id.startswith("hybrid-lambda-"):
        assert (config.strength, config.target_density) == (float(run.id.rpartition("-")[2]), None)


def test_a_filled_run_comes_after_the_one_that_it_goes_on_from() -> None:
    ids = [run.id for run in sst2.RUNS]
    firsts = {run.id: run.first for run in sst2.RUNS if run.first is not None}
    assert firsts == {"hybrid-filled-0.30": "hybrid-0.30", "hybrid-filled-0.15": "hybrid-0.15"}
    assert all(ids.index(first) < ids.index(name) for name, first in firsts.items())


def test_attention_alone_is_pruned_to_30_percent_of_its_weights() -> None:
    width, inner = 384, 1536
    attention, feed_forward = 4 * width * width, 2 * width * inner
    settings = next(run for run in sst2.RUNS if run.id == "attention-head").settings
    left = settings["target_density"] * (attention + feed_forward) - feed_forward
    assert left / attention == pytest.approx(0.30)
    assert settings["feed_forward_block"] == "none"


def test_only_what_is_named_is_trained_and_the_dense_model_it_needs() -> None:
    assert [run.id for run in sst2.chosen_runs("hybrid-0, struct-0.30")] == [
        "dense",
        "hybrid-0.45",
        "hybrid-0.30",
        "hybrid-0.15",
        "struct-0.30",
    ]
    assert sst2.chosen_runs(None) == list(sst2.RUNS)
    with pytest.raises(SystemExit, match="no run is called 'hybird'"):
        sst2.chosen_runs("struct,hybird")


# What is kept


def test_a_run_is_finished_when_its_record_is_there(tmp_path: Path) -> None:
    bench, run = bench_in(tmp_path), sst2.RUNS[1]
    folder = bench.folder(run)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    assert not bench.is_finished(run)
    (folder / "training.json").touch()
    assert bench.is_finished(run)


def test_a_dense_model_that_was_given_needs_no_record(tmp_path: Path) -> None:
    given = tmp_path / "elsewhere"
    bench = bench_in(tmp_path / "work", given={"dense": given})
    assert not bench.is_finished(sst2.RUNS[0])
    given.mkdir()
    (given / "model.safetensors").touch()
    assert bench.is_finished(sst2.RUNS[0])


def test_a_dense_model_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sst2.main(["--data", str(tmp_path), "--dense", str(tmp_path)])
    assert "--dense: there is no finished model in" in capsys.readouterr().err


def test_a_run_that_fails_is_a_reason_and_the_next_one_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = bench_in(tmp_path)
    dense, hybrid = sst2.RUNS[0], sst2.RUNS[1]
    assert sst2.train_or_say_why(bench, hybrid) == {hybrid.id: "not run: there is no dense model to start from"}
    _finish(bench, dense)
    filled = next(run for run in sst2.RUNS if run.first is not None)
    assert sst2.train_or_say_why(bench, filled) == {
        filled.id: "not run: it goes on from hybrid-0.30, which was not run"
    }

    def killed(*_: Any) -> None:
        raise OSError("killed")

    monkeypatch.setattr(_graphs, "in_fresh_process", killed)
    assert sst2.train_or_say_why(bench, hybrid) == {hybrid.id: "OSError: killed"}
    assert "killed" in capsys.readouterr().err

    (bench.folder(hybrid) / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    monkeypatch.setattr(_graphs, "in_fresh_process", lambda *_: None)
    assert sst2.train_or_say_why(bench, hybrid) == {}
    assert not (bench.folder(hybrid) / "checkpoints").exists(), "those of a finished run fill the disk"


def _finish(bench: sst2.Bench, run: sst2.Run) -> None:
    bench.folder(run).mkdir(parents=True, exist_ok=True)
    (bench.folder(run) / "training.json").touch()


def test_without_a_dense_model_every_row_says_that_it_was_not_run(tmp_path: Path) -> None:
    found = sst2.collect(bench_in(tmp_path), SETTINGS, {"hybrid-0.45": "the loss is no number"})
    rows = {row["id"]: (row["status"], row["why"]) for row in found["rows"]}
    assert rows["hybrid-0.45"] == ("failed", "the loss is no number")
    assert rows["hybrid-0.30"] == ("not run", "it was not trained")
    assert rows["nn-pruning"] == ("not run", "no checkpoint given: --peer")


def test_what_was_trained_with_other_settings_says_which(tmp_path: Path) -> None:
    bench, run = bench_in(tmp_path), sst2.RUNS[1]
    settings = bench.config(run).to_json() | {"steps": 400}
    final = {
        "metrics": {},
        "lambda": 20.0,
        "seconds": 1.0,
        "density": 0.45,
        "density_attention": 0.4,
        "density_feed_forward": 0.5,
        "weights": [45, 100],
        "heads": [3, 4],
        "neurons": [5, 8],
        "layers": [{"heads": [True, False]}, {"heads": None}, {"heads": [True, True]}],
    }
    _finish(bench, run)
    record = {"steps": 400, "settings": settings, "final": final, "warnings": []}
    (bench.folder(run) / "training.json").write_text(json.dumps(record), encoding="utf-8")
    facts = sst2.describe_training(bench, run)
    assert facts["other_settings"] == ["steps"]
    assert facts["settings"]["steps"] == 400
    assert "seed" not in facts["settings"], "it has its default"
    assert facts["heads_by_layer"] == [1, 2]


def test_a_row_counts_right_answers_and_pairs_them_with_the_dense_model() -> None:
    row = made(sst2.RUNS[1])
    masked, int8 = row["quality"]["masked"], row["quality"]["int8"]
    assert (masked["correct"], masked["n"], masked["changed"]) == (358, SENTENCES, 0)
    assert masked["difference"]["value"] == pytest.approx(-2 / SENTENCES)
    assert masked["difference"]["changed"] == 2
    assert (int8["correct"], int8["changed"]) == (356, 2)


def test_an_earlier_measurement_stays_until_there_is_a_new_one(tmp_path: Path) -> None:
    nothing = {"latency": None, "relative_error": {}}
    out = tmp_path / "out.json"
    assert sst2.kept_measurement(None) == sst2.kept_measurement(out) == nothing
    out.write_text('{"kind": "something else", "latency": 1}', encoding="utf-8")
    assert sst2.kept_measurement(out) == nothing
    out.write_text('{"kind": "compactor-sst2", "latency": 1, "relative_error": {"a": 2}}', encoding="utf-8")
    assert sst2.kept_measurement(out) == {"latency": 1, "relative_error": {"a": 2}}


def test_the_command_names_no_place_of_this_machine(tmp_path: Path) -> None:
    typed = ["--data", str(tmp_path), "--dense", str(tmp_path), "--peer", str(tmp_path), "--steps", "600"]
    command = sst2._run.command("sst2.py", typed)
    assert command == "python benchmarks/sst2.py --data DATA --dense DENSE --peer PEER --steps 600"


def test_a_tiny_study_from_data_to_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    data, out = tmp_path / "data", tmp_path / "out.json"
    data.mkdir()
    for seed, (name, count) in enumerate({"train": 40, "dev": 40, "test": 40}.items()):
        write_sentences(data / f"{name}.tsv", count, seed=seed)
    write_model(tmp_path / "model")
    monkeypatch.setattr(_graphs, "in_fresh_process", in_this_process)
    monkeypatch.setattr(sst2, "DEV_HEAD", 30)
    asked = ["--data", str(data), "--model", str(tmp_path / "model"), "--work", str(tmp_path / "work")]
    asked += ["--out", str(out), "--build-only", "--threads", str(torch.get_num_threads())]
    asked += ["--steps", "10", "--dense-steps", "10", "--batch", "8", "--only", "magnitude-0.30"]
    assert sst2.main(asked) == 0

    result = json.loads(out.read_text(encoding="utf-8"))
    rows = {row["id"]: row for row in result["rows"]}
    assert [name for name, row in rows.items() if row["status"] == "measured"] == ["dense", "magnitude-0.30"]
    assert result["data"]["test.tsv"]["sentences"] == len(result["references"]) == 40
    dense, pruned = rows["dense"], rows["magnitude-0.30"]
    assert dense["dev"]["accuracy"]["n"] == 30
    assert (dense["density"], dense["heads"], dense["neurons"]) == (pytest.approx(1.0), [8, 8], [96, 96])
    assert pruned["density"] < 0.9
    for row in (dense, pruned):
        assert row["other_settings"] == []
        assert row["answers"]["fp32"] == row["answers"]["masked"], "an export is exact"
        right = sum(a == b for a, b in zip(row["answers"]["masked"], result["references"], strict=True))
        assert row["quality"]["masked"]["correct"] == right
        assert row["bytes"]["int8"] > 0
    assert result["latency"] is None
    assert out.with_suffix(".svg").exists()
    assert "| magnitude-0.30 | - |" in capsys.readouterr().out

    weights = tmp_path / "work" / "runs" / "magnitude-0.30" / "model.safetensors"
    trained = weights.stat().st_mtime_ns
    assert sst2.main([*asked, "--no-train"]) == 0
    assert weights.stat().st_mtime_ns == trained
    again = json.loads(out.read_text(encoding="utf-8"))
    assert again["rows"] == result["rows"]


# The tables


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
