"""How many tokens a model really takes: found by asking it.

What ``max_position_embeddings`` means differs from family to family: the number of positions; or that and a few that
are kept for padding (RoBERTa), which leaves two less; or nothing, where positions are computed. So the model runs on a
text of the length that its table of positions suggests, and on one a token longer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from compactor.positions import stated_positions
from compactor.quiet import quiet

_MOST = 1 << 16  # positions that are tried: running more takes more memory than the answer is worth
_RELATIVE = ("relative", "rel_", "distance_embedding")  # tables of distances, not of positions


def longest_sequence(module: Any, input_names: tuple[str, ...]) -> int | None:
    """Tokens of a sequence, at most; None where nothing limits them.

    Where the model has a table of positions, the length that it runs on and beyond which it fails; elsewhere what its
    config states.

    Args:
        module: A model in PyTorch, in evaluation mode.
        input_names: What it takes: ``input_ids``, ``attention_mask`` and ``token_type_ids``, as far as it does.
    """
    config = module.config
    stated = stated_positions(config.to_dict())
    rows = max((len(table.weight) for name, table in module.named_modules() if _is_positions(name, table)), default=0)
    if not rows or rows > _MOST:
        return stated
    padding = getattr(config, "pad_token_id", None)
    offset = padding + 1 if isinstance(padding, int) and 0 <= padding < rows else 0
    with quiet(), torch.no_grad():
        for guess in dict.fromkeys((stated or rows, rows, rows - offset, rows - 2)):
            if guess > 0 and _fits(module, input_names, guess) and not _fits(module, input_names, guess + 1):
                return guess
        if _fits(module, input_names, rows + 1):
            return stated  # the table does not limit it
        return _search(module, input_names, rows) or stated


def _is_positions(name: str, module: Any) -> bool:
    last, weight = name.lower(), getattr(module, "weight", None)
    table = isinstance(weight, torch.Tensor) and weight.ndim == 2 and not isinstance(module, nn.Linear)
    return table and "position" in last and not any(part in last for part in _RELATIVE)


def _search(module: Any, input_names: tuple[str, ...], beyond: int) -> int:
    """The longest length below ``beyond`` that fits; 0 where none does."""
    fits, fails = 0, beyond + 1
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if _fits(module, input_names, middle):
            fits = middle
        else:
            fails = middle
    return fits


def _fits(module: Any, input_names: tuple[str, ...], length: int) -> bool:
    """Whether the model runs on one text of ``length`` tokens, none of which is padding."""
    config = module.config
    token = int(config.vocab_size) - 1
    if token == getattr(config, "pad_token_id", None):
        token -= 1
    ids = torch.full((1, length), max(token, 0), dtype=torch.long)
    filled = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    try:
        module(**{name: filled[name] for name in input_names})
    except Exception:  # a position that the table lacks, a buffer that is too short; what it is, a case says later
        return False
    return True
