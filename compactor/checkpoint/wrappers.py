"""Take off what training tools leave in the names of tensors: the names of their wrappers.

DistributedDataParallel, torch.compile, FSDP, activation checkpointing and Lightning keep a model as a submodule of
their own, and a state dict that was saved through them says so in every name. Two kinds of names are told apart:

- a part that no model has (``_orig_mod``) is dropped wherever it stands;
- a part that a model might have (``module``, ``model``, ``auto_model``) is dropped at the front, and only where every
  name has it and the family's own names begin behind it.

Whatever is left over is not guessed at: the stock class refuses names that do not fit, in ``importing/stock.py``.
"""

from __future__ import annotations

import collections
from collections.abc import Collection, Mapping
from typing import Any

from compactor.errors import ModelDirectoryError

# torch.compile, FSDP (two generations), torch's and fairscale's activation checkpointing.
_WRAPPERS = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_fpw_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
_NAMED = 4  # how many names a message shows


def unwrap(names: Collection[str], where: str) -> tuple[dict[str, str], list[str]]:
    """Names without the parts that wrappers leave, by stored name, and a note for each kind that was there.

    Args:
        names: The stored names.
        where: The folder, for messages.

    Raises:
        ModelDirectoryError: Two tensors would get one name.
    """
    clean, taken_off = {}, collections.Counter[str]()
    for name in names:
        parts = name.split(".")
        kept = [part for part in parts if part not in _WRAPPERS]
        taken_off.update({part for part in parts if part in _WRAPPERS})
        clean[name] = ".".join(kept)
    _refuse_repeats(clean, where)
    notes = [
        f"'{part}.' ({_WRAPPERS[part]}) removed from the names of {count} tensors"
        for part, count in sorted(taken_off.items())
    ]
    return clean, notes


def drop_front(names: Mapping[str, str], front: str) -> tuple[dict[str, str], list[str]]:
    """The same names without ``front``, and a note, if every name has it; else these, and none."""
    if not front or not names or not all(name.startswith(front) for name in names.values()):
        return dict(names), []
    shorter = {stored: name.removeprefix(front) for stored, name in names.items()}
    return shorter, [f"'{front}' removed from the front of every tensor's name"]


def find_front(names: Collection[str], config: Mapping[str, Any]) -> str:
    """What stands before the names that the family's stock model has: ``"model."``, ``"0.auto_model."``, or nothing.

    Only a front that every name shares is found. Of the places where the family's names may begin, the one that finds
    most of them counts, and of equals the first: a family whose own names begin with ``model.`` keeps it.

    Args:
        names: Names of all tensors.
        config: ``config.json``.
    """
    fronts = _shared_fronts(names)
    if len(fronts) == 1:
        return ""
    stock = _stock_names(config)
    if stock is None:
        return ""
    prefix, expected = stock
    held = set(names)
    found = {front: max(_count(held, expected, front), _count(held, expected, front + prefix)) for front in fronts}
    return max(fronts, key=lambda front: found[front])  # max keeps the first of equals


def describe(names: Collection[str]) -> str:
    """A few names, quoted, and how many more there are."""
    shown = ", ".join(f"'{name[:100]}'" for name in sorted(names)[:_NAMED])
    return shown + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _shared_fronts(names: Collection[str]) -> list[str]:
    """``""``, and every whole front that all names share, shortest first."""
    fronts, rest = [""], [name.split(".") for name in names]
    depth = 0
    while rest and all(len(parts) > depth + 1 and parts[depth] == rest[0][depth] for parts in rest):
        depth += 1
        fronts.append(".".join(rest[0][:depth]) + ".")
    return fronts


def _count(held: set[str], expected: Collection[str], front: str) -> int:
    return sum(front + name in held for name in expected)


def _stock_names(config: Mapping[str, Any]) -> tuple[str, frozenset[str]] | None:
    """The name of the base model inside a model with a head, with a dot, and the names of the base model's tensors.

    None where transformers has no such family, or refuses the config: the export says so later.
    """
    import torch
    from transformers import CONFIG_MAPPING, AutoModel

    from compactor.quiet import quiet

    model_type = config.get("model_type")
    if model_type not in CONFIG_MAPPING:
        return None
    try:
        with quiet(), torch.device("meta"):
            stock = CONFIG_MAPPING[str(model_type)].from_dict(dict(config))
            classes = AutoModel._model_mapping[type(stock)]
            model = (classes[0] if isinstance(classes, tuple) else classes)(stock)
            prefix = str(model.base_model_prefix or "")
            return f"{prefix}." if prefix else "", frozenset(model.state_dict())
    except Exception:  # transformers raises what it likes for a config it cannot build
        return None


def _refuse_repeats(clean: Mapping[str, str], where: str) -> None:
    count = collections.Counter(clean.values())
    for name, times in count.items():
        if times > 1:
            stored = [given for given, short in clean.items() if short == name]
            raise ModelDirectoryError(
                f"{describe(stored)} would all be '{name}' without what training tools left in their names",
                where=where,
                todo="save the model itself, with save_pretrained of the module inside the wrappers",
            )
