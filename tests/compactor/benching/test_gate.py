"""A report at the gate: which variant is judged, what passes, and what is said of what does not."""

from __future__ import annotations

import copy

import pytest

from compactor.benching.gate import Gate, judge_gate
from compactor.errors import MeasurementError, UsageError
from tests.compactor.reports import make_report


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("answers=99.5,speed=1.5", Gate(99.5, 1.5)),
        (" speed=2x , answers=98% ", Gate(98.0, 2.0)),
        ("answers=100", Gate(100.0, None)),
    ],
)
def test_what_is_asked(text, expected):
    assert Gate.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "asks for nothing"),
        ("answers", "asks for nothing"),
        ("answers=most", "asks for nothing"),
        ("accuracy=0.9", "'accuracy' is unknown"),
        ("speed=2,speed=3", "'speed' is twice in it"),
        ("answers=101", "answers cannot be 101"),
        ("speed=0", "speed cannot be 0"),
        ("speed=nan", "speed cannot be nan"),
        ("speed=inf", "speed cannot be inf"),
    ],
)
def test_what_is_no_gate(text, message):
    with pytest.raises(UsageError, match=message):
        Gate.parse(text)


@pytest.fixture
def report():
    return copy.deepcopy(make_report(variants=("model-torch", "model-torch-compiled", "compact-fp32", "compact-int8")))


def variant(report, name):
    return next(each for each in report["variants"] if each["id"] == name)


def test_what_serving_takes_is_judged_and_no_other(report):
    (judged,) = judge_gate(report, Gate(98.0, 1.5))
    assert judged.name == variant(report, "compact-int8")["name"]
    assert not judged.misses and str(judged).startswith("gate passed: compact int8: ")
    variant(report, "compact-fp32")["results"][0]["ratio"]["value"] = 0.5
    assert not judge_gate(report, Gate(None, 1.5))[0].misses, "fp32 is there, and not what is served"
    report["variants"].remove(variant(report, "compact-int8"))
    assert judge_gate(report, Gate(None, 1.5))[0].misses


def test_the_precisions_of_one_artefact(report):
    report["variants"] = [variant(report, "compact-fp32"), variant(report, "compact-int8")]
    report["baseline"] = "compact-fp32"
    (judged,) = judge_gate(report, Gate(99.0, None))
    assert judged.name == "compact int8"
    report["variants"].pop()
    with pytest.raises(MeasurementError, match="only the baseline"):
        judge_gate(report, Gate(99.0, None))


def test_answers_that_changed(report):
    quality = variant(report, "compact-int8")["quality"]["metrics"]
    found = next(iter(quality.values()))
    found["n"], found["difference"]["changed"] = 872, 13
    (judged,) = judge_gate(report, Gate(99.5, 1.01))
    assert judged.misses == ("98.51 % of 872 answers kept (asked 99.5 %)",)
    assert str(judged) == "gate failed: compact int8: 98.51 % of 872 answers kept (asked 99.5 %)"
    quality["same_first_hit"] = {"value": 0.9966, "n": 298}
    assert not judge_gate(report, Gate(99.5, None))[0].misses, "of vectors it is the first hits"


def test_every_case_has_to_be_fast_enough(report):
    ratios = [result["ratio"] for result in variant(report, "compact-int8")["results"]]
    ratios[-1]["value"] = 1.2
    (judged,) = judge_gate(report, Gate(None, 1.5))
    assert len(judged.misses) == 1 and "1.20 times as fast" in judged.misses[0]


def test_what_was_not_measured_does_not_pass(report):
    failed = variant(report, "compact-int8")
    failed |= {"status": "failed", "why": {"what": "it crashed", "where": None, "todo": None}, "results": []}
    (judged,) = judge_gate(report, Gate(None, 1.5))
    assert judged.misses == ("not measured: it crashed",)


def test_what_was_not_asked_for_cannot_be_judged(report):
    variant(report, "compact-int8")["quality"] = None
    with pytest.raises(MeasurementError, match="held against the baseline"):
        judge_gate(report, Gate(99.0, None))
    variant(report, "compact-int8")["results"] = []
    with pytest.raises(MeasurementError, match="asks for a speed"):
        judge_gate(report, Gate(None, 1.5))
