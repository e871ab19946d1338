"""Follow one batch through a model, and note which linear layers feed attention and feed-forward blocks.

Every tensor that comes of a linear layer is known by its *story*, and by its *columns*: a tensor of the same shape that
says of each element which column of its source it is. What only moves a tensor (a view, a split, a transpose) moves its
columns alike, so that one matrix for queries, keys and values, or for gate and value, is told apart by its rows,
whatever way it is cut. Softmax attention over three projections gives *heads*, an activation gives *neurons*, and the
linear layer that reads heads or neurons in their order closes the block. A rotary embedding turns queries and keys
within a head; their story goes on, as that of something that can be neither a value nor a neuron.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows of the stored ``(out, in)`` weight of a linear layer: all, or those of a matrix fused with others.

    Attributes:
        module: The layer's name.
        start: Its first row.
        stop: The row behind its last.
        whole: Whether these are all.
    """

    module: str
    start: int
    stop: int
    whole: bool

    @property
    def name(self) -> str:
        """``Wo``, or ``Wqkv[0:768]``: no two parts of a model have the same."""
        return self.module if self.whole else f"{self.module}[{self.start}:{self.stop}]"

    @property
    def rows(self) -> int:
        """How many."""
        return self.stop - self.start


@dataclasses.dataclass(frozen=True)
class Heads:
    """The values of all heads, averaged by attention.

    Attributes:
        query: H*d rows, head after head.
        key: Hkv*d rows: H/Hkv query heads in a row share one of keys and values.
        value: Hkv*dv rows.
        heads: H.
        kv_heads: Hkv.
        query_in_decoder: Whether the queries depend on what the decoder is given.
        key_in_decoder: Whether the keys do.
    """

    query: Part
    key: Part
    value: Part
    heads: int
    kv_heads: int
    query_in_decoder: bool
    key_in_decoder: bool


@dataclasses.dataclass(frozen=True)
class Neurons:
    """Projections after an activation; of a gated pair, their product."""

    parts: tuple[Part, ...]
    in_decoder: bool


Found = tuple[Heads | Neurons, Part]


def follow(model: nn.Module, inputs: Mapping[str, Tensor]) -> list[Found]:
    """Heads and neurons with the linear layer that reads them, in the order in which ``model`` computes them.

    Args:
        model: Any module; it is run once, in evaluation mode and without gradients.
        inputs: What it is called with: a small batch. What is called ``decoder_…`` belongs to the decoder.
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
    return follower.found


# Stories


@dataclasses.dataclass(frozen=True)
class _Projected:
    """What a linear layer gave, or some of its columns; ``turned`` where a rotary embedding mixed those of a head."""

    name: str
    in_decoder: bool
    turned: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class _Logits:
    """Queries times keys, perhaps scaled, masked, or after softmax; each with its columns, ``(heads, d)``."""

    query: _Projected
    key: _Projected
    query_columns: Tensor
    key_columns: Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class _Told:
    """What a tensor is, and of which column of that each of its elements."""

    story: _Projected | Neurons | _Logits | Heads
    columns: Tensor


_KEPT = frozenset("dropout to float half bfloat16 type_as clone detach".split())
_MOVES = frozenset(
    "view reshape transpose permute contiguous flatten unflatten squeeze unsqueeze expand repeat repeat_interleave "
    "swapaxes movedim narrow select chunk split tensor_split unbind __getitem__".split()
)
_JOINS = frozenset("cat concat stack".split())
_POINTWISE = frozenset(
    "gelu relu silu tanh sigmoid elu selu leaky_relu relu6 hardswish mish softplus erf exp pow square".split()
)
_SCALED = frozenset("mul div __mul__ __rmul__ __truediv__ true_divide neg __neg__".split())
_SUMS = frozenset("add sub __add__ __radd__ __sub__".split())
_ON_LOGITS = _SCALED | _SUMS | frozenset("softmax masked_fill where clamp max maximum __iadd__ add_".split())
_PRODUCTS = frozenset("matmul __matmul__ bmm".split())
_TOKEN_AXES = 3  # (batch, length, width): a classifier on one token of each text is no feed-forward block


class _Follower(TorchFunctionMode):
    """Sees every call of a torch function, and what its arguments were."""

    def __init__(self, linears: Mapping[str, nn.Linear], decoder_inputs: list[Tensor]) -> None:
        super().__init__()
        self.found: list[Found] = []
        self._linears = linears
        self._names = {id(module.weight): name for name, module in linears.items()}
        self._told: dict[int, _Told] = {}
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
        made = list(_tensors(result))
        for tensor in made:
            self._alive.append(tensor)
            if decoder:
                self._of_decoder.add(id(tensor))
        told = self._tell(func, args, kwargs, given, made)
        for number, tensor in enumerate(made):
            if number < len(told):
                self._told[id(tensor)] = told[number]
            else:
                self._told.pop(id(tensor), None)  # changed in place
        return result

    def _tell(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        given: list[Tensor],
        made: list[Tensor],
    ) -> list[_Told]:
        """What is known of each of ``made``; nothing where it has no story that leads anywhere."""
        name = getattr(func, "__name__", "")
        told = [self._told.get(id(tensor)) for tensor in given]
        first = told[0] if told else None
        one: _Told | None = None
        if name in _MOVES and first is not None and len(given) == 1 and not isinstance(first.story, _Logits):
            return [dataclasses.replace(first, columns=moved) for moved in _move(func, name, args, kwargs, first)]
        if len(made) != 1:
            return []
        if name == "linear":
            one = self._linear(given, first, made[0])
        elif name in _KEPT:
            one = first
        elif name in _JOINS:
            one = _join(func, args, kwargs, told)
        elif name == "scaled_dot_product_attention":
            one = self._attend(_logits(*told[:2], transposed=False), told[2], made[0])
        elif name in _PRODUCTS and len(told) == 2:
            if first is not None and isinstance(first.story, _Logits):
                one = self._attend(first.story, told[1], made[0])
            else:
                logits = _logits(*told, transposed=True)
                one = None if logits is None else _Told(logits, made[0])
        elif first is not None and isinstance(first.story, _Logits) and name in (*_ON_LOGITS, *_MOVES):
            one = first
        elif name in _POINTWISE or name in _SCALED or name in _SUMS:
            one = self._pointwise(name, given, told, made[0])
        return [] if one is None else [one]

    def _linear(self, given: list[Tensor], told: _Told | None, result: Tensor) -> _Told | None:
        name = self._names.get(id(given[1]))
        if name is None:
            return None
        closes = told is not None and torch.equal(_first_row(told.columns), torch.arange(given[0].shape[-1]))
        story = told.story if told is not None and closes else None
        module = self._linears[name]
        output = Part(name, 0, module.out_features, True)
        if isinstance(story, Heads):
            self.found.append((story, output))
        elif isinstance(story, Neurons) and given[0].ndim >= _TOKEN_AXES:
            # A feed-forward block gives back as wide a vector as it took: a classifier does not.
            if module.out_features == self._linears[story.parts[0].module].in_features:
                self.found.append((story, output))
        columns = torch.arange(module.out_features).expand(result.shape)
        return _Told(_Projected(name, id(result) in self._of_decoder), columns)

    def _attend(self, logits: _Logits | None, value: _Told | None, result: Tensor) -> _Told | None:
        """Values averaged by softmax attention; None where heads are not rows of their matrices, one after another."""
        if logits is None or value is None or not isinstance(value.story, _Projected) or value.story.turned:
            return None
        query = _distinct(logits.query_columns)
        heads, repeats = len(query), len(logits.query_columns) // len(query)
        shared = [_shared(columns, heads, repeats) for columns in (logits.key_columns, _by_head(value.columns))]
        key_columns, value_columns = shared
        if key_columns is None or value_columns is None or len(key_columns) != len(value_columns):
            return None
        query_part = self._part(logits.query.name, query.reshape(-1))
        key_part = self._part(logits.key.name, key_columns.reshape(-1))
        value_part = self._part(value.story.name, value_columns.reshape(-1))
        if query_part is None or key_part is None or value_part is None:
            return None
        if len({query_part, key_part, value_part}) < 3:
            return None
        width = heads * value_columns.shape[1]
        columns = torch.arange(width).reshape(heads, 1, -1).repeat(repeats, 1, 1)
        columns = columns.expand(-1, result.shape[-2], -1).reshape(result.shape)
        story = Heads(
            query_part,
            key_part,
            value_part,
            heads=heads,
            kv_heads=len(key_columns),
            query_in_decoder=logits.query.in_decoder,
            key_in_decoder=logits.key.in_decoder,
        )
        return _Told(story, columns)

    def _pointwise(self, name: str, given: list[Tensor], told: list[_Told | None], result: Tensor) -> _Told | None:
        """Of an activation, of the steps that one is written out in, of a gate, or of a rotary embedding."""
        known = [each for each in told if each is not None and isinstance(each.story, _Projected | Neurons)]
        alone = all(each is not None or tensor.numel() == 1 for tensor, each in zip(given, told, strict=True))
        if not known or any(each is not None and each not in known for each in told):
            return None
        projected = [each for each in known if isinstance(each.story, _Projected)]
        if len(known) == 1 and name in (*_SCALED, *_SUMS):
            if alone:  # scaled: still the same
                return known[0]
            return (
                _turned(known[0]) if projected and name in _SCALED and known[0].columns.shape == result.shape else None
            )
        if len(known) == 2 and name in _SUMS and len(projected) == 2:
            return _sum_of_turned(*projected)
        if not alone or len(projected) == len(known) > 1:  # of another size, or two projections without an activation
            return None
        parts: list[Part] = []
        for each in known:
            if isinstance(each.story, Neurons):
                parts += each.story.parts
            else:
                assert isinstance(each.story, _Projected)
                part = None if each.story.turned else self._part(each.story.name, _first_row(each.columns))
                if part is None:
                    return None
                parts.append(part)
        story = Neurons(tuple(dict.fromkeys(parts)), known[0].story.in_decoder)  # type: ignore[union-attr]
        return _Told(story, torch.arange(result.shape[-1]).expand(result.shape))

    def _part(self, name: str, columns: Tensor) -> Part | None:
        """The rows of a layer that ``columns`` are; None where they do not follow each other."""
        start, count = int(columns[0]), columns.numel()
        if not torch.equal(columns, torch.arange(start, start + count)):
            return None
        return Part(name, start, start + count, count == self._linears[name].out_features)


# Columns


def _move(
    func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], told: _Told
) -> list[Tensor]:
    """The columns of what ``func`` makes of a tensor that has ``told``'s."""
    if name == "view":
        func = torch.Tensor.reshape  # columns are expanded, and a view of them may not be possible
    return list(_tensors(func(*(told.columns if isinstance(arg, Tensor) else arg for arg in args), **kwargs)))


def _join(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], told: list[_Told | None]
) -> _Told | None:
    """Parts of one projection side by side, as of a rotary embedding's half turn."""
    known = [each for each in told if each is not None and isinstance(each.story, _Projected)]
    if not known or len(known) < len(told) or len({each.story.name for each in known}) > 1:  # type: ignore[union-attr]
        return None
    turned = next((each for each in known if each.story.turned), known[0])  # type: ignore[union-attr]
    return dataclasses.replace(turned, columns=func([each.columns for each in known], *args[1:], **kwargs))


def _turned(told: _Told) -> _Told:
    assert isinstance(told.story, _Projected)
    return dataclasses.replace(told, story=dataclasses.replace(told.story, turned=True))


def _sum_of_turned(first: _Told, second: _Told) -> _Told | None:
    """The two terms of a rotary embedding: both have the same columns of a head, in another order."""
    if first.story != second.story or not first.story.turned:  # type: ignore[union-attr]
        return None
    if not torch.equal(first.columns.sort(-1).values, second.columns.sort(-1).values):
        return None
    return first


def _logits(query: _Told | None, key: _Told | None, *, transposed: bool) -> _Logits | None:
    """Queries times keys, of which the channels of the latter are on the last axis but one if ``transposed``."""
    if query is None or key is None or not (isinstance(query.story, _Projected) and isinstance(key.story, _Projected)):
        return None
    columns = key.columns.transpose(-1, -2) if transposed else key.columns
    return _Logits(query.story, key.story, _by_head(query.columns), _by_head(columns))


def _by_head(columns: Tensor) -> Tensor:
    """``(heads, d)``: the columns of the first token in each head, from ``(..., S, d)``."""
    return columns.reshape(-1, *columns.shape[-2:])[:, 0]


def _first_row(columns: Tensor) -> Tensor:
    return columns.reshape(-1, columns.shape[-1])[0]


def _distinct(heads: Tensor) -> Tensor:
    """The rows up to the first that comes again: those of one example, or of one window."""
    again = [number for number in range(1, len(heads)) if torch.equal(heads[number], heads[0])]
    return heads[: again[0]] if again else heads


def _shared(columns: Tensor, heads: int, repeats: int) -> Tensor | None:
    """``(Hkv, d)``: the columns of key or value heads, each read by as many query heads in a row; None else."""
    if len(columns) % repeats:
        return None
    own = columns[: len(columns) // repeats]
    distinct = torch.unique_consecutive(own, dim=0)
    if heads % len(distinct) or not torch.equal(own, distinct.repeat_interleave(len(own) // len(distinct), 0)):
        return None
    return torch.as_tensor(distinct)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
