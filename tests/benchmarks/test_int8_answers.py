"""The page about int8's answers, from made-up reports; what is measured is measured by the harness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from benchmarks import _int8_figure, int8_answers
from benchmarks._texts import Texts
from benchmarks._workshop import EXAMPLE, SENTENCES, Given
from compactor.benching.plan import Variant
from tests.compactor.reports import make_report


@pytest.fixture
def result():
    report = make_report(data=True, cases=("batch 1", "batch 8"))
    names = [variant["name"] for variant in report["variants"]]
    return {
        "machine": report["machine"],
        "models": {"model": {"rows": names, "report": report, "dependence": dict.fromkeys(names, 1.5e-3)}},
    }


def test_the_page_has_a_row_for_each_graph(result):
    text = int8_answers.render(result)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    report = result["models"]["model"]["report"]
    assert len(lines) == 2 + len(report["variants"])
    assert lines[0] == "| graph | file | batch 1 | batch 8 | accuracy | dependence |"
    assert "1.5e-03" in lines[3] and "changed" in lines[4]
    assert "Measurement VALID." in text and report["command"] in text


def test_a_row_without_numbers_says_so(result):
    report = make_report(data=True, cases=("batch 1",), failed={"compact-fp32": "boom"})
    result["models"]["model"]["report"] = report
    assert "boom" in int8_answers.render(result)


def test_texts_kept_have_a_column(result):
    model = result["models"]["model"]
    model["kept"] = {row: [497, 500] for row in model["rows"]}
    lines = int8_answers.render(result).splitlines()
    assert any(line.endswith("| texts kept | dependence |") for line in lines)
    assert sum("| 497 of 500 |" in line for line in lines) == len(model["rows"])


def test_a_peer_that_is_not_installed_is_a_row_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(int8_answers, "not_installed", lambda *names: "nncf not installed")
    row = int8_answers.build_openvino(Given(tmp_path, EXAMPLE), SENTENCES, {})
    assert (row.name, row.reason) == (int8_answers.OPENVINO, "not run: nncf not installed")


def test_calibration_takes_texts_one_by_one():
    first, second = (int8_answers.text_of(EXAMPLE, SENTENCES, number) for number in (0, 1))
    assert len(first["input_ids"]) == 1 and first["input_ids"].shape != second["input_ids"].shape
    np.testing.assert_array_equal(int8_answers.text_of(EXAMPLE, SENTENCES, 872)["input_ids"], first["input_ids"])


def test_the_figure_has_a_mark_for_each_row_of_a_model_whose_times_are_valid(result, tmp_path):
    model = result["models"]["model"]
    names = ["fp32", "ours, tensor", "ours, token", "OpenVINO, static"]
    model["rows"] = names
    assert _int8_figure.draw(result, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    marks = [f'id="model-{case}-{name}"' for case in ("batch 1", "batch 8") for name in names[:3]]
    assert [text.count(mark) for mark in marks] == [1] * 6
    assert "model-batch 1-OpenVINO" not in text  # it did not run
    _int8_figure.draw(result, tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_bytes() == (tmp_path / "a.svg").read_bytes()
    model["report"]["verdict"]["valid"] = False
    assert not _int8_figure.draw(result, tmp_path / "c.svg")


def test_points_are_shares_of_changed_answers(result):
    model = result["models"]["model"]
    names = model["rows"] = ["fp32", "ours, tensor", "ours, token", "OpenVINO, static"]
    (_, case, points), _ = _int8_figure.drawn(result)
    assert case == "batch 1"
    assert [(row, round(changed, 3)) for row, _, changed, _ in points] == [
        ("fp32", 0), ("ours, tensor", 0), ("ours, token", round(1300 / 872, 3)),
    ]  # fmt: skip
    model["kept"] = {"fp32": [500, 500], "ours, tensor": [480, 500], "ours, token": [495, 500], names[-1]: [0, 500]}
    (_, _, points), _ = _int8_figure.drawn(result)
    assert [round(changed, 3) for _, _, changed, _ in points] == [0, 4, 1]


def test_dependence_is_zero_for_a_graph_that_treats_examples_alone(tmp_path: Path) -> None:
    """And not for one that looks at its mates: here, at the mean of all token ids."""

    def graph(mixing: bool) -> Path:
        ids = ir.Value(name="input_ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch", "sequence"]))
        real = ir.node("Cast", [ids], {"to": ir.DataType.FLOAT.value})
        mean = ir.node("ReduceMean", real.outputs, {"keepdims": 1})
        first = ir.node("Gather", [real.outputs[0], ir.Value(name="zero")], {"axis": 1})
        zero = ir.tensor(np.array([0], np.int64), name="zero")
        value = first.inputs[1]
        value.const_value, value.type, value.shape = zero, ir.TensorType(ir.DataType.INT64), ir.Shape([1])
        added = ir.node("Add", [first.outputs[0], mean.outputs[0]]) if mixing else ir.node("Identity", first.outputs)
        out = added.outputs[0]
        out.name, out.type, out.shape = "logits", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch", 1])
        nodes = [real, mean, first, added] if mixing else [real, first, added]
        made = ir.Model(ir.Graph([ids], [out], nodes=nodes, initializers=[value], opset_imports={"": 18}), ir_version=9)
        ir.save(made, tmp_path / f"{mixing}.onnx")
        return tmp_path / f"{mixing}.onnx"

    def row(mixing: bool) -> Variant:
        return Variant("row", "row", "row", "onnxruntime", "cpu", "int8", graph(mixing))

    texts = Texts.read(EXAMPLE, SENTENCES)
    assert int8_answers.dependence(row(False), texts) == 0
    assert int8_answers.dependence(row(True), texts) > 0.01
