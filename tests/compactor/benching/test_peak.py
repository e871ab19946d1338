from __future__ import annotations

import itertools

import numpy as np
import onnxruntime
import pytest

from compactor.benching import peak as peaks
from compactor.benching.peak import peak, product_model
from compactor.benching.report import report_schema
from compactor.errors import MeasurementError
from compactor.runtime.executed_graph import executed_operators
from compactor.schema import schema_problems

SPEC = {"peak": {"provider": "cpu", "size": 64, "seconds": 0.0}, "threads": 1, "spinning": False}


def test_measures_the_machine_as_the_report_wants_it():
    found = peak(SPEC)["peak"]
    schema = report_schema()
    assert schema_problems(found, {"$ref": "#/$defs/peak", "$defs": schema["$defs"]}, "peak") == []
    assert set(found) == {"fp32", "int8"}
    for block in found.values():
        assert block["macs_per_s"] > 0
        assert block["size"] in (64, 32, 16)
        assert (block["engine"], block["provider"], block["threads"]) == ("onnxruntime", "cpu", 1)


def test_keeps_the_fastest_of_three_sizes(monkeypatch):
    seconds = {("fp32", 64): 64.0, ("fp32", 32): 4.0, ("fp32", 16): 1.0, ("int8", 64): 2.0, ("int8", 32): 1.0}
    asked = []

    def best_seconds(precision, size, budget, *_):
        asked.append(budget)
        return seconds.get((precision, size), 1.0)

    monkeypatch.setattr(peaks, "_best_seconds", best_seconds)
    found = peak(SPEC | {"peak": SPEC["peak"] | {"seconds": 3.0}})["peak"]
    assert (found["fp32"]["size"], found["fp32"]["macs_per_s"]) == (32, 32**3 / 4)
    assert (found["int8"]["size"], found["int8"]["macs_per_s"]) == (64, 64**3 / 2)
    assert asked == [1.0] * 6


def test_a_gpu_gets_larger_products_and_half_precision(monkeypatch):
    sizes = []
    monkeypatch.setattr(peaks, "_best_seconds", lambda precision, size, *_: sizes.append(size) or 1.0)
    found = peak(SPEC | {"peak": SPEC["peak"] | {"provider": "cuda"}})["peak"]
    assert set(found) == {"fp32", "fp16"}
    assert max(sizes) == 8192
    assert {block["provider"] for block in found.values()} == {"cuda"}


@pytest.mark.parametrize(
    ("precision", "operator"), [("fp32", "MatMul"), ("int8", "com.microsoft::DynamicQuantizeMatMul")]
)
def test_multiplies_in_the_precision_it_says(precision, operator):
    weights = np.ones((32, 16), np.float32)
    assert executed_operators(product_model(precision, weights).SerializeToString()) == {operator: 1}


@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-5), ("fp16", 1e-2), ("int8", 0.05)])
def test_the_products_are_right(precision, error):
    random = np.random.default_rng(0)
    x, weights = random.standard_normal((8, 96), np.float32), random.standard_normal((96, 16), np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = product_model(precision, weights).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (product,) = session.run(None, {"x": x.astype(np.float16 if precision == "fp16" else np.float32)})
    expected = x @ weights
    assert np.abs(product - expected).max() < error * np.abs(expected).max()


def test_a_wrong_product_is_refused(monkeypatch):
    right = peaks.product_model
    monkeypatch.setattr(
        peaks, "product_model", lambda precision, weights: right(precision, weights * np.float32(1.001))
    )
    with pytest.raises(MeasurementError, match="the fp32 product of the peak measurement is wrong"):
        peak(SPEC)


def test_the_best_sample_counts(monkeypatch):
    times = iter([5.0, 3.0, 1.0, 4.0, 2.0, 0.5])
    monkeypatch.setattr(peaks, "_time", lambda call: next(times))
    clock = itertools.count()
    monkeypatch.setattr(peaks.time, "perf_counter", lambda: next(clock))
    assert peaks._fastest(lambda: None, seconds=3.0) == 1.0
    assert next(times) == 0.5, "samples that begin within the time, and no more"


def test_samples_three_times_at_least(monkeypatch):
    calls = []
    peaks._fastest(lambda: calls.append(1), seconds=0.0)
    assert len(calls) == 3
