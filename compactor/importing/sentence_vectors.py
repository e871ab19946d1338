"""``--embed``: a text's vector as a second output of the graph, ``sentence_embedding``.

What ``modules.json`` puts behind the transformer is then inside the graph, for who runs it without our runtime: vector
databases, Triton, browsers. The modules are those of ``runtime.sentences``, in PyTorch, so that they are traced,
verified and quantized with the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compactor.errors import ModelDirectoryError, UsageError
from compactor.importing.encoder import LoadedModel
from compactor.runtime.folder import MODULES
from compactor.runtime.sentences.chain import read_modules
from compactor.runtime.sentences.features import SENTENCE, TOKENS
from compactor.runtime.sentences.module import Module
from compactor.runtime.sentences.pooling import modes_of
from compactor.runtime.sentences.projecting import ACTIVATIONS, names_of, weights_of
from compactor.runtime.sentences.settings import VECTORS, SentenceSettings

Features = dict[str, Tensor]


def require_vectors(settings: SentenceSettings | None, folder: Path) -> SentenceSettings:
    """The settings themselves. Raises UsageError where a folder makes no vector of a text."""
    if settings is None or settings.kind != VECTORS:
        raise UsageError(
            f"--embed is for folders of sentence-transformers that make vectors, and this is no {VECTORS}",
            where=str(folder),
            todo="leave --embed",
        )
    return settings


def with_vectors(loaded: LoadedModel, folder: Path, settings: SentenceSettings) -> LoadedModel:
    """A model that gives ``sentence_embedding`` (B, width) beside its own output.

    Args:
        loaded: The transformer of a sentence-transformers folder.
        folder: That folder, or a copy of its modules, with weights in safetensors.
        settings: What it says of itself.

    Raises:
        UsageError: It makes vectors that no graph can: without the tokens of a prompt.
    """
    module = _Vectors(loaded.module, nn.ModuleList(vector_steps(folder)), settings.width)
    task = dataclasses.replace(loaded.task, outputs=(*loaded.task.outputs, SENTENCE))
    return dataclasses.replace(loaded, module=module.eval().requires_grad_(False), task=task)


def vector_steps(folder: Path) -> list[nn.Module]:
    """What makes a text's vector of its tokens' states, module after module.

    Each is called with a dictionary that holds ``TOKENS`` (B, S, D) and the mask (B, S), and adds to it; at last it has
    ``SENTENCE`` (B, width).

    Raises:
        UsageError: It leaves out the tokens of a prompt, which no mask tells.
        ModelDirectoryError: There is a module that is not built.
        ArtefactError: One is damaged.
    """
    return [step for module in _modules(folder) if (step := _read(module)) is not None]


def _modules(folder: Path) -> list[Module]:
    return [
        Module.read(str(entry.get("type")).rpartition(".")[2], folder / str(entry.get("path", "")))
        for entry in read_modules(folder)[1:]
    ]


class _Vectors(nn.Module):
    """A transformer and what comes behind it."""

    def __init__(self, model: Any, steps: nn.ModuleList, width: int | None) -> None:
        super().__init__()
        self.model, self.steps, self._width = model, steps, width
        self.config = model.config

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        states = self.model(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        features = {TOKENS: states}
        for step in self.steps:
            step(features, attention_mask)
        return {"last_hidden_state": states, SENTENCE: features[SENTENCE][:, : self._width]}


def _read(module: Module) -> nn.Module | None:
    if module.kind == "Pooling":
        if not module.config.get("include_prompt", True):
            raise UsageError(
                "'include_prompt' is false, and a graph cannot tell the tokens of a prompt from the others",
                where=str(module.folder),
                todo="leave --embed",
            )
        return _Pooling(modes_of(module))
    if module.kind == "Dense":
        return _Dense(module)
    if module.kind == "Normalize":
        return _Normalize(*names_of(module, SENTENCE))
    if module.kind == "LayerNorm":
        return _LayerNorm(module)
    if module.kind in ("Dropout", "WeightedLayerPooling"):
        return None
    raise ModelDirectoryError(
        f"the module '{module.kind}' cannot be put into the graph", where=str(module.folder / MODULES), todo="leave it"
    )


# Each reads its states as a product with the mask: what padding holds is then nobody's, and tokens can be packed.
_BELOW_ALL = 1e30


def _first(states: Tensor, mask: Tensor) -> Tensor:
    place = mask.argmax(dim=1)[:, None, None].expand(-1, 1, states.shape[-1])
    return torch.gather(states * mask[..., None], 1, place)[:, 0]


def _last(states: Tensor, mask: Tensor) -> Tensor:
    places = torch.arange(1, mask.shape[1] + 1, dtype=mask.dtype)
    place = (mask * places).argmax(dim=1)[:, None, None].expand(-1, 1, states.shape[-1])
    return torch.gather(states * mask[..., None], 1, place)[:, 0]


def _highest(states: Tensor, mask: Tensor) -> Tensor:
    seen = mask[..., None]
    return (states * seen + (seen - 1) * _BELOW_ALL).amax(dim=1)


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    return (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1e-9)


def _mean_by_root(states: Tensor, mask: Tensor) -> Tensor:
    return (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1e-9).sqrt()


def _weighted(states: Tensor, mask: Tensor) -> Tensor:
    """By the place of a token in its text, padding on the left not counted."""
    places = torch.arange(1, mask.shape[1] + 1, dtype=states.dtype)
    weights = mask * (places - mask.argmax(dim=1, keepdim=True))
    return (states * mask[..., None] * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True).clamp(min=1e-9)


_MODES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _first,
    "max": _highest,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_by_root,
    "weightedmean": _weighted,
    "lasttoken": _last,
}
_ACTIVATIONS: Mapping[str, nn.Module] = {
    name: module
    for name, module in zip(
        ACTIVATIONS, (nn.Identity(), nn.Tanh(), nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Sigmoid()), strict=True
    )
}


class _Pooling(nn.Module):
    def __init__(self, modes: list[str]) -> None:
        super().__init__()
        self._modes = modes

    def forward(self, features: Features, mask: Tensor) -> None:
        states = features[TOKENS]
        seen = mask.to(states.dtype)
        features[SENTENCE] = torch.cat([_MODES[mode](states, seen) for mode in self._modes], dim=-1)


class _Dense(nn.Module):
    def __init__(self, module: Module) -> None:
        super().__init__()
        self._read, self._write = names_of(module, SENTENCE)
        weights, activation, self._residual = weights_of(module)
        self._activate = _ACTIVATIONS[activation]
        self.linear = _linear(weights["linear__weight"], weights.get("linear__bias"))
        self.skip = _linear(weights["residual__weight"], None) if "residual__weight" in weights else nn.Identity()

    def forward(self, features: Features, mask: Tensor) -> None:
        given = features[self._read]
        made = self._activate(self.linear(given))
        features[self._write] = made + self.skip(given) if self._residual else made


class _LayerNorm(nn.Module):
    def __init__(self, module: Module) -> None:
        super().__init__()
        width = module.size("dimension")
        weights = module.weights(norm__weight=(width,), norm__bias=(width,))
        self.norm = nn.LayerNorm(width)
        self.norm.weight.data = torch.from_numpy(weights["norm__weight"])
        self.norm.bias.data = torch.from_numpy(weights["norm__bias"])

    def forward(self, features: Features, mask: Tensor) -> None:
        features[SENTENCE] = self.norm(features[SENTENCE])


class _Normalize(nn.Module):
    def __init__(self, read: str, write: str) -> None:
        super().__init__()
        self._read, self._write = read, write

    def forward(self, features: Features, mask: Tensor) -> None:
        features[self._write] = nn.functional.normalize(features[self._read], dim=-1)


def _linear(weight: Any, bias: Any) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight.data = torch.from_numpy(weight)
    if bias is not None:
        layer.bias.data = torch.from_numpy(bias)
    return layer
