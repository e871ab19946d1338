"""What of an encoder-decoder is timed: the whole way from source to text, and the parts that it is made of.

    generate      source -> N new tokens, by transformers' own search with 1 beam and with several
    encoder       source -> its states
    first step    states -> keys and values of cross-attention, and the logits of the first token
    step          logits of one more token, after so many that are cached

Whole and parts run on the same sources. Every text gets exactly N new tokens, whatever the model would have written:
variants that end at different places would do different work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compactor.benching.engines.feeding import read_feeds
from compactor.benching.plan import Case, Part
from compactor.errors import UsageError
from compactor.evaluation.inputs import InputSpec

if TYPE_CHECKING:
    from compactor.benching.request import Request  # the processes that measure do without it

DECODER_TOKENS = "decoder_input_ids"
SOURCE, QUICK_SOURCE = 128, 32  # tokens of a source, where nothing else is asked for

_NEW_TOKENS, _QUICK_NEW_TOKENS = 32, 8
_PASTS, _QUICK_PASTS = (16, 64), (4, 16)
_BEAMS = (1, 4)


def choose_parts(request: Request, limit: int | None) -> list[Part]:
    """What to run of an encoder-decoder: the whole first, then what it is made of; the usual sizes where none is asked.

    Args:
        request: Its ``new_tokens`` are those that ``generate`` writes; its ``pasts``, tokens before a step, and its
            ``beams`` are a case each.
        limit: Tokens that fit into the decoder, the one that starts it included; None where nothing says.

    Raises:
        UsageError: What was asked for does not fit.
    """
    room = None if limit is None else limit - 1
    for option, asked in (("--new-tokens", [request.new_tokens or 1]), ("--past", request.pasts or [1])):
        if room is not None and max(asked) > room:
            raise UsageError(
                f"{max(asked)} tokens are more than the decoder takes: {room} fit behind the one that starts it",
                todo=f"give at most {room} to {option}",
            )
    new_tokens = request.new_tokens or _fit([_QUICK_NEW_TOKENS if request.quick else _NEW_TOKENS], room)[-1]
    pasts = request.pasts or _fit(_QUICK_PASTS if request.quick else _PASTS, room)
    return [
        *(Part("generate", new_tokens=new_tokens, beams=beams) for beams in request.beams or _BEAMS),
        Part("encoder"),
        Part("first step"),
        *(Part("step", past=past) for past in pasts),
    ]


def split_cases(
    cases: Sequence[Case], parts: Sequence[Part], spec: InputSpec, *, start: int | None, seed: int
) -> list[Case]:
    """Each case as one for each of ``parts``, on the same files.

    Args:
        cases: Sources. Their files get what the decoder is fed with before and at a step.
        parts: What to run.
        spec: The model.
        start: The token that starts the decoder; None takes that of padding.
        seed: Of the decoder's tokens.
    """
    random = np.random.default_rng(seed)
    longest = max((part.past or 0 for part in parts), default=0)
    for case in cases:
        for file in case.files:
            feeds: dict[str, Any] = read_feeds(file)
            tokens = spec.random_tokens(random, len(feeds["input_ids"]), longest + 1)["input_ids"]
            tokens[:, 0] = spec.padding if start is None else start
            np.savez(file, **(feeds | {DECODER_TOKENS: tokens}))
    return [_case(case, part) for case in cases for part in parts]


def scoring_part(settings: Mapping[str, Any] | None, longest_reference: int, limit: int | None) -> Part:
    """How texts are written that are to be judged: by the model's own settings, and ended by the model.

    Args:
        settings: ``generation_config.json``; None where there is none.
        longest_reference: Tokens of the longest right text: how long a text may become where the settings do not say.
        limit: As of ``choose_parts``.
    """
    given = settings or {}
    length = given.get("max_new_tokens") or (given.get("max_length") or 1) - 1 or longest_reference
    return Part("generate", new_tokens=_fit([int(length)], None if limit is None else limit - 1)[-1], may_end=True)


def _fit(usual: Sequence[int], room: int | None) -> list[int]:
    """Those of ``usual`` that fit, or as many tokens as do."""
    return [size for size in usual if room is None or size <= room] or [max(1, room or 1)]


def _case(case: Case, part: Part) -> Case:
    written = case.examples * (part.new_tokens or 1)
    return dataclasses.replace(
        case,
        id=f"{part.words}, {case.id}",
        tokens=case.tokens if part.kind == "encoder" else written,
        positions=case.positions if part.kind == "encoder" else written,
        part=part,
    )
