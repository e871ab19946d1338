"""Sums of squares of what layers read, against each text alone and without padding."""

from __future__ import annotations

import pytest
import torch

from compactor.speedup.observing import gram_matrices, hooked
from compactor.speedup.subject import real_rows
from compactor.speedup.units import find_units
from tests.compactor import encoders
from tests.compactor.speedup import subjects


def build(family):
    if family == "bert":
        return subjects.bert()
    return encoders.build(family).double().requires_grad_(False)


def read_alone(model, units, batches):
    """By unit (T, N): what its last layer reads of the same padded batches, picked token by token."""
    rows = {unit.name: [] for unit in units}
    for batch in batches:
        seen = {}
        handles = [
            unit.module.register_forward_hook(
                lambda module, inputs, output, seen=seen: seen.update({module: inputs[0]})
            )
            for unit in units
        ]
        model(**batch)
        for handle in handles:
            handle.remove()
        for unit in units:
            for example, mask in enumerate(batch["attention_mask"].tolist()):
                rows[unit.name] += [seen[unit.module][example, place] for place, real in enumerate(mask) if real]
    return {name: torch.stack(found) for name, found in rows.items()}


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("family", ["bert", "modernbert", "modernbert-biases", "eurobert-grouped"])
def test_only_real_tokens_count(family, left):
    model, batches = build(family), subjects.batches(left=left)
    units = find_units(model, batches[0])
    found = gram_matrices(model, units, batches)
    tokens = sum(map(sum, subjects.LENGTHS))

    assert list(found) == [unit.name for unit in units]
    for unit in units:
        rows = read_alone(model, units, batches)[unit.name]
        assert len(rows) == tokens
        if unit.module.bias is not None:
            rows = torch.cat([rows, torch.ones(tokens, 1, dtype=rows.dtype)], 1)
            assert found[unit.name][-1, -1] == tokens
        assert found[unit.name].dtype == torch.float64
        torch.testing.assert_close(found[unit.name], rows.T @ rows, rtol=1e-12, atol=1e-12)


def test_padding_changes_nothing():
    model = subjects.bert()
    padded = subjects.batches(((9, 4, 6),))
    single = [
        {name: tensor[row : row + 1, :length] for name, tensor in padded[0].items()}
        for row, length in enumerate((9, 4, 6))
    ]
    units = find_units(model, padded[0])
    one, other = gram_matrices(model, units, padded), gram_matrices(model, units, single)
    for name, gram in one.items():
        torch.testing.assert_close(gram, other[name], rtol=1e-10, atol=1e-10)


def test_batches_add_up_and_are_left_alone():
    model, batches = subjects.bert(), subjects.batches()
    units = find_units(model, batches[0])
    whole = gram_matrices(model, units, batches)
    parts = [gram_matrices(model, units, [batch]) for batch in batches]
    for name, gram in whole.items():
        torch.testing.assert_close(gram, sum(part[name] for part in parts), rtol=1e-12, atol=1e-12)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_float32_sums_are_kept_in_float64():
    model, batches = subjects.bert().float(), subjects.batches()
    units = find_units(model, batches[0])
    assert all(gram.dtype == torch.float64 for gram in gram_matrices(model, units, batches).values())


def test_watchers_are_taken_away_where_the_model_fails():
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(RuntimeError), hooked({layer: lambda module, inputs: None}):
        layer(torch.ones(1, 3))
    assert not layer._forward_pre_hooks


def test_what_has_no_tokens_is_real():
    states = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert real_rows(states, {"attention_mask": mask}).tolist() == [[0, 1], [2, 3], [8, 9], [10, 11]]
    assert torch.equal(real_rows(states, {}), states.reshape(6, 2))
    assert torch.equal(real_rows(states[:, 0], {"attention_mask": mask}), states[:, 0])
    assert torch.equal(real_rows(states[:, :2], {"attention_mask": mask}), states[:, :2].reshape(4, 2))
