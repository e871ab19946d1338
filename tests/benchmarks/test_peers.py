"""The peers: a row for each, also for those that are not installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks import _record, peers
from benchmarks._run import EXACT, LOOSE, STATIC, Row
from benchmarks._workshop import Given, Planted
from tests.benchmarks.made_up import ENTRY, run_of


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> dict[str, Row]:
    """As on a machine where nothing but the project is installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    return {row.id: row for row in peers.make_rows(Planted(Path("work"), ENTRY), optimum=None)}


def test_what_is_not_installed_is_a_row_that_says_so(rows: dict[str, Row]) -> None:
    reasons = {name: row.missing for name, row in rows.items() if row.missing is not None}
    absent = "openvino and nncf not installed: pip install 'compactor[peers]'"
    assert reasons == {
        **{f"{kind}-openvino-{p}": absent for kind in ("dense", "compact") for p in ("fp32", "bf16", "int8")},
        "dense-ctranslate2-int8": "ctranslate2 not installed: pip install 'compactor[peers]'",
        **{
            f"optimum-{level}-{p}": "no interpreter with optimum-onnx given: --optimum-python"
            for level in ("O2", "O3")
            for p in ("fp32", "int8")
        },
    }
    assert rows["dense-ctranslate2-int8"].make().reason == f"not run: {reasons['dense-ctranslate2-int8']}"


def test_the_rows_are_those_that_the_tables_compare(rows: dict[str, Row]) -> None:
    assert {peers.BASELINE, peers.OURS, *peers.STOCK} < rows.keys()
    assert {"dense-torch-eager", "dense-torch-compiled", "pruned-torch-eager", "nn-pruning-eager"} < rows.keys()
    assert rows["dense-torch-compiled"].options == {"compile": True}
    assert rows["nn-pruning-eager"].options == {"transform": "_nn_pruning:compact"}


def test_dense_rows_are_checked_against_the_dense_model_and_the_others_against_the_pruned(rows: dict[str, Row]) -> None:
    pruned = Planted(Path("work"), ENTRY)
    for name, row in rows.items():
        assert row.shop == (pruned.dense if name.startswith("dense-") else pruned), name


def test_only_what_computes_in_float32_must_be_exact(rows: dict[str, Row]) -> None:
    loose = {name for name, row in rows.items() if row.tolerance != EXACT}
    assert {name: row.tolerance for name, row in rows.items() if row.tolerance not in (EXACT, LOOSE)} == {
        "dense-openvino-int8": STATIC,
        "compact-openvino-int8": STATIC,
    }
    approximate = {"optimum-O3-fp32", "nn-pruning-eager", "nn-pruning-compiled"}
    assert loose == approximate | {name for name, row in rows.items() if row.precision != "fp32"}


def test_the_answers_of_an_encoder_get_the_head_of_the_checkpoint(tmp_path: Path) -> None:
    state = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    head = np.random.default_rng(1).normal(size=(2, 4)).astype(np.float32)
    shop = Given(tmp_path, tmp_path)
    tensors = {"qa_outputs.weight": head, "qa_outputs.bias": np.array([0.5, -0.5], np.float32)}
    save_file(tensors, tmp_path / "model.safetensors")
    found = peers.with_head({"last_hidden_state": state}, shop)
    np.testing.assert_allclose(found["start_logits"], state @ head[0] + 0.5, rtol=1e-5)
    np.testing.assert_allclose(found["end_logits"], state @ head[1] - 0.5, rtol=1e-5)

    pooler = np.eye(4, dtype=np.float32)
    tensors = {
        "bert.pooler.dense.weight": pooler,
        "bert.pooler.dense.bias": np.zeros(4, np.float32),
        "classifier.weight": head,
        "classifier.bias": np.zeros(2, np.float32),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    found = peers.with_head({"last_hidden_state": state}, shop)
    np.testing.assert_allclose(found["logits"], np.tanh(state[:, 0]) @ head.T, rtol=1e-5)


def _text(rows: dict[str, Row], times: dict[str, float]) -> str:
    run = run_of(list(rows.values()), times)
    report: dict[str, Any] = _record.make_report(
        "A title",
        list(rows.values()),
        run,
        baseline=peers.BASELINE,
        command="python benchmarks/peers.py",
    )
    return peers.render({"entry": ENTRY.to_json(), "relative_error": run.errors, "report": report})


def test_ours_is_compared_with_the_faster_of_the_stock_recipes_and_with_no_one_absent(rows: dict[str, Row]) -> None:
    text = _text(rows, {peers.BASELINE: 20.0, peers.OURS: 2.0, peers.STOCK[0]: 6.0, peers.STOCK[1]: 5.0})
    assert "| ours: compactor int8 | - | 2.00 [2.00, 2.00] 10.0× [" in text
    assert "| stock | 2.50× |" in text
    assert "| CTranslate2 int8, dense | - |" in text
    assert "dense: CTranslate2 int8, without the task's head: not run: it is absent." in text
    assert "| dense: CTranslate2" not in text, "a row without numbers stands below the table"
