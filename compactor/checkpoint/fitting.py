"""Hold the tensors of a checkpoint against the names that stock classes of transformers have.

``from_pretrained`` fills what is missing with random numbers and drops what it does not know, each with no more than a
warning, and its two generations add and drop the base model's name (``bert.``) by different rules. Here names are put
into one form first, and what is dropped must be known: another head of the family, a pooler, a table of indexes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from compactor.checkpoint.wrappers import describe
from compactor.errors import ModelDirectoryError

# Tables that can be computed, which older versions saved; poolers, which no task's output here reads unless its class
# has one; and pretraining heads that were published with weights and that no stock class has (DeBERTa's).
_HARMLESS = re.compile(
    r"(^|\.)(position_ids|token_type_ids|inv_freq|relative_position_index|num_batches_tracked|masked_bias)$"
    r"|(^|\.)pooler\.|^(mask_predictions|lm_predictions)\."
)
_CRF = re.compile(r"(^|\.)crf\.")


def add_base_name(
    tensors: Mapping[str, torch.Tensor], model_class: Any, config: Any, where: str
) -> dict[str, torch.Tensor]:
    """The tensors with the base model's name before those of the trunk, where ``model_class`` wants it and none has it.

    transformers 5 does the same for each tensor alone; transformers 4 for all of them or none, so that it would not
    find a head beside a trunk without the name.

    Raises:
        ModelDirectoryError: The trunk is there twice, with the name and without.
    """
    base = f"{model_class.base_model_prefix}."
    expected = frozenset(names_of(model_class, config))
    bare = {name for name in tensors if name not in expected and base + name in expected}
    if twice := [name for name in bare if base + name in tensors]:
        raise ModelDirectoryError(
            f"the weights hold tensors both with '{base}' before their name and without it: {describe(twice)}",
            where=where,
            todo="save the one model that is meant, with its save_pretrained",
        )
    return {base + name if name in bare else name: tensor for name, tensor in tensors.items()}


def names_of(model_class: Any, config: Any) -> tuple[str, ...]:
    """Names of the tensors that a model of this class has; nothing is allocated. Empty where it cannot be built."""
    try:
        with torch.device("meta"):
            return tuple(model_class(config).state_dict())
    except Exception:  # transformers raises what it likes; from_pretrained of the same class then says what
        return ()


def refuse_strays(
    unexpected: Iterable[str], stored: Collection[str], model_class: Any, config: Any, *, trunk_only: bool, where: str
) -> None:
    """Refuse tensors that the stock class drops, unless it is known that they change nothing.

    Dropped in silence are tables of indexes, poolers, and heads of other stock classes of the family: whoever loads
    the folder with ``model_class`` drops them as well. Where the task has no head (``trunk_only``), so is all that
    stands beside a trunk that has a name of its own. Anything else made the model that was saved another one.

    Args:
        unexpected: What ``from_pretrained`` did not use, in its own spelling.
        stored: Names of all tensors.
        model_class: The stock class.
        config: Its config.
        trunk_only: Whether all heads are left out on purpose.
        where: The folder, for messages.

    Raises:
        ModelDirectoryError: Naming them.
    """
    base = f"{model_class.base_model_prefix}."
    suspects = [name for name in unexpected if not _HARMLESS.search(name)]
    if trunk_only and any(name.startswith(base) for name in stored):  # what has not its name is no part of it
        suspects = [name for name in suspects if name.startswith(base) or base + name in stored]
    if not suspects:
        return
    known = _family_names(model_class, config)
    strays = [name for name in suspects if not {name, base + name, name.removeprefix(base)} & known]
    if not strays:
        return
    family = config.model_type
    if any(_CRF.search(name) for name in strays):
        what = f"a CRF decides over the labels ({describe(strays)}), which no stock '{family}' model has"
    else:
        what = f"the weights hold tensors that no stock '{family}' model of this config has: {describe(strays)}"
    raise ModelDirectoryError(
        f"{what}; dropping them would change the answers",
        where=where,
        todo="correct config.json if it is another model's; of a model with code of its own, save the stock part alone "
        "(such as model.bert.save_pretrained) and export that",
    )


def _family_names(model_class: Any, config: Any) -> frozenset[str]:
    """Names of the tensors of every stock class of the family, heads and all."""
    from transformers import PreTrainedModel

    classes = [
        found
        for found in vars(sys.modules[model_class.__module__]).values()
        if isinstance(found, type)
        and issubclass(found, PreTrainedModel)
        and getattr(found, "config_class", None) is type(config)
    ]
    return frozenset(name for found in classes for name in names_of(found, config))
