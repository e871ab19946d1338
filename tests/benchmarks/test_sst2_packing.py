"""Packing on real sentences: the batches, and the table."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks import _record, sst2_packing
from benchmarks._run import Row
from benchmarks._workshop import Given
from tests.benchmarks.made_up import CASE, SETTINGS, run_of


def test_sentences_come_in_file_order_with_its_padding_and_by_length_with_little(tmp_path: Path) -> None:
    in_order, bucketed = sst2_packing.sentences(tmp_path).cases
    assert (len(in_order.files), in_order.examples, in_order.bucketed) == (28, 872, False)
    assert in_order.positions / in_order.tokens == pytest.approx(1.94, abs=0.01)
    assert (bucketed.examples, bucketed.tokens, bucketed.bucketed) == (872, in_order.tokens, True)
    assert bucketed.positions / bucketed.tokens < 1.1


def test_rows_are_the_same_model_packed_and_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Given, "ours", lambda self, *_, **options: Path(f"pack-{options['pack']}"))
    made = {row.id: row.make().path for row in sst2_packing.make_rows("a model", Given(tmp_path, Path("model")))}
    assert made == {
        "model-unpacked": Path("pack-False/model_quantized.onnx"),
        "model-packed": Path("pack-True/model_quantized.onnx"),
    }


def test_packing_is_given_as_sentences_per_second_and_as_a_ratio(tmp_path: Path) -> None:
    case = dataclasses.replace(CASE, id="batch 2, in order", examples=100, tokens=50, positions=150)
    how = dataclasses.replace(SETTINGS, scenario="offline")
    rows: list[Row] = sst2_packing.make_rows("a model", Given(tmp_path, Path("model")))
    report = _record.make_report(
        "A title",
        rows,
        run_of(rows, {"model-unpacked": 1000.0, "model-packed": 500.0}, case, how),
        baseline="model-unpacked",
        command="python benchmarks/sst2_packing.py",
    )
    text = sst2_packing.render({"batch": 32, "reports": {"a model": report}})
    assert "| a model, batch 2, in order | 3.00× | 100 | 200 | 2.00× [" in text
