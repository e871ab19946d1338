"""Hold the tensors of a checkpoint against those that a stock class of transformers has.

``from_pretrained`` fills what is missing with random numbers and drops what it does not know, each with no more than a
warning, and its two generations add and drop the base model's name (``bert.``) by different rules. Here names are put
into one form first, nothing may be missing or of another shape, and what is dropped must be known: another head of the
family, a pooler, a table of indexes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from compactor.checkpoint.wrappers import describe
from compactor.errors import ModelDirectoryError
from compactor.tasks import Task

# Tables that can be computed, which older versions saved; poolers, which no task's output here reads unless its class
# has one; and pretraining heads that were published with weights and that no stock class has (DeBERTa's).
_HARMLESS = re.compile(
    r"(^|\.)(position_ids|token_type_ids|inv_freq|relative_position_index|relative_coords_table|num_batches_tracked|masked_bias)$"
    r"|(^|\.)pooler\.|^(mask_predictions|lm_predictions)\."
)
_COMPUTED = ("position_ids", "token_type_ids")
_CRF = re.compile(r"(^|\.)crf\.")

Tensors = Mapping[str, torch.Tensor]


class Fit:
    """What one stock class with one config expects of a checkpoint.

    Args:
        model_class: The class that loads it.
        config: Its config, built by transformers.
        where: The folder, for messages.
    """

    def __init__(self, model_class: Any, config: Any, where: str) -> None:
        self._class, self._config, self._where = model_class, config, where
        self._base = f"{model_class.base_model_prefix}."
        self._expected = _names_of(model_class, config)

    def add_base_name(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """The tensors with the base model's name before those of the trunk, where the class wants it.

        transformers 5 does the same for each tensor alone; transformers 4 for all of them or none, so that it does
        not take a head that stands beside a trunk without the name.

        Raises:
            ModelDirectoryError: The trunk is there twice, with the name and without.
        """
        base = self._base
        bare = {name for name in tensors if name not in self._expected and base + name in self._expected}
        if twice := [name for name in bare if base + name in tensors]:
            raise ModelDirectoryError(
                f"the weights hold tensors both with '{base}' before their name and without it: {describe(twice)}",
                where=self._where,
                todo="save the one model that is meant, with its save_pretrained",
            )
        return {base + name if name in bare else name: tensor for name, tensor in tensors.items()}

    def refuse_no_trunk(self, tensors: Tensors) -> None:
        """Refuse weights in which nothing of the model is found: wrapped in a way that is not known, or another's.

        Families whose tensors transformers saves by other names than the model has pass: it knows which are missing.

        Raises:
            ModelDirectoryError: Naming what is expected, and what is there.
        """
        trunk = sorted(name for name in self._expected if not self._is_head(name))
        found = any(name in tensors or self._base + name in tensors for name in trunk)
        if trunk and not found and not _is_renamed(self._class, self._config):
            raise self._lack(trunk, tensors)

    def refuse_other_shapes(self, mismatched: Iterable[Any], tensors: Tensors, built: Tensors) -> None:
        """Refuse tensors that the config makes larger or smaller: transformers would make them anew, at random.

        Args:
            mismatched: What ``from_pretrained`` says: names, or tuples that begin with one.
            tensors: What it was given.
            built: What the model has.

        Raises:
            ModelDirectoryError: Naming the first, with both shapes.
        """
        names = sorted(str(found[0] if isinstance(found, tuple | list) else found) for found in mismatched)
        if not names:
            return
        name, more = names[0], f" and {len(names) - 1} more" if len(names) > 1 else ""
        stored = tensors.get(name, tensors.get(self._base + name))
        shapes = f": {_shape(stored)} are stored, the config makes it {_shape(built.get(name))}"
        raise ModelDirectoryError(
            f"'{name}' does not have the config's shape{more}, which '{self._class.__name__}' needs"
            + ("" if stored is None or name not in built else shapes),
            where=self._where,
            todo="correct config.json: 'num_labels' and 'id2label' count a head's outputs, 'vocab_size', "
            "'max_position_embeddings' and 'type_vocab_size' the rows of the tables",
        )

    def refuse_missing(self, missing: Iterable[str], tensors: Tensors, task: Task) -> None:
        """Refuse weights that lack a tensor, or the whole head of the task.

        Raises:
            ModelDirectoryError: Naming what is missing.
        """
        names = sorted(name for name in missing if not name.endswith(_COMPUTED))
        if not names:
            return
        has_head = any(name in tensors and self._is_head(name) and ".pooler." not in name for name in self._expected)
        if not all(self._is_head(name) for name in names) or task.auto_class == "AutoModel":
            raise self._lack(names, tensors)
        what = f"the weights lack {_first(names)}, which '{self._class.__name__}' needs"
        if has_head:
            tied = getattr(self._config, "tie_word_embeddings", True)
            raise ModelDirectoryError(
                what,
                where=self._where,
                todo="save the whole model"
                + ("" if tied else ", or set 'tie_word_embeddings' to true if its output is its embedding"),
            )
        raise ModelDirectoryError(
            f"{what}: the folder has no head for {task.name}",
            where=self._where,
            todo=f"give the folder of a model that was trained for {task.name}, or another --task: "
            "feature-extraction needs no head",
        )

    def refuse_strays(self, unexpected: Iterable[str], stored: Collection[str], *, trunk_only: bool) -> None:
        """Refuse tensors that the stock class drops, unless it is known that they change nothing.

        Dropped in silence are tables of indexes, poolers, and heads of other stock classes of the family: whoever
        loads the folder with this class drops them as well. Where no head is wanted, so is all that stands beside a
        trunk that has a name of its own. Anything else made the model that was saved another one.

        Args:
            unexpected: What ``from_pretrained`` did not use, in its own spelling.
            stored: Names of all tensors.
            trunk_only: Whether all heads are left out on purpose.

        Raises:
            ModelDirectoryError: Naming them.
        """
        base = self._base
        suspects = [name for name in unexpected if not _HARMLESS.search(name)]
        if trunk_only and any(name.startswith(base) for name in stored):  # what has not its name is no part of it
            suspects = [name for name in suspects if name.startswith(base) or base + name in stored]
        known = self._family_names() if suspects else frozenset()
        strays = [name for name in suspects if not {name, base + name, name.removeprefix(base)} & known]
        if not strays:
            return
        family = self._config.model_type
        if any(_CRF.search(name) for name in strays):
            what = f"a CRF decides over the labels ({describe(strays)}), which no stock '{family}' model has"
        else:
            what = f"the weights hold tensors that no stock '{family}' model of this config has: {describe(strays)}"
        raise ModelDirectoryError(
            f"{what}; dropping them would change the answers",
            where=self._where,
            todo="correct config.json if it is another model's; of a model with code of its own, save the stock part "
            "alone (such as model.bert.save_pretrained) and export that",
        )

    def _is_head(self, name: str) -> bool:
        """Whether it stands beside the base model; a pooler is trained with a head, and counts as one."""
        inside = any(expected.startswith(self._base) for expected in self._expected)
        return inside and (not name.startswith(self._base) or name.startswith(f"{self._base}pooler."))

    def _lack(self, names: list[str], tensors: Collection[str]) -> ModelDirectoryError:
        return ModelDirectoryError(
            f"the weights lack {_first(names)}, which '{self._class.__name__}' needs; they hold {describe(tensors)}",
            where=self._where,
            todo="pass --task with the task the model was trained for, or save the whole model with save_pretrained",
        )

    def _family_names(self) -> frozenset[str]:
        """Names of the tensors of every stock class of the family, heads and all."""
        from transformers import PreTrainedModel

        classes = [
            found
            for found in vars(sys.modules[self._class.__module__]).values()
            if isinstance(found, type)
            and issubclass(found, PreTrainedModel)
            and getattr(found, "config_class", None) is type(self._config)
        ]
        return frozenset(name for found in classes for name in _names_of(found, self._config))


def _names_of(model_class: Any, config: Any) -> frozenset[str]:
    """Names of the tensors that a model of this class has; nothing is allocated. Empty where it cannot be built."""
    try:
        with torch.device("meta"):
            return frozenset(model_class(config).state_dict())
    except Exception:  # transformers raises what it likes; from_pretrained of the same class then says what
        return frozenset()


def _is_renamed(model_class: Any, config: Any) -> bool:
    """Whether transformers changes the names of this class's tensors when it loads them, as version 5 does of some."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping

        with torch.device("meta"):
            return bool(get_model_conversion_mapping(model_class(config), add_legacy=False))
    except Exception:  # version 4 has no such thing; transformers raises what it likes
        return False


def _first(names: list[str]) -> str:
    return f"'{names[0]}'" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _shape(tensor: torch.Tensor | None) -> str:
    return "nothing" if tensor is None else " x ".join(map(str, tensor.shape)) or "a scalar"
