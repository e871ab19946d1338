"""How long queries and documents may be, and what fills a query up (ColBERT's query expansion)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ArtefactError
from ..tokenizer import special_token
from .settings import TOKEN_VECTORS, SentenceSettings

_KEYS = {"strategy", "attend", "token", "length"}


@dataclasses.dataclass(frozen=True)
class Expansion:
    """What fills up a query.

    Attributes:
        length: Tokens that a query has at least.
        fixed: Whether it has no more than that either.
        token: The token that fills it up.
        attend: Whether the model looks at those that fill it up.
    """

    length: int
    fixed: bool
    token: str
    attend: bool


@dataclasses.dataclass(frozen=True)
class Roles:
    """Of one folder.

    Attributes:
        limits: Tokens of a text, at most, by what it is for (``query``, ``document``); less those without a limit.
        expansion: How a query is filled up; None where it is not.
    """

    limits: Mapping[str, int]
    expansion: Expansion | None

    @classmethod
    def read(cls, folder: Path, settings: SentenceSettings | None) -> Roles:
        """Those of a folder.

        Raises:
            ArtefactError: A setting is none.
        """
        stated = settings.transformer if settings is not None else {}
        limits = {role: _length(stated.get(f"{role}_length"), f"{role}_length", folder) for role in _ROLES}
        expansion = _expansion(stated.get("query_expansion"), folder)
        if expansion is not None and settings is not None and settings.kind != TOKEN_VECTORS:
            raise ArtefactError(
                f"'query_expansion' of a {settings.kind} is not built",
                where=str(folder),
                todo="set it to null in sentence_bert_config.json",
            )
        known = {role: limit for role, limit in limits.items() if limit is not None}
        if expansion is not None:
            if known.get("query", expansion.length) < expansion.length:
                raise ArtefactError(
                    f"'query_length' is {known['query']}, below the length of 'query_expansion', {expansion.length}",
                    where=str(folder),
                    todo="drop 'query_length', or raise it",
                )
            if expansion.fixed:
                known["query"] = expansion.length
        return cls(known, expansion)


_ROLES = ("query", "document")


def _length(value: object, key: str, folder: Path) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ArtefactError(f"'{key}' is {value!r}, which is no positive number", where=str(folder), todo="repair it")


def _expansion(value: Any, folder: Path) -> Expansion | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or set(value) - _KEYS or value.get("strategy") not in ("fixed", "min"):
        raise ArtefactError(
            f"'query_expansion' is {value!r}, which is not built",
            where=str(folder),
            todo="give it a strategy (fixed or min), a length, and no more than a token and attend",
        )
    length = _length(value.get("length"), "query_expansion.length", folder)
    token = value.get("token") or special_token(folder, "mask_token") or special_token(folder, "eos_token")
    if length is None or not isinstance(token, str) or not isinstance(value.get("attend", False), bool):
        raise ArtefactError(
            "'query_expansion' lacks a length or a token to fill with", where=str(folder), todo="state them"
        )
    return Expansion(length, value["strategy"] == "fixed", token, value.get("attend", False))
