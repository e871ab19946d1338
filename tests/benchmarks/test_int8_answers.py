"""The page about int8's answers, from made-up reports; what is measured is measured by the harness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from benchmarks import int8_answers
from benchmarks._workshop import EXAMPLE, SENTENCES, Given
from tests.compactor.reports import make_report


@pytest.fixture
def result():
    report = make_report(data=True, cases=("batch 1", "batch 8"))
    names = [variant["name"] for variant in report["variants"]]
    return {"models": {"model": {"rows": names, "report": report, "dependence": dict.fromkeys(names, 1.5e-3)}}}


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

    shop = Given(tmp_path, EXAMPLE)
    assert int8_answers.dependence(graph(False), SENTENCES, shop) == 0
    assert int8_answers.dependence(graph(True), SENTENCES, shop) > 0.01
