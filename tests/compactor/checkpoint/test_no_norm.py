from __future__ import annotations

import pytest
import torch
import transformers

from compactor.checkpoint import read_checkpoint
from compactor.checkpoint.no_norm import NoNorm, replace_norms
from compactor.errors import ModelDirectoryError
from tests.compactor.checkpoints import LAYERS, WIDTH, config, hybrid_scores, sparse_args, tensors, write

EPSILON = 1e-3
DISABLED = {"attention_pruning_method": "disabled", "dense_pruning_method": "disabled"}


def raw(**changes):
    """The tensors of a raw folder of nn_pruning, and the mean and variance of each norm."""
    stored = tensors()
    moments = {}
    norms = [name.rpartition(".")[0] for name in stored if name.endswith("LayerNorm.weight")]
    assert len(norms) == 2 * LAYERS + 1
    for number, norm in enumerate(norms, 1):
        count, mean, variance = 0.3 + 0.1 * number, -0.05 * number, 0.4 * number
        stored[f"{norm}.accumulator"] = torch.tensor([mean * count, variance * count, count])
        moments[norm] = (mean, variance)
    return {**stored, **changes}, moments


def test_the_config_keeps_the_norm_it_names(tmp_path):
    checkpoint = read_checkpoint(write(tmp_path, model_config=config(layer_norm_type="no_norm")))
    assert checkpoint.config["layer_norm_type"] == "no_norm"
    assert (
        read_checkpoint(write(tmp_path / "usual", model_config=config(layer_norm_type="layer_norm"))).format == "plain"
    )


@pytest.mark.parametrize("masked", [True, False])
def test_running_statistics_become_weights(tmp_path, masked):
    stored, moments = raw()
    masks = sparse_args(layer_norm_patch=True, gelu_patch=True, **({} if masked else DISABLED))
    folder = write(tmp_path, stored | (hybrid_scores() if masked else {}), config(layer_norm_eps=EPSILON), masks=masks)
    checkpoint = read_checkpoint(folder)

    assert checkpoint.config["layer_norm_type"] == "no_norm"
    assert checkpoint.config["hidden_act"] == "relu"
    assert not [name for name in checkpoint.tensors if name.endswith("accumulator")]
    assert (
        f"running statistics of {2 * LAYERS + 1} norms folded into their weights: each is a NoNorm" in checkpoint.notes
    )
    x = torch.linspace(-3, 2, WIDTH)
    for norm, (mean, variance) in moments.items():
        expected = (x - mean) / (variance + EPSILON) ** 0.5 * stored[f"{norm}.weight"] + stored[f"{norm}.bias"]
        folded = NoNorm(checkpoint.tensors[f"{norm}.weight"], checkpoint.tensors[f"{norm}.bias"])
        torch.testing.assert_close(folded(x), expected)


def without(name):
    stored, _ = raw()
    del stored[name]
    return stored


NORM = "bert.encoder.layer.0.output.LayerNorm"


@pytest.mark.parametrize(
    ("stored", "values", "message"),
    [
        (raw()[0], {}, "no 'layer_norm_eps'"),
        (without(f"{NORM}.accumulator"), {"layer_norm_eps": EPSILON}, f"'{NORM}' should be a norm"),
        (raw(**{f"{NORM}.accumulator": torch.zeros(3)})[0], {"layer_norm_eps": EPSILON}, "no mean, variance and count"),
        (raw(**{f"{NORM}.accumulator": torch.ones(2)})[0], {"layer_norm_eps": EPSILON}, "no mean, variance and count"),
        (
            raw(**{f"{NORM}.accumulator": torch.tensor([0.0, -1, 1])})[0],
            {"layer_norm_eps": EPSILON},
            "no mean, variance and count",
        ),
        (raw(**{"bert.odd.accumulator": torch.ones(3)})[0], {"layer_norm_eps": EPSILON}, "'bert.odd' should be a norm"),
        (without(f"{NORM}.bias"), {"layer_norm_eps": EPSILON}, "no mean, variance and count"),
    ],
)
def test_statistics_that_do_not_define_a_norm_are_refused(tmp_path, stored, values, message):
    folder = write(tmp_path, stored, config(**values), masks=sparse_args(layer_norm_patch=True, **DISABLED))
    with pytest.raises(ModelDirectoryError, match=message):
        read_checkpoint(folder)


def test_statistics_without_sparse_args_are_refused(tmp_path):
    with pytest.raises(ModelDirectoryError, match="statistics of norms, but sparse_args"):
        read_checkpoint(write(tmp_path, raw()[0], config(layer_norm_eps=EPSILON)))


def test_every_norm_of_a_stock_model_is_replaced():
    model = transformers.BertModel(
        transformers.BertConfig(**{k: v for k, v in config().items() if k != "architectures"})
    )
    names = set(model.state_dict())
    replace_norms(model, "here")
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(NoNorm) == 2 * LAYERS + 1
    assert torch.nn.LayerNorm not in kinds
    assert set(model.state_dict()) == names


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (torch.nn.Sequential(torch.nn.Linear(2, 2)), "has no LayerNorm"),
        (torch.nn.Sequential(torch.nn.LayerNorm(2, elementwise_affine=False)), "no weight and bias"),
        (torch.nn.Sequential(torch.nn.LayerNorm(2, bias=False)), "no weight and bias"),
    ],
)
def test_a_model_without_such_norms_is_refused(model, message):
    with pytest.raises(ModelDirectoryError, match=message):
        replace_norms(model, "here")
