"""``Pooling`` and ``SpladePooling``: from the states of a text's tokens to one vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .features import SENTENCE, TOKENS, Features
from .module import Module, require

Array = NDArray[np.float32]

# The flags that stood for the modes before version 5, in the order in which their vectors are joined.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def _first(states: Array, mask: Array) -> Array:
    return np.asarray(states[int(mask.argmax())])


def _last(states: Array, mask: Array) -> Array:
    counted = np.flatnonzero(mask)
    return np.asarray(states[counted[-1]] if len(counted) else states[0] * 0)


def _sum_over(power: float) -> Callable[[Array, Array], Array]:
    return lambda states, mask: np.asarray(mask @ states / max(float(mask.sum()), 1e-9) ** power)


def _weighted(states: Array, mask: Array) -> Array:
    weights = mask * np.arange(1, len(mask) + 1, dtype=np.float32)
    return np.asarray(weights @ states / max(float(weights.sum()), 1e-9))


def _highest(states: Array, mask: Array) -> Array:
    return np.asarray(np.where(mask[:, None] != 0, states, -np.inf).max(axis=0))


_MODES: Mapping[str, Callable[[Array, Array], Array]] = {
    "cls": _first,
    "max": _highest,
    "mean": _sum_over(1.0),
    "mean_sqrt_len_tokens": _sum_over(0.5),
    "weightedmean": _weighted,
    "lasttoken": _last,
}


def modes_of(module: Module) -> list[str]:
    """The modes of a ``Pooling``, in the order in which their vectors are joined.

    Raises:
        ArtefactError: There is no such mode, or a setting is unknown.
    """
    config = module.config
    module.allow("embedding_dimension", "word_embedding_dimension", "pooling_mode", "include_prompt", *_FLAGS)
    stated: Any = config.get("pooling_mode")
    if stated is None:
        stated = [mode for flag, mode in _FLAGS.items() if config.get(flag)] or ["mean"]
    modes = [stated] if isinstance(stated, str) else list(stated) if isinstance(stated, list) else [stated]
    for mode in modes:
        require(isinstance(mode, str) and mode in _MODES, module, "pooling_mode", mode, f"one of {', '.join(_MODES)}")
    return modes


def read_pooling(module: Module) -> Callable[[Features], None]:
    """One mode, or several whose vectors are joined; without the prompt's tokens where ``include_prompt`` is false.

    Raises:
        ArtefactError: There is no such mode, or a setting is unknown.
    """
    modes = modes_of(module)
    with_prompt = module.config.get("include_prompt", True)

    def pool(features: Features) -> None:
        mask = features.kept.astype(np.float32)
        if not with_prompt:
            mask[: features.item.prompt_tokens] = 0
        states = features.arrays[TOKENS]
        features.arrays[SENTENCE] = np.concatenate([_MODES[mode](states, mask) for mode in modes])

    return pool


def read_splade(module: Module) -> Callable[[Features], None]:
    """For each token of the vocabulary the highest, or the sum, of ``log(1 + relu(logit))`` over the text's tokens.

    As SPLADE (Formal et al. 2021, arXiv 2107.05720, eq. 1; 2109.10086, eq. 6).

    Raises:
        ArtefactError: A setting is unknown.
    """
    module.allow(
        "pooling_strategy", "activation_function", "embedding_dimension", "word_embedding_dimension", "chunk_size"
    )
    strategy = module.config.get("pooling_strategy", "max")
    activation = module.config.get("activation_function", "relu")
    require(strategy in ("max", "sum"), module, "pooling_strategy", strategy, "max or sum")
    require(activation in ("relu", "log1p_relu"), module, "activation_function", activation, "relu or log1p_relu")

    def pool(features: Features) -> None:
        weights = np.log1p(np.maximum(features.arrays[TOKENS], 0) * features.kept[:, None])
        if activation == "log1p_relu":
            weights = np.log1p(weights)
        features.arrays[SENTENCE] = weights.max(axis=0) if strategy == "max" else weights.sum(axis=0)

    return pool
