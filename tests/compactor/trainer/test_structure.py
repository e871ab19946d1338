"""Blocks are found by which linear layer feeds which, whatever the family calls them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compactor.errors import ModelDirectoryError
from compactor.trainer.structure import AttentionMatrices, FeedForwardMatrices, find_blocks

SMALL = {"vocab_size": 60}


def encoder(family: str, **changes):
    import transformers

    if family == "distilbert":
        config = transformers.DistilBertConfig(dim=16, n_layers=2, n_heads=4, hidden_dim=24, **SMALL)
        return transformers.DistilBertForSequenceClassification(config)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    extra = {"embedding_size": 8} if family == "electra" else {}
    name = {"bert": "Bert", "roberta": "Roberta", "electra": "Electra"}[family]
    config = getattr(transformers, f"{name}Config")(**sizes, **SMALL, **extra, **changes)
    return getattr(transformers, f"{name}ForSequenceClassification")(config)


def inputs(decoder: bool = False):
    ids = torch.arange(5, 15).reshape(1, 10)
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**found, "decoder_input_ids": ids[:, :7].clone(), "use_cache": False} if decoder else found


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_finds_the_blocks_of_an_encoder(family, attention):
    model = encoder(family)
    model.set_attn_implementation(attention)
    blocks = find_blocks(model, inputs())

    kinds = [(block.kind, block.index, block.stack) for block in blocks]
    assert kinds == [(kind, layer, "encoder") for layer in range(2) for kind in ("attention", "feed_forward")]
    modules = dict(model.named_modules())
    for block in blocks:
        if isinstance(block, AttentionMatrices):
            assert block.heads == 4
            assert all(part.whole and part.rows == modules[part.module].in_features == 16 for part in block.matrices)
            assert block.kv_heads == 4
        else:
            assert [part.rows for part in block.inputs] == [24]
            assert modules[block.output.module].in_features == 24
    assert len({part.name for block in blocks for part in block.matrices}) == 12  # each matrix in one block
    for tell, at in (("q", 0), ("k", 1), ("v", 2)):  # the roles, by the initials that all families share
        assert all(
            block.matrices[at].module.rpartition(".")[2][0] == tell for block in blocks if block.kind == "attention"
        )


@pytest.mark.parametrize("activation", ["gelu", "relu", "gelu_new", "silu"])
def test_an_activation_may_be_written_out(activation):
    blocks = find_blocks(encoder("bert", hidden_act=activation), inputs())
    assert sum(isinstance(block, FeedForwardMatrices) for block in blocks) == 2


def test_finds_encoder_decoder_and_cross_attention_of_bart():
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        d_model=16,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=32,
        **SMALL,
    )
    blocks = find_blocks(BartForConditionalGeneration(config), inputs(decoder=True))

    assert [(block.stack, block.kind, block.index) for block in blocks] == [
        ("encoder", "attention", 0),
        ("encoder", "feed_forward", 0),
        ("encoder", "attention", 1),
        ("encoder", "feed_forward", 1),
        ("decoder", "attention", 0),
        ("decoder", "cross_attention", 0),
        ("decoder", "feed_forward", 0),
    ]
    assert [block.heads for block in blocks if isinstance(block, AttentionMatrices)] == [4, 4, 2, 2]


class Plain(nn.Module):
    """Attention and a gated feed-forward block under names that say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e, self.f, self.g = (
            nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16),
            nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16),
        )  # fmt: skip
        self.classifier, self.label = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def split(y: torch.Tensor) -> torch.Tensor:
            return y.view(*y.shape[:2], 2, 8).transpose(1, 2)

        mixed = nn.functional.scaled_dot_product_attention(split(self.c(x)), split(self.a(x)), split(self.b(x)))
        x = x + self.d(mixed.transpose(1, 2).reshape(x.shape))
        x = x + self.g(nn.functional.silu(self.f(x)) * self.e(x))
        return self.label(torch.tanh(self.classifier(x[:, 0])))


def test_names_do_not_matter_and_a_classifier_is_no_feed_forward_block():
    attention, feed_forward = find_blocks(Plain(), {"x": torch.randn(1, 5, 16)})

    assert [part.name for part in attention.matrices] == ["c", "a", "b", "d"] and attention.heads == 2
    assert {part.name for part in feed_forward.inputs} == {"e", "f"} and feed_forward.output.name == "g"


def test_a_model_without_attention_is_refused():
    with pytest.raises(ModelDirectoryError, match="no softmax attention"):
        find_blocks(nn.Linear(4, 4), {"input": torch.ones(1, 4)})


def test_the_model_is_left_as_it_was():
    model = encoder("bert").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    find_blocks(model, inputs())

    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
