"""Which linear layers belong together: queries, keys, values and outputs of attention, and feed-forward pairs.

Found by following one small batch through the model, and never by names. Every tensor that a linear layer gives is
known by its *story*, which survives what only moves it (a view, a transpose, a dropout): softmax attention over three
projections gives *heads*, an activation gives *neurons*, and the linear layer that reads heads or neurons closes the
block. So whatever architecture computes these is covered, whatever its modules are called.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from compactor.errors import ModelDirectoryError

Stack = Literal["encoder", "decoder"]
BlockKind = Literal["attention", "cross_attention", "feed_forward"]


@dataclasses.dataclass(frozen=True)
class AttentionMatrices:
    """The linear layers of one attention block, by their module names.

    Attributes:
        query: ``(H*d, D)`` weight; its input is the query side.
        key: ``(H*d, D)`` weight.
        value: ``(H*dv, D)`` weight.
        output: ``(D, H*dv)`` weight.
        heads: H.
        stack: Whether its queries depend on what the decoder is given.
        kind: ``cross_attention`` where its keys do not, but its queries do.
        index: The number of its layer in its stack.
    """

    query: str
    key: str
    value: str
    output: str
    heads: int
    stack: Stack
    kind: BlockKind
    index: int

    @property
    def inputs(self) -> tuple[str, str, str]:
        """Query, key and value."""
        return self.query, self.key, self.value

    @property
    def matrices(self) -> tuple[str, ...]:
        """All four."""
        return (*self.inputs, self.output)


@dataclasses.dataclass(frozen=True)
class FeedForwardMatrices:
    """The linear layers of one feed-forward block, by their module names.

    Attributes:
        inputs: One ``(N, D)`` weight, or two where it is gated.
        output: ``(D, N)`` weight.
        stack: As of attention.
        index: The number of its layer in its stack.
    """

    inputs: tuple[str, ...]
    output: str
    stack: Stack
    index: int
    kind: BlockKind = "feed_forward"

    @property
    def matrices(self) -> tuple[str, ...]:
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
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    follower = _Follower(linears, [tensor for name, tensor in inputs.items() if name.startswith("decoder_")])
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), follower:
            model(**inputs)
    finally:
        model.train(training)
    blocks = tuple(_number(follower.found))
    if not any(isinstance(block, AttentionMatrices) for block in blocks):
        raise ModelDirectoryError(
            f"no softmax attention over linear projections was found in '{type(model).__name__}'",
            todo="prune BERT-, RoBERTa-, DistilBERT-, ELECTRA- or BART-like models",
        )
    return blocks


# Stories


@dataclasses.dataclass(frozen=True)
class _Projected:
    """What a linear layer gave, and nothing else."""

    name: str
    in_decoder: bool


@dataclasses.dataclass(frozen=True)
class _Neurons:
    """Linear layers' outputs after an activation; of a gated pair, their product."""

    names: tuple[str, ...]
    in_decoder: bool


@dataclasses.dataclass(frozen=True)
class _Logits:
    """Queries times keys, perhaps scaled, masked, or after softmax."""

    query: _Projected
    key: _Projected
    heads: int


@dataclasses.dataclass(frozen=True)
class _Heads:
    """The values of all heads, averaged by attention."""

    query: _Projected
    key: _Projected
    value: _Projected
    heads: int


_Story = _Projected | _Neurons | _Logits | _Heads
_Found = tuple[_Heads | _Neurons, str]

_MOVES = frozenset(
    "view reshape transpose permute contiguous flatten unflatten squeeze unsqueeze dropout to float half bfloat16 "
    "type_as clone detach expand repeat swapaxes".split()
)
_POINTWISE = frozenset(
    "gelu relu silu tanh sigmoid elu selu leaky_relu relu6 hardswish mish softplus erf exp pow square".split()
)
_ARITHMETIC = frozenset("mul add sub div __mul__ __rmul__ __add__ __radd__ __sub__ __truediv__ true_divide".split())
_ON_LOGITS = _ARITHMETIC | frozenset("softmax masked_fill where clamp max maximum".split())
_PRODUCTS = frozenset("matmul __matmul__ bmm".split())
_TOKEN_AXES = 3  # (batch, length, width): a classifier on one token of each text is no feed-forward block


class _Follower(TorchFunctionMode):
    """Sees every call of a torch function, and what its arguments were."""

    def __init__(self, linears: Mapping[str, nn.Linear], decoder_inputs: list[torch.Tensor]) -> None:
        super().__init__()
        self.found: list[_Found] = []
        self._names = {id(module.weight): name for name, module in linears.items()}
        self._widths = {name: module.in_features for name, module in linears.items()}
        self._stories: dict[int, _Story] = {}
        self._of_decoder = {id(tensor) for tensor in decoder_inputs}
        self._alive: list[Any] = list(decoder_inputs)  # so that no id is given out twice

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run ``func`` and note what came of it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = list(_tensors((args, tuple(kwargs.values()))))
        decoder = any(id(tensor) in self._of_decoder for tensor in given)
        for tensor in _tensors(result):
            self._alive.append(tensor)
            if decoder:
                self._of_decoder.add(id(tensor))
        if isinstance(result, torch.Tensor):
            story = self._tell(getattr(func, "__name__", ""), args, kwargs, given, result)
            if story is not None:
                self._stories[id(result)] = story
            else:
                self._stories.pop(id(result), None)  # changed in place
        return result

    def _tell(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        given: list[torch.Tensor],
        result: torch.Tensor,
    ) -> _Story | None:
        """The story of ``result``; None where it has none that leads anywhere."""
        if name == "linear":
            return self._linear(given, result)
        if name == "scaled_dot_product_attention":
            query, key, value = (self._of(tensor) for tensor in given[:3])
            return self._attend(query, key, value, given[0].shape[-3] if given[0].ndim > 2 else 1)
        stories = [self._of(tensor) for tensor in given]
        first = stories[0] if stories else None
        if name in _MOVES:
            return first
        if name in _PRODUCTS and len(given) == 2:
            left, right = stories
            if isinstance(left, _Projected) and isinstance(right, _Projected):
                return _Logits(left, right, given[0].shape[-3] if given[0].ndim > 2 else 1)
            if isinstance(left, _Logits) and isinstance(right, _Projected):
                return _Heads(left.query, left.key, right, left.heads)
            return None
        if isinstance(first, _Logits) and name in _ON_LOGITS:
            return first
        if name in _POINTWISE or name in _ARITHMETIC:
            return _pointwise(name, given, stories)
        return None

    def _linear(self, given: list[torch.Tensor], result: torch.Tensor) -> _Projected | None:
        name = self._names.get(id(given[1]))
        if name is None:
            return None
        story = self._of(given[0])
        if isinstance(story, _Heads):
            self.found.append((story, name))
        elif isinstance(story, _Neurons) and given[0].ndim >= _TOKEN_AXES:
            # A feed-forward block gives back as wide a vector as it took: a classifier does not.
            if result.shape[-1] == self._widths[story.names[0]]:
                self.found.append((story, name))
        return _Projected(name, id(result) in self._of_decoder)

    def _attend(self, query: _Story | None, key: _Story | None, value: _Story | None, heads: int) -> _Heads | None:
        if isinstance(query, _Projected) and isinstance(key, _Projected) and isinstance(value, _Projected):
            return _Heads(query, key, value, heads)
        return None

    def _of(self, tensor: torch.Tensor) -> _Story | None:
        return self._stories.get(id(tensor))


def _pointwise(name: str, given: list[torch.Tensor], stories: list[_Story | None]) -> _Story | None:
    """Of an activation, of the steps that one is written out in, or of a gate."""
    told: list[_Projected | _Neurons] = []
    for tensor, story in zip(given, stories, strict=True):
        if isinstance(story, _Projected | _Neurons):
            told.append(story)
        elif tensor.numel() > 1:  # something else of the same size comes in: no activation
            return None
    if not told:
        return None
    if name in _ARITHMETIC and len(told) == 1:  # scaled: still the same
        return told[0]
    sources: list[str] = []
    for story in told:
        sources += [story.name] if isinstance(story, _Projected) else story.names
    if len(told) > 1 and not any(isinstance(story, _Neurons) for story in told):
        return None  # two projections added: no activation in between
    return _Neurons(tuple(dict.fromkeys(sources)), told[0].in_decoder)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


def _number(found: list[_Found]) -> Iterator[Matrices]:
    """The blocks with the number of their layer. Self-attention opens a layer; a shared block counts once."""
    index: dict[Stack, int] = {"encoder": -1, "decoder": -1}
    seen: set[str] = set()
    for story, output in found:
        if isinstance(story, _Heads):
            names = (story.query.name, story.key.name, story.value.name, output)
            if len(set(names)) < len(names) or seen & set(names):
                continue
            stack: Stack = "decoder" if story.query.in_decoder else "encoder"
            cross = story.query.in_decoder and not story.key.in_decoder
            index[stack] += not cross
            seen.update(names)
            yield AttentionMatrices(
                *names,
                heads=story.heads,
                stack=stack,
                kind="cross_attention" if cross else "attention",
                index=max(index[stack], 0),
            )
        else:
            if len(story.names) > 2 or output in story.names or seen & {*story.names, output}:
                continue
            stack = "decoder" if story.in_decoder else "encoder"
            seen.update((*story.names, output))
            yield FeedForwardMatrices(story.names, output, stack=stack, index=max(index[stack], 0))
