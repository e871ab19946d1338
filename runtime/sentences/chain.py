"""The chain of a folder's modules behind its transformer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import ArtefactError
from ..folder import MODULES
from .features import SENTENCE, TOKENS, Features
from .masking import read_mask
from .module import Module
from .pooling import read_pooling, read_splade
from .projecting import read_dense, read_layer_norm, read_normalize
from .settings import SCORES, SPARSE, TOKEN_VECTORS, VECTORS, SentenceSettings

Step = Callable[[Features], None]

TRANSFORMERS = ("Transformer", "MLMTransformer")
_OURS = "sentence_transformers."
_TODO = "open the folder with sentence-transformers, or leave this module out"


@dataclasses.dataclass(frozen=True)
class Chain:
    """What comes behind the transformer.

    Attributes:
        kinds: The names of the modules' classes, the transformer's first.
        steps: What each but that does.
    """

    kinds: tuple[str, ...]
    steps: tuple[Step, ...]

    def __call__(self, features: Features) -> Features:
        """Run all of it; changes and returns ``features``."""
        for step in self.steps:
            step(features)
        return features


def read_modules(folder: Path) -> list[dict[str, Any]]:
    """The content of ``modules.json``, each entry with a type and a path inside of the folder.

    Raises:
        ArtefactError: It is damaged.
    """
    path = folder / MODULES
    try:
        modules = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtefactError(f"{MODULES} is damaged: {error}", where=str(path), todo="repair it") from error
    if not isinstance(modules, list) or not modules or not all(isinstance(module, dict) for module in modules):
        raise ArtefactError("expected a list of modules", where=str(path), todo="repair this file")
    for module in modules:
        stated = module.get("path", "")
        inside = PurePosixPath(str(stated))
        if not isinstance(stated, str) or inside.is_absolute() or ".." in inside.parts or set(stated) & set("\\:\0"):
            raise ArtefactError(
                f"the module path {stated!r} leads out of the model directory", where=str(path), todo="repair this file"
            )
    return modules


def read_chain(folder: Path, settings: SentenceSettings, tokenizer: Any = None) -> Chain:
    """The modules of a folder.

    Args:
        folder: The folder.
        settings: What it says of itself.
        tokenizer: Its tokenizer, for masks of words; where None, all is read but that.

    Raises:
        ArtefactError: A module, or one of its settings, is not built; or they make no vector.
    """
    modules = read_modules(folder)
    kinds: list[str] = []
    steps: list[Step] = []
    for number, entry in enumerate(modules):
        reference = str(entry.get("type"))
        kind = reference.rpartition(".")[2]
        if not reference.startswith(_OURS):
            raise _refusal(folder, f"the module '{reference}' is code of its own, which is not run")
        if (number == 0) != (kind in TRANSFORMERS):
            raise _refusal(folder, f"a '{kind}' as module {number} is not built")
        kinds.append(kind)
        if number:
            steps.extend(_read(Module.read(kind, folder / str(entry.get("path", ""))), settings, tokenizer))
    _check(folder, settings, kinds)
    return Chain(tuple(kinds), tuple(steps))


def _read(module: Module, settings: SentenceSettings, tokenizer: Any) -> Sequence[Step]:
    """What a module does; nothing for those that do nothing at inference."""
    if module.kind == "WeightedLayerPooling":
        module.allow("embedding_dimension", "word_embedding_dimension", "layer_start", "num_hidden_layers")
        return ()  # of effect where the transformer gives all its layers; see compactor.sentences
    if module.kind == "Dropout":
        return ()
    if module.kind == "Dense":
        return (read_dense(module, TOKENS if settings.kind == TOKEN_VECTORS else SENTENCE),)
    if module.kind == "MultiVectorMask":
        return () if tokenizer is None else (read_mask(module, tokenizer),)
    if module.kind in _READERS:
        return (_READERS[module.kind](module),)
    raise module.refusal(f"the module '{module.kind}' is not built", _TODO)


_READERS: Mapping[str, Callable[[Module], Step]] = {
    "Pooling": read_pooling,
    "SpladePooling": read_splade,
    "LayerNorm": read_layer_norm,
    "Normalize": read_normalize,
}


def _check(folder: Path, settings: SentenceSettings, kinds: Sequence[str]) -> None:
    """Raises ArtefactError where the modules do not make what the kind of folder gives."""
    if settings.kind == SCORES and len(kinds) > 1:
        raise _refusal(folder, f"a CrossEncoder with a '{kinds[1]}' behind its transformer is not built")
    needed = {VECTORS: "Pooling", SPARSE: "SpladePooling", TOKEN_VECTORS: "MultiVectorMask"}.get(settings.kind)
    if needed is not None and needed not in kinds:
        raise _refusal(
            folder, f"a {settings.kind} without a '{needed}' is not built: its modules are {', '.join(kinds)}"
        )


def _refusal(folder: Path, what: str) -> ArtefactError:
    return ArtefactError(what, where=str(folder / MODULES), todo=_TODO)
