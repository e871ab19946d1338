"""The peer's rule: what it removes, what it should not have removed, and what it leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from benchmarks import _nn_pruning


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=12
    )
    model = transformers.BertForSequenceClassification(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "LayerNorm" not in name:  # large enough for every part to matter
            parameter.normal_(std=0.5)
    return model


def _kill(linear: Any, rows: slice) -> None:
    linear.weight[rows] = 0


def _run(model: Any) -> torch.Tensor:
    ids = torch.arange(14).reshape(2, 7)
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def test_a_dense_model_stays_as_it_is(model: Any) -> None:
    before = _run(model)
    assert torch.equal(_run(_nn_pruning.compact(model)), before)


def test_heads_and_neurons_that_are_all_zero_go_and_nothing_changes(model: Any) -> None:
    layer = model.bert.encoder.layer[0]
    for linear in (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value):
        _kill(linear, slice(4, 8))
    layer.attention.output.dense.weight[:, 4:8] = 0
    _kill(layer.intermediate.dense, slice(0, 5))
    layer.output.dense.weight[:, 0:5] = 0
    before = _run(model)
    _nn_pruning.compact(model)
    assert layer.attention.self.query.weight.shape == (12, 16)
    assert layer.attention.output.dense.weight.shape == (16, 12)
    assert (layer.intermediate.dense.weight.shape, layer.output.dense.weight.shape) == ((7, 16), (16, 7))
    assert model.bert.encoder.layer[1].attention.self.query.weight.shape == (16, 16)
    torch.testing.assert_close(_run(model), before)


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_one_dead_matrix_of_three_takes_the_head_along_and_changes_the_answer(model: Any, name: str) -> None:
    layer = model.bert.encoder.layer[1]
    _kill(getattr(layer.attention.self, name), slice(0, 4))
    before = _run(model)
    _nn_pruning.compact(model)
    assert layer.attention.self.num_attention_heads == 3
    assert not torch.allclose(_run(model), before, atol=1e-4), "the rule is approximate, and this is where"


def test_a_neuron_with_one_dead_side_goes_with_its_bias(model: Any) -> None:
    layer = model.bert.encoder.layer[0]
    _kill(layer.intermediate.dense, slice(2, 3))
    layer.output.dense.weight[:, 9] = 0
    before = _run(model)
    _nn_pruning.compact(model)
    assert layer.intermediate.dense.bias.shape == (10,)
    assert not torch.allclose(_run(model), before, atol=1e-4), "gelu(b) of the dead row is lost"


def test_where_nothing_would_be_left_the_first_stays(model: Any) -> None:
    layer = model.bert.encoder.layer[0]
    _kill(layer.attention.self.value, slice(None))
    _kill(layer.intermediate.dense, slice(None))
    _nn_pruning.compact(model)
    assert layer.attention.self.value.weight.shape == (4, 16)
    assert layer.intermediate.dense.weight.shape == (1, 16)
    assert _run(model).isfinite().all()
