"""How samples become the numbers of a table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import _graphs, _measure, _report, _worker, export_cost, paper_shapes, sst2_packing


def test_the_median_is_that_of_the_rounds_and_the_percentiles_those_of_all_samples() -> None:
    summary = _measure.summarise([[1.0, 2.0, 30.0], [4.0, 5.0, 6.0], [9.0, 9.0, 9.0]])
    assert summary.median == 5.0
    assert summary.samples == 9
    assert (summary.p10, summary.p90) == tuple(np.percentile([1, 2, 30, 4, 5, 6, 9, 9, 9], (10, 90)))
    assert summary.spread == (summary.p90 - summary.p10) / 5.0


def test_every_second_round_runs_backwards() -> None:
    assert _measure.abba(["a", "b", "c"], 3) == [["a", "b", "c"], ["c", "b", "a"], ["a", "b", "c"]]


def test_relative_error_is_a_share_of_the_reference_over_all_outputs() -> None:
    reference = [{"x": np.array([3.0]), "y": np.array([0.0])}, {"x": np.array([4.0]), "y": np.array([0.0])}]
    other = [{"x": np.array([3.0]), "y": np.array([0.0])}, {"x": np.array([4.0]), "y": np.array([0.5])}]
    assert _measure.relative_error(reference, reference) == 0
    assert _measure.relative_error(reference, other) == pytest.approx(0.1)
    assert _measure.relative_errors({"case": reference}, {"case": other}) == {"case": pytest.approx(0.1)}


def test_an_output_that_is_missing_is_an_error() -> None:
    with pytest.raises(AssertionError, match=r"\['x'\], got \['y'\]"):
        _measure.relative_error([{"x": np.ones(1)}], [{"y": np.ones(1)}])


def test_the_worker_samples_as_often_as_it_is_told() -> None:
    def count(**limits: float) -> tuple[int, int]:
        calls: list[int] = []
        spec = _worker.Spec("onnxruntime", "", 1, {}, warm_up_s=0, warm_up_calls=2, **limits)  # type: ignore[arg-type]
        return len(_worker.sample(lambda: calls.append(1), spec)), len(calls)

    assert count(measure_s=0, min_samples=3, max_samples=9) == (3, 5)
    assert count(measure_s=1e9, min_samples=3, max_samples=9) == (9, 11)


def _result(**rounds: list[list[float]]) -> dict[str, object]:
    run = {
        "machine": {
            "cpu_model": "A CPU",
            "isa": ["avx2", "avx512_vnni"],
            "physical_cores": 2,
            "virtualised": True,
            "kernel": "6",
        },
        "versions": {"onnxruntime": "1"},
        "commit": "abc",
        "changed_files": 0,
        "load_before": 0.0,
    }
    names = {
        "dense": paper_shapes.DENSE,
        "ours": paper_shapes.OURS,
        "first": paper_shapes.STOCK[0],
        "second": paper_shapes.STOCK[1],
    }
    return {
        "run": run,
        "entry": {"title": "An entry"},
        "threads": 2,
        "clock": {"rounds": 1},
        "cases": ["1x8"],
        "variants": {
            names[name]: {"bytes": 1e6, "relative_error": {"1x8": 0.01}, "rounds_ms": {"1x8": samples}}
            for name, samples in rounds.items()
        },
        "absent": {"OpenVINO fp32": "no interpreter"},
    }


def test_gains_are_over_the_faster_stock_recipe_and_absent_variants_say_why() -> None:
    table = paper_shapes.render(_result(dense=[[20.0]], ours=[[2.0]], first=[[6.0]], second=[[5.0]]))
    assert "| ours int8 | 1 MB | 2.00 [2.00, 2.00] 10.00× | 1.0e-02 |" in table
    assert "| against dense fp32 | 10.00× |" in table
    assert "| against the stock recipe | 2.50× |" in table
    assert "| against OpenVINO static int8 | - |" in table
    assert "| OpenVINO fp32 | - | - | no interpreter |" in table
    assert "A CPU (avx512_vnni), 2 cores, virtual" in table
    assert "Spread" not in table


def test_a_wide_spread_is_named() -> None:
    assert "Spread beyond 10%: ours int8 at 1x8" in paper_shapes.render(_result(dense=[[20.0]], ours=[[2.0, 2.0, 3.0]]))


@pytest.mark.parametrize("text", ["8", "8x", "x8", "0x8", "8x-1", "axb"])
def test_a_shape_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SystemExit, match=f"expected a shape such as 8x128, got '{text}'"):
        paper_shapes.parse_shape(text)
    assert paper_shapes.parse_shape("8x128") == (8, 128)


def test_packing_is_given_as_sentences_per_second() -> None:
    found = {"rounds_ms": [[500.0, 500.0]]}
    result = _result() | {
        "workload": {"sentences": 100, "batch": 32, "real_positions": 10, "padded_positions": 20},
        "clock": {"rounds": 1, "max_samples": 2},
        "models": {"a model": {"packed": found, "unpacked": {"rounds_ms": [[1000.0, 1000.0]]}}},
    }
    table = sst2_packing.render(result)
    assert "| a model | 100 | 200 | 2.00× | 0% |" in table
    assert "3.00 positions for each real token" in table


def test_sst2_keeps_file_order_and_its_padding(tmp_path: Path) -> None:
    files = sst2_packing.write_batches(tmp_path)
    assert len(files) == 28
    sentences, real, padded = sst2_packing.count_positions(files)
    assert sentences == 872
    assert 1 + padded / real == pytest.approx(1.91, abs=0.01)


def test_costs_add_up_over_steps_and_peak_at_the_largest() -> None:
    steps = [{"wall_s": 2.0, "peak_bytes": 3_000_000_000}, {"wall_s": 3.0, "peak_bytes": 1_000_000_000}]
    result = _result() | {
        "model_bytes": 1_000_000_000,
        "tools": {export_cost.OURS: {"steps": ["export", "more"], "rounds": [steps]}},
        "absent": {"optimum-cli": "no interpreter"},
    }
    table = export_cost.render(result)
    assert "| compactor export: export, more | 5.0 s [5.0, 5.0] | 3.00 GB | 3.0× |" in table
    assert "| optimum-cli | - | - | no interpreter |" in table


def test_a_command_is_measured_and_its_failure_is_told() -> None:
    cost = export_cost.measure_command([sys.executable, "-c", "x = bytearray(200_000_000); x[::4096] = x[::4096]"])
    assert cost.peak_bytes > 190_000_000
    assert cost.wall_s > 0
    with pytest.raises(RuntimeError, match="exited with 3:\nwhy"):
        export_cost.measure_command([sys.executable, "-c", "print('why'); raise SystemExit(3)"])


def test_a_fresh_process_returns_what_the_function_does() -> None:
    assert _graphs.in_fresh_process(divmod, 7, 2) == (3, 1)


def test_json_keeps_samples_on_one_line_and_reads_back() -> None:
    value = {"a": {"rounds": [[1.0, 2.0], [3.0]], "empty": {}, "none": []}, "b": "text"}
    text = _report.compact_json(value)
    assert "[1.0, 2.0]" in text.splitlines()[3]
    assert json.loads(text) == value


def test_a_table_refuses_a_row_of_another_width() -> None:
    assert _report.markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"
    with pytest.raises(ValueError, match="expected 2 cells, got 1"):
        _report.markdown_table(["a", "b"], [["1"]])


def test_a_result_is_written_with_its_table(tmp_path: Path) -> None:
    _report.write_result(tmp_path / "new" / "result.json", {"x": [1]}, "| a |")
    assert json.loads((tmp_path / "new" / "result.json").read_text()) == {"x": [1]}
    assert (tmp_path / "new" / "result.md").read_text() == "| a |\n"
