"""Matrices are told apart by their rows, whatever way a fused projection is cut, turned or shared."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compactor.errors import ModelDirectoryError
from compactor.trainer.structure import AttentionMatrices, FeedForwardMatrices, find_blocks
from tests.compactor import encoders
from tests.compactor.encoders import HEADS, IMAGE, LAYERS, NEURONS, SIZE, WIDTH


def probe(family: str) -> dict[str, Tensor]:
    if encoders.FAMILIES[family][1].keys() >= encoders.TOWER.keys():
        return {"pixel_values": torch.randn(1, 3, IMAGE, IMAGE)}
    ids = torch.arange(5, 15).reshape(1, 10)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", encoders.FAMILIES)
def test_finds_the_blocks_of_every_family(family, attention):
    head = "Model" if "vision" in family else "ForImageClassification" if family == "vit" else None
    model = encoders.build(family, head or "ForSequenceClassification")
    model.set_attn_implementation(attention)
    blocks = find_blocks(model, probe(family))
    blocks = [block for block in blocks if "head.mlp" not in block.output.name]  # of SigLIP's pooling
    kinds = [(block.kind, block.index) for block in blocks]
    assert kinds == [(kind, layer) for layer in range(LAYERS) for kind in ("attention", "feed_forward")]
    for block in blocks:
        names = [part.name.rpartition(".")[2] for part in block.matrices]
        if isinstance(block, AttentionMatrices):
            kv_heads = 2 if family == "eurobert-grouped" else HEADS
            assert (block.heads, block.kv_heads) == (HEADS, kv_heads)
            assert [part.rows for part in block.matrices] == [WIDTH, kv_heads * SIZE, kv_heads * SIZE, WIDTH]
            if family.startswith("modernbert"):
                assert names == ["Wqkv[0:32]", "Wqkv[32:64]", "Wqkv[64:96]", "Wo"]
            else:  # in the order of query, key and value
                assert [name[0] for name in names[:3]] == ["q", "k", "v"]
        else:
            gated = family.startswith(("modernbert", "gte", "nomic", "eurobert"))
            assert [part.rows for part in block.matrices] == [*[NEURONS] * (1 + gated), WIDTH]
            if family.startswith("modernbert"):
                assert names == ["Wi[0:48]", "Wi[48:96]", "Wo"]


# Ways to cut (B, S, 3*H*d) into queries, keys and values, (B, H, S, d).


def by_unbinding(x: Tensor) -> tuple[Tensor, ...]:
    return x.view(*x.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)


def by_chunks(x: Tensor) -> tuple[Tensor, ...]:
    return tuple(part.view(*x.shape[:2], 2, 8).transpose(1, 2) for part in x.chunk(3, dim=-1))


def by_split(x: Tensor) -> tuple[Tensor, ...]:
    return tuple(part.unflatten(-1, (2, 8)).transpose(1, 2) for part in torch.split(x, [16, 16, 16], dim=2))


def by_slices(x: Tensor) -> tuple[Tensor, ...]:
    return tuple(x[..., i * 16 : i * 16 + 16].reshape(*x.shape[:2], 2, 8).transpose(1, 2) for i in range(3))


def by_numbers(x: Tensor) -> tuple[Tensor, ...]:
    x = x.reshape(*x.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4)
    return x[0], x[1], x[2]


def head_by_head(x: Tensor) -> tuple[Tensor, ...]:
    """As GPT-NeoX has it: the rows of one head's queries, its keys, its values, then the next head's."""
    return x.view(*x.shape[:2], 2, 24).transpose(1, 2).chunk(3, dim=-1)


class Fused(nn.Module):
    """Attention and a gated feed-forward block, each with one matrix for what goes in."""

    def __init__(self, cut: Callable[[Tensor], tuple[Tensor, ...]], *, swap: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 48), nn.Linear(24, 16)
        self.cut, self.swap = cut, swap

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.cut(self.a(x))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        if self.swap:
            mixed = mixed.flip(2)
        x = x + self.b(mixed.reshape(x.shape))
        value, gate = self.c(x).chunk(2, dim=-1)
        return x + self.d(value * nn.functional.silu(gate))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("cut", [by_unbinding, by_chunks, by_split, by_slices, by_numbers])
def test_a_fused_matrix_is_cut_in_many_ways(cut, batch):
    attention, feed_forward = find_blocks(Fused(cut), {"x": torch.randn(batch, 5, 16)})

    assert isinstance(attention, AttentionMatrices) and attention.heads == 2
    assert [part.name for part in attention.matrices] == ["a[0:16]", "a[16:32]", "a[32:48]", "b"]
    assert isinstance(feed_forward, FeedForwardMatrices)
    assert {part.name for part in feed_forward.inputs} == {"c[0:24]", "c[24:48]"} and feed_forward.output.name == "d"


@pytest.mark.parametrize("model", [Fused(head_by_head), Fused(by_chunks, swap=True)], ids=["interleaved", "reordered"])
def test_heads_that_are_no_rows_one_after_another_are_left_alone(model):
    with pytest.raises(ModelDirectoryError, match="no softmax attention"):
        find_blocks(model, {"x": torch.randn(1, 5, 16)})


class Turned(nn.Module):
    """A rotary embedding on queries and keys, or on the values as well; some channels may pass unturned."""

    def __init__(self, *, rotated: int = 8, interleaved: bool = False, values: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(16, 16) for _ in range(4))
        self.rotated, self.interleaved, self.values = rotated, interleaved, values

    def turn(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[2])[:, None] * 0.5 ** torch.arange(self.rotated // 2)
        x, rest = x[..., : self.rotated], x[..., self.rotated :]
        if self.interleaved:
            cos, sin = (f(angles).repeat_interleave(2, -1) for f in (torch.cos, torch.sin))
            other = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
        else:
            cos, sin = (f(torch.cat((angles, angles), -1)) for f in (torch.cos, torch.sin))
            other = torch.cat((-x[..., self.rotated // 2 :], x[..., : self.rotated // 2]), dim=-1)
        return torch.cat((x * cos + other * sin, rest), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (f(x).view(*x.shape[:2], 2, 8).transpose(1, 2) for f in (self.a, self.b, self.c))
        value = self.turn(value) if self.values else value
        scores = (self.turn(query) @ self.turn(key).transpose(-1, -2) / 8**0.5).softmax(-1)
        return x + self.d((scores @ value).transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize("rotated", [8, 4])
@pytest.mark.parametrize("interleaved", [False, True])
def test_queries_and_keys_may_be_turned(rotated, interleaved):
    (attention,) = find_blocks(Turned(rotated=rotated, interleaved=interleaved), {"x": torch.randn(1, 5, 16)})
    assert [part.name for part in attention.matrices] == ["a", "b", "c", "d"]


def test_values_may_not():
    with pytest.raises(ModelDirectoryError, match="no softmax attention"):
        find_blocks(Turned(values=True), {"x": torch.randn(1, 5, 16)})


class Shared(nn.Module):
    """Four query heads on two heads of keys and values: in a row (0011), or in turn (0101)."""

    def __init__(self, *, in_turn: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(16, 16)
        self.in_turn = in_turn

    def forward(self, x: Tensor) -> Tensor:
        query = self.a(x).view(*x.shape[:2], 4, 4).transpose(1, 2)
        pair = (layer(x).view(*x.shape[:2], 2, 4).transpose(1, 2) for layer in (self.b, self.c))
        key, value = (each.repeat(1, 2, 1, 1) if self.in_turn else each.repeat_interleave(2, dim=1) for each in pair)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return x + self.d(mixed.transpose(1, 2).reshape(x.shape))


def test_heads_that_share_keys_follow_each_other():
    (attention,) = find_blocks(Shared(in_turn=False), {"x": torch.randn(2, 5, 16)})
    assert (attention.heads, attention.kv_heads) == (4, 2)
    assert [attention.heads_of(part) for part in attention.matrices] == [4, 2, 2, 4]
    with pytest.raises(ModelDirectoryError, match="no softmax attention"):
        find_blocks(Shared(in_turn=True), {"x": torch.randn(2, 5, 16)})
