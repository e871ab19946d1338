from __future__ import annotations

import pytest
import torch
import transformers

from compactor.checkpoint import read_checkpoint
from compactor.errors import ModelDirectoryError
from tests.compactor.checkpoints import FAMILIES, HEAD_DIM, HEADS, LAYERS, config, modules, tensors, write

PRUNED = {"0": [0, 2], "1": [3]}


def channels(heads):
    return [head * HEAD_DIM + channel for head in heads for channel in range(HEAD_DIM)]


def narrow(weights, family="bert", pruned=None):
    """Delete heads as transformers 4 does: rows of Q, K and V with their biases, columns of O."""
    weights = dict(weights)
    for layer, heads in (PRUNED if pruned is None else pruned).items():
        kept = channels([head for head in range(HEADS) if head not in heads])
        *inputs, output = modules(family, int(layer))[:4]
        for module in inputs:
            for part in ("weight", "bias"):
                weights[f"{module}.{part}"] = weights[f"{module}.{part}"][kept]
        weights[f"{output}.weight"] = weights[f"{output}.weight"][:, kept]
    return weights


def zeroed(weights, family="bert", pruned=None):
    """The same function with all heads in place: zeros where ``narrow`` deletes."""
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    for layer, heads in (PRUNED if pruned is None else pruned).items():
        *inputs, output = modules(family, int(layer))[:4]
        for module in inputs:
            weights[f"{module}.weight"][channels(heads)] = 0
            weights[f"{module}.bias"][channels(heads)] = 0
        weights[f"{output}.weight"][:, channels(heads)] = 0
    return weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_pruned_heads_come_back_as_zeros(tmp_path, family, dtype):
    weights = tensors(family, dtype=dtype)
    folder = write(tmp_path, narrow(weights, family), config(family, pruned_heads=PRUNED))
    checkpoint = read_checkpoint(folder)
    expected = zeroed(weights, family)
    assert checkpoint.format == "head_pruned"
    assert checkpoint.tensors.keys() == expected.keys()
    for name in expected:
        assert checkpoint.tensors[name].dtype == dtype and torch.equal(checkpoint.tensors[name], expected[name]), name
    assert "pruned_heads" not in checkpoint.config
    assert checkpoint.notes[-1] == "3 heads that were pruned from 2 layers put back as zeros"


def test_projections_without_biases_come_back_too(tmp_path):
    weights = {name: tensor for name, tensor in tensors().items() if not name.endswith(("query.bias", "key.bias"))}
    full = zeroed(tensors())
    for layer in range(LAYERS):
        for module in modules("bert", layer)[:2]:
            del full[f"{module}.bias"]
    dummies = {f"{module}.bias": torch.ones(HEADS * HEAD_DIM) for layer in (0, 1) for module in modules("bert", layer)}
    narrowed = {name: tensor for name, tensor in narrow(dummies | weights).items() if name in full}
    checkpoint = read_checkpoint(write(tmp_path, narrowed, config(pruned_heads=PRUNED)))
    assert all(torch.equal(checkpoint.tensors[name], full[name]) for name in full)


def test_a_layer_may_have_lost_every_head(tmp_path):
    pruned = {"1": list(range(HEADS))}
    folder = write(tmp_path, narrow(tensors(), pruned=pruned), config(pruned_heads=pruned))
    checkpoint = read_checkpoint(folder)
    query, *_, output = modules("bert", 1)[:4]
    assert checkpoint.tensors[f"{query}.weight"].shape == (HEADS * HEAD_DIM, 16)
    assert not checkpoint.tensors[f"{output}.weight"].any() and checkpoint.tensors[f"{output}.bias"].all()


@pytest.mark.parametrize("empty", [{}, {"0": []}])
def test_an_empty_list_of_pruned_heads_is_a_plain_checkpoint(tmp_path, empty):
    checkpoint = read_checkpoint(write(tmp_path, tensors(), config(pruned_heads=empty)))
    assert checkpoint.format == "plain" and "pruned_heads" not in checkpoint.config


def test_the_stock_class_computes_what_the_pruned_model_did(tmp_path):
    """Against transformers' own pruning where it still exists (4.57), and against planted zeros everywhere."""
    settings = transformers.BertConfig(**{**config(), "num_labels": 2})
    reference = transformers.BertForSequenceClassification(settings).eval()
    weights = tensors()
    reference.load_state_dict(weights)
    if hasattr(reference, "prune_heads"):
        reference.prune_heads({int(layer): heads for layer, heads in PRUNED.items()})
        reference.save_pretrained(tmp_path)
    else:
        reference.load_state_dict(zeroed(weights))
        write(tmp_path, narrow(weights), config(pruned_heads=PRUNED))

    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.format == "head_pruned"
    stock = transformers.BertForSequenceClassification(transformers.BertConfig(**checkpoint.config)).eval()
    stock.load_state_dict(checkpoint.tensors)
    inputs = {
        "input_ids": torch.randint(0, 30, (3, 7), generator=torch.Generator().manual_seed(0)),
        "attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [0, 0, 1, 1, 0, 1, 1]]),
    }
    with torch.no_grad():
        torch.testing.assert_close(stock(**inputs).logits, reference(**inputs).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("pruned", "message"),
    [
        ({"2": [0]}, "names layer '2' of 2"),
        ({"-1": [0]}, "names layer '-1' of 2"),
        ({"x": [0]}, "names layer 'x' of 2"),
        ({"0": [4]}, "must list heads from 0 to 3"),
        ({"0": [-1]}, "must list heads from 0 to 3"),
        ({"0": ["a"]}, "must list heads from 0 to 3"),
        ({"0": 1}, "must list heads from 0 to 3"),
        ([[0]], "must map layers to heads"),
    ],
)
def test_a_malformed_list_of_pruned_heads_is_refused(tmp_path, pruned, message):
    with pytest.raises(ModelDirectoryError, match=message):
        read_checkpoint(write(tmp_path, tensors(), config(pruned_heads=pruned)))


def test_weights_that_still_have_the_pruned_heads_are_refused(tmp_path):
    with pytest.raises(ModelDirectoryError, match=r"query\.weight' is 16 x 16, but the config asks for 8 x 16"):
        read_checkpoint(write(tmp_path, tensors(), config(pruned_heads=PRUNED)))


def test_narrow_weights_without_the_list_are_refused(tmp_path):
    with pytest.raises(ModelDirectoryError, match=r"query\.weight' is 8 x 16, but the config asks for 16 x 16"):
        read_checkpoint(write(tmp_path, narrow(tensors()), config()))


def test_pruned_heads_of_a_family_without_known_names_are_refused(tmp_path):
    weights = {name.replace("attention.self", "mixer"): tensor for name, tensor in tensors().items()}
    with pytest.raises(ModelDirectoryError, match="no attention with known names"):
        read_checkpoint(write(tmp_path, weights, config(pruned_heads=PRUNED)))
