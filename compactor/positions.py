"""How many tokens a model takes, as far as its config says; ``importing/limits.py`` asks the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Models whose positions start behind the padding token's index, so that fewer tokens fit than there are positions.
_OFFSET_POSITIONS = {
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "luke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}


def max_tokens(config: Mapping[str, Any]) -> int | None:
    """How many tokens fit into the model by its config; None where the config does not say."""
    positions = stated_positions(config)
    if positions is None:
        return None
    if config.get("model_type") not in _OFFSET_POSITIONS:
        return positions
    padding = config.get("pad_token_id")
    return max(1, positions - (padding if isinstance(padding, int) else 1) - 1)


def stated_positions(config: Mapping[str, Any]) -> int | None:
    """``max_position_embeddings``, where it is a number that can be meant; of CLIP's that of the half for texts."""
    half = config.get("text_config")
    told = half if isinstance(half, Mapping) and "max_position_embeddings" not in config else config
    value = told.get("max_position_embeddings")
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and value >= 1 else None
