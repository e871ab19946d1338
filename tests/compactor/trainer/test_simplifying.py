from __future__ import annotations

import pytest
import torch
from transformers import BertForSequenceClassification

from compactor.checkpoint.no_norm import NoNorm
from compactor.errors import UsageError
from compactor.trainer.simplifying import Fader, FadingActivation, FadingNorm, simplify
from tests.compactor.trainer.tiny import LAYERS, bert_config

WIDTH = 6


def norm(steps=10):
    torch.manual_seed(0)
    own = torch.nn.LayerNorm(WIDTH, eps=1e-3)
    torch.nn.init.uniform_(own.weight, 0.5, 1.5)
    torch.nn.init.normal_(own.bias)
    return own, FadingNorm(own, steps)


def test_a_norm_begins_as_it_is():
    own, fading = norm()
    x = torch.randn(3, 4, WIDTH)
    torch.testing.assert_close(fading.eval()(x), own(x))  # nothing was met yet
    torch.testing.assert_close(fading.train()(x), own(x))


def test_a_norm_ends_as_an_affine_map_of_what_it_met():
    own, fading = norm()
    batches = [2 * torch.randn(3, 4, WIDTH) + 1 for _ in range(12)]
    sums = torch.zeros(3)
    for step, x in enumerate(batches):
        fading.advance(step)
        mix = max(0.0, 1 - step / 10)
        y = fading(x)
        if mix:
            decay = 0.99 * mix + 1 - mix
            met = torch.stack([x.mean(-1).mean(), x.var(-1, unbiased=False).mean(), torch.ones(())])
            sums = decay * sums + (1 - decay) * met
        mean, variance = (
            mix * token + (1 - mix) * running
            for token, running in (
                (x.mean(-1, keepdim=True), sums[0] / sums[2]),
                (x.var(-1, unbiased=False, keepdim=True), sums[1] / sums[2]),
            )
        )
        torch.testing.assert_close(y, (x - mean) / (variance + 1e-3).sqrt() * own.weight + own.bias)
    torch.testing.assert_close(fading.sums, sums)
    written = NoNorm(*map(torch.nn.Parameter, fading.folded()))
    for mode in (fading.train(), fading.eval()):
        torch.testing.assert_close(mode(batches[0]), written(batches[0]))


def test_an_evaluation_in_between_is_of_what_would_be_written():
    _, fading = norm()
    x = torch.randn(3, 4, WIDTH)
    fading(x)
    before = fading.sums.clone()
    torch.testing.assert_close(fading.eval()(x), NoNorm(*map(torch.nn.Parameter, fading.folded()))(x))
    assert torch.equal(fading.sums, before)


def test_an_activation_ends_as_relu():
    fading, x = FadingActivation(torch.nn.GELU(), 4), torch.linspace(-2, 2, 9)
    gelu, relu = torch.nn.functional.gelu(x), torch.relu(x)
    for step, share in enumerate((1, 0.75, 0.5, 0.25, 0, 0)):
        fading.advance(step)
        torch.testing.assert_close(fading.train()(x), share * gelu + (1 - share) * relu)
        assert torch.equal(fading.eval()(x), relu)


def test_a_model_says_what_it_will_be():
    model = BertForSequenceClassification(bert_config())
    names = {name for name in model.state_dict() if not name.endswith("sums")}
    notes = simplify(model, norm=True, activation=True, steps=7)
    assert notes == [
        f"{2 * LAYERS + 1} norms lose their statistics over 7 steps",
        f"{LAYERS} activations become ReLU over 7 steps",
    ]
    assert (model.config.layer_norm_type, model.config.hidden_act) == ("no_norm", "relu")
    assert {name for name in model.state_dict() if not name.endswith("sums")} == names
    fader = Fader(model)
    assert len(fader.layers) == 3 * LAYERS + 1
    fader.advance(7)
    assert {layer.mix for layer in fader.layers} == {0.0}
    assert simplify(model, norm=True, activation=True, steps=7) == [], "it is so already"


def test_a_model_stays_as_it_is_unless_asked():
    model = BertForSequenceClassification(bert_config())
    assert simplify(model, norm=False, activation=False, steps=7) == []
    assert not Fader(model).layers


def test_a_model_without_such_layers_is_refused():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model.config = bert_config()
    with pytest.raises(UsageError, match="no LayerNorm"):
        simplify(model, norm=True, activation=False, steps=1)
    with pytest.raises(UsageError, match="no GELU"):
        simplify(model, norm=False, activation=True, steps=1)
