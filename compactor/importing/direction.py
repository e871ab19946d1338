"""Whether a family of decoders is used as an encoder: what its config says, and what the model then does.

EmbeddingGemma is a Gemma 3 whose config lets every token see those behind it; others say it by ``is_causal``. The
config is asked before the weights are loaded, the model after that, as some families ignore what their config says.
"""

from __future__ import annotations

from typing import Any

import torch

_TOKENS = 5


def says_both_ways(config: Any) -> bool:
    """Whether a config asks for attention that is not causal."""
    asked = getattr(config, "use_bidirectional_attention", None)
    # Gemma 4 may say "vision": the patches of an image see each other, and texts are read one way.
    both = (bool(asked) and asked != "vision") or getattr(config, "is_causal", True) is False
    return both or getattr(config, "attn_type", None) == "bi"  # XLNet's


@torch.no_grad()
def looks_ahead(module: Any) -> bool:
    """Whether the state of a text's first token depends on its last one, in a batch with padding and in one without.

    Some families do one in one batch and the other in the other: the config reaches their kernel, but not their mask.

    Args:
        module: A model of tokens, with or without a head, in evaluation mode.
    """
    ids = torch.arange(_TOKENS)[None].repeat(2, 1) + 1
    ids[1, -2] += 1
    ids %= int(module.config.vocab_size)
    for last in (1, 0):  # the last token is padding, or it is not
        mask = torch.ones_like(ids)
        mask[:, -1] = last
        states = module.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        if torch.equal(states[0, 0], states[1, 0]):
            return False
    return True
