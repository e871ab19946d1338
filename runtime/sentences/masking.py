"""``MultiVectorMask``: which tokens of a text have a vector of their own (ColBERT)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..tokenizer import special_token
from .features import Features
from .module import Module, require


def read_mask(module: Module, tokenizer: Any) -> Callable[[Features], None]:
    """All tokens of a query, those that expand it too; of a document all but those of ``skiplist_words``.

    As ColBERT (Khattab and Zaharia 2020, arXiv 2004.12832, section 3.2).

    Args:
        module: The module.
        tokenizer: The folder's, which knows the numbers of the words.

    Raises:
        ArtefactError: A setting is unknown.
    """
    module.allow("skiplist_words", "skiplist_tasks", "keep_only_token_ids")
    words = module.config.get("skiplist_words") or []
    tasks = module.config.get("skiplist_tasks")
    tasks = ["document"] if tasks is None else [tasks] if isinstance(tasks, str) else tasks
    only = module.config.get("keep_only_token_ids")
    require(_is_list(words, str), module, "skiplist_words", words, "a list of words")
    require(_is_list(tasks, str), module, "skiplist_tasks", tasks, "a list of query, document")
    require(only is None or _is_list(only, int), module, "keep_only_token_ids", only, "a list of numbers")
    unknown = special_token(module.folder.parent, "unk_token")
    numbers = {word: tokenizer.token_to_id(word) for word in words}
    skipped = [number for word, number in numbers.items() if number is not None]
    if unknown not in numbers:
        skipped = [number for number in skipped if number != (tokenizer.token_to_id(unknown) if unknown else None)]

    def mask(features: Features) -> None:
        role, ids = features.item.role, np.array(features.item.windows[0].ids)
        if role == "query":
            features.kept = features.kept | (np.arange(len(ids)) >= len(ids) - features.item.filled)
        if (role or "document") in tasks:
            features.kept = features.kept & ~np.isin(ids, skipped)
        if role != "query" and only:
            features.kept = features.kept & np.isin(ids, only)

    return mask


def _is_list(value: object, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(each, kind) for each in value)
