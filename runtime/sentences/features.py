"""What goes from module to module: the states of one text's tokens, and what is known of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..encoding import Encoded

TOKENS, SENTENCE = "token_embeddings", "sentence_embedding"


@dataclasses.dataclass
class Features:
    """Of one text of S tokens.

    Attributes:
        item: The text.
        arrays: By name, float32: ``token_embeddings`` (S, D), ``sentence_embedding`` (D,).
        kept: (S,) whether a token counts: what the model looks at, less what a module masks.
    """

    item: Encoded
    arrays: dict[str, NDArray[np.float32]]
    kept: NDArray[np.bool_]

    @classmethod
    def of(cls, item: Encoded, states: NDArray[Any]) -> Features:
        """Those that the graph gives: one state a token, (S, D)."""
        seen = np.array(item.windows[0].attention_mask, dtype=bool)
        return cls(item, {TOKENS: states.astype(np.float32)}, seen)
