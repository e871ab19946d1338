"""Which linear layers belong together: queries, keys, values and outputs of attention, and feed-forward blocks.

Found by following one small batch through the model (``following``), and never by names. So whatever architecture
computes these is covered, whatever its modules are called, and whether it has a matrix for each of them or one for all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import nn

from compactor.errors import ModelDirectoryError
from compactor.trainer.following import Found, Heads, Part, follow

Stack = Literal["encoder", "decoder"]
BlockKind = Literal["attention", "cross_attention", "feed_forward"]


@dataclasses.dataclass(frozen=True)
class AttentionMatrices:
    """The matrices of one attention block: linear layers, or rows of one.

    Attributes:
        query: ``(H*d, D)`` weight; its input is the query side.
        key: ``(Hkv*d, D)`` weight.
        value: ``(Hkv*dv, D)`` weight.
        output: ``(D, H*dv)`` weight.
        heads: H.
        kv_heads: Hkv: H, or fewer where query heads share keys and values.
        stack: Whether its queries depend on what the decoder is given.
        kind: ``cross_attention`` where its keys do not, but its queries do.
        index: The number of its layer in its stack.
    """

    query: Part
    key: Part
    value: Part
    output: Part
    heads: int
    kv_heads: int
    stack: Stack
    kind: BlockKind
    index: int

    @property
    def inputs(self) -> tuple[Part, Part, Part]:
        """Query, key and value."""
        return self.query, self.key, self.value

    @property
    def matrices(self) -> tuple[Part, ...]:
        """All four."""
        return (*self.inputs, self.output)

    def heads_of(self, part: Part) -> int:
        """How many heads one of its matrices has."""
        return self.kv_heads if part in (self.key, self.value) else self.heads


@dataclasses.dataclass(frozen=True)
class FeedForwardMatrices:
    """The matrices of one feed-forward block: linear layers, or rows of one.

    Attributes:
        inputs: One ``(N, D)`` weight, or two where it is gated.
        output: ``(D, N)`` weight.
        stack: As of attention.
        index: The number of its layer in its stack.
    """

    inputs: tuple[Part, ...]
    output: Part
    stack: Stack
    index: int
    kind: BlockKind = "feed_forward"

    @property
    def matrices(self) -> tuple[Part, ...]:
        """All of them."""
        return (*self.inputs, self.output)


Matrices = AttentionMatrices | FeedForwardMatrices


def find_blocks(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> tuple[Matrices, ...]:
    """The attention and feed-forward blocks of ``model``, in the order in which it computes them.

    Args:
        model: Any module; it is run once, in evaluation mode and without gradients.
        inputs: What it is called with: a small batch. What is called ``decoder_…`` belongs to the decoder.

    Raises:
        ModelDirectoryError: No attention was found in it, so it is nothing that can be pruned here.
    """
    blocks = tuple(_number(follow(model, inputs)))
    if not any(isinstance(block, AttentionMatrices) for block in blocks):
        raise ModelDirectoryError(
            f"no softmax attention over linear projections was found in '{type(model).__name__}'",
            todo="prune BERT, ModernBERT, GTE, DeBERTa-v2, ESM-2, ViT or BART, or a model built like one of them",
        )
    return blocks


def _number(found: list[Found]) -> Iterator[Matrices]:
    """The blocks with the number of their layer. Self-attention opens a layer; a shared block counts once."""
    index: dict[Stack, int] = {"encoder": -1, "decoder": -1}
    seen: set[Part] = set()
    for story, output in found:
        if isinstance(story, Heads):
            parts = (story.query, story.key, story.value, output)
            if output.module in {part.module for part in parts[:3]} or seen & set(parts):
                continue
            stack: Stack = "decoder" if story.query_in_decoder else "encoder"
            cross = story.query_in_decoder and not story.key_in_decoder
            index[stack] += not cross
            seen.update(parts)
            yield AttentionMatrices(
                *parts,
                heads=story.heads,
                kv_heads=story.kv_heads,
                stack=stack,
                kind="cross_attention" if cross else "attention",
                index=max(index[stack], 0),
            )
        else:
            modules = {part.module for part in story.parts}
            if len(story.parts) > 2 or output.module in modules or seen & {*story.parts, output}:
                continue
            stack = "decoder" if story.in_decoder else "encoder"
            seen.update((*story.parts, output))
            yield FeedForwardMatrices(story.parts, output, stack=stack, index=max(index[stack], 0))
