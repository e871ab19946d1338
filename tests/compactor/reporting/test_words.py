"""The summary sentence says what was measured, and what was not."""

from __future__ import annotations

import pytest

from compactor.reporting.rows import best_variant, primary_metric
from compactor.reporting.words import about_words, absence, absence_in_full, placement_words, summary_sentence
from tests.compactor.reports import make_report

REAL = ("batch 1", "batch 32", "batch 32, bucketed")


def row_of(report, identity):
    return next(row for row in report["variants"] if row["id"] == identity)


def test_one_case_faster():
    report = make_report(cases=("1x128",), variants=("model-torch", "compact-int8"))
    result = row_of(report, "compact-int8")["results"][0]
    result["summary"]["median"] = 9.4
    result["ratio"] = {"value": 8.9, "low": 8.1, "high": 9.6, "verdict": "faster"}
    row_of(report, "model-torch")["results"][0]["summary"]["median"] = 83.4
    assert summary_sentence(report) == (
        "compact int8 answers one 128-token request in 9.40 ms, 8.90× [8.10, 9.60] faster than model, PyTorch fp32 "
        "(83.4 ms), at \N{MINUS SIGN}0.12 ± 0.41 points accuracy; VALID."
    )


def test_no_difference_is_called_none():
    report = make_report(cases=("1x128",), variants=("model-torch", "compact-fp32"))
    row_of(report, "compact-fp32")["results"][0]["ratio"] = {
        "value": 1.02, "low": 0.97, "high": 1.06, "verdict": "no significant difference",
    }  # fmt: skip
    text = summary_sentence(report)
    assert "no significant difference from model, PyTorch fp32" in text
    assert "1.02× [0.97, 1.06]" in text
    assert "faster" not in text


def test_slower_is_called_slower():
    text = summary_sentence(
        make_report(cases=("1x128",), variants=("model-torch", "compact-fp32"), speed={"compact-fp32": 0.1})
    )
    assert "slower than model, PyTorch fp32" in text
    assert "of its speed" in text
    assert "faster" not in text


def test_too_few_processes_are_no_result():
    text = summary_sentence(make_report(cases=("1x128",), rounds=1))
    assert "9.64× the speed of model, PyTorch fp32" in text and "too few processes to tell" in text
    assert "faster" not in text and "None" not in text


def test_several_cases_give_the_range():
    text = summary_sentence(make_report())
    assert "answers one 32-token request in" in text
    assert "; in all three cases 9.09× to 11.2× faster" in text


def test_cases_that_disagree_are_told_one_by_one():
    text = summary_sentence(make_report(speed={"compact-int8": 0.1, "compact-fp32": 0.2}))
    assert "over the three cases faster in 1x32 (1.12×); slower in 1x128 (0.95×), 8x128 (0.91×)" in text
    assert "all" not in text


def test_invalid_comes_first_and_with_its_reasons():
    reasons = ["another process used 31 % of a core: compact int8, 1x128 (in 3 of 8 processes)", "few rounds"]
    text = summary_sentence(make_report(reasons=reasons))
    assert text.startswith("Not to be relied on: compact int8 answers")
    assert text.endswith("INVALID: another process used 31 % of a core; few rounds.")


def test_interrupted_says_how_far_it_came():
    assert summary_sentence(make_report(interrupted=True)).startswith("Interrupted after 3 of 8 rounds: compact int8")


def test_nothing_measured():
    report = make_report(variants=("compact-cuda-fp16", "compact-int8"), failed={"compact-int8": "out of memory"})
    text = summary_sentence(report)
    assert (
        text == "Nothing was measured: compact fp16, CUDA not run: no CUDA device; compact int8 failed: out of memory."
    )


def test_without_a_baseline_nothing_is_compared():
    text = summary_sentence(make_report(baseline=None))
    assert "; the fastest of the 3 that ran" in text
    assert "×" not in text
    assert "84.63 ± 1.22 % accuracy" in text


def test_a_baseline_that_failed_is_the_reason_for_no_ratio():
    text = summary_sentence(make_report(failed={"model-torch": "out of memory"}))
    assert "there is no ratio, because the baseline model, PyTorch fp32 failed: out of memory" in text
    assert "×" not in text


def test_a_baseline_alone():
    assert "it is the baseline, and nothing else was measured" in summary_sentence(
        make_report(variants=("model-torch",))
    )


def test_quality_that_was_not_measured_is_not_passed_over():
    assert "quality was not measured" in summary_sentence(make_report(quality=False))


def test_the_same_answers_and_worse_ones():
    report = make_report(variants=("model-torch", "compact-fp32"))
    assert ", with the same answers (84.75 ± 1.22 % accuracy)" in summary_sentence(report)
    report = make_report()
    row_of(report, "compact-int8")["quality"]["metrics"]["accuracy"]["difference"]["verdict"] = "worse"
    assert "± 0.41 points accuracy (worse)" in summary_sentence(report)


def test_offline_is_about_throughput():
    text = summary_sentence(make_report(scenario="offline", data=True, cases=REAL[2:]))
    assert "answers 872 requests in batches of 32, bucketed by length in 401 ms (2,177 examples/s)" in text


def test_server_is_about_the_rate_under_the_bound():
    text = summary_sentence(make_report(scenario="server"))
    assert text.startswith("compact int8 keeps p99 under 20 ms at up to 2,171 requests/s")
    assert "model, PyTorch fp32 at up to 82.0" in text
    report = make_report(scenario="server", variants=("model-torch", "compact-fp32"), speed={"compact-fp32": 0.001})
    assert summary_sentence(report).startswith("compact fp32 kept p99 under 20 ms at no rate that was tried")


@pytest.mark.parametrize(
    ("what", "words"),
    [("not run: no CUDA device", "not run: no CUDA device"), ("no CUDA device", "not run: no CUDA device")],
)
def test_not_run_is_said_once(what, words):
    report = make_report(not_run={"compact-cuda-fp16": what})
    assert absence(row_of(report, "compact-cuda-fp16")) == words
    assert absence(row_of(report, "compact-cuda-fp16"), short=True) == "not run"


def test_an_absence_in_full_is_one_line():
    row = {"status": "failed", "why": {"what": "boom", "where": "a.onnx", "todo": "look"}}
    assert absence_in_full(row) == "failed: boom; at a.onnx; look"
    assert absence_in_full({"status": "failed", "why": {"what": "boom", "where": None, "todo": None}}) == "failed: boom"
    assert absence_in_full({"status": "failed", "why": None}) == "failed: no reason given"


def test_the_best_has_every_case_before_it_is_fast():
    report = make_report()
    del row_of(report, "compact-int8")["results"][1:]  # an interrupt
    best = best_variant(report)
    assert best is not None and best["id"] == "compact-fp32"


def test_the_metric_asked_for_comes_first():
    report = make_report()
    for row in report["variants"]:
        if row["quality"]:
            row["quality"]["metrics"]["f1"] = row["quality"]["metrics"]["accuracy"]
    assert primary_metric(report) == "accuracy"
    report["settings"]["metric"] = "f1"
    assert primary_metric(report) == "f1"


def test_nodes_out_of_place_are_named():
    lines = placement_words(make_report(not_run={}))
    assert "Nodes of compact fp16, CUDA: 120 on cuda, 2 on cpu; out of place: gather_3 (Gather) runs on cpu." in lines


def test_one_thread_and_one_process_are_singular():
    report = make_report(rounds=1)
    report["settings"]["threads"] = 1
    assert "1 thread · 1 process a variant" in about_words(report)
