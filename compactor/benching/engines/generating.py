"""What the engines of encoder-decoders share: a part that is ready to run, and one set of settings for the search.

Every engine searches for text in the same way, so that all of them do the same work. The settings are the model's own
(``generation_config.json``): penalties, forced and forbidden tokens, no n-gram twice. Sampling is switched off, and the
number of beams and of new tokens are those of the case.

Options of the engines: ``generation``, the settings as JSON values; the model's config where it is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from compactor.benching.plan import Part, Variant

OPTION = "generation"

_LENGTHS = ("max_length", "max_new_tokens", "min_length", "min_new_tokens", "max_time", "stop_strings")
_SAMPLING = (
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("num_return_sequences", "num_beam_groups", "diversity_penalty", "penalty_alpha"),
)
_OF_BEAMS = ("length_penalty", "early_stopping")


@dataclasses.dataclass(frozen=True)
class Runner:
    """A part of an encoder-decoder that is loaded: what an ``Engine`` prepares and runs.

    Attributes:
        prepare: Makes of the feeds what the part starts from, ahead of the clock.
        run: What comes out, by name, in host memory; the device is finished.
    """

    prepare: Callable[[Mapping[str, NDArray[Any]]], Any]
    run: Callable[[Any], dict[str, NDArray[Any]]]


def search_settings(variant: Variant, config: Any, part: Part) -> Any:
    """The ``GenerationConfig`` of a part that generates.

    Args:
        variant: Whose options hold the settings.
        config: The model's config.
        part: Of kind ``generate``.
    """
    from transformers import GenerationConfig

    given = variant.options.get(OPTION)
    own = dict(GenerationConfig.from_model_config(config).to_dict() if given is None else given)
    beams = part.beams or int(own.get("num_beams") or 1)
    left_out = (*_SAMPLING, *(() if part.may_end else _LENGTHS), *(_OF_BEAMS if beams == 1 else ()))
    settings = {name: value for name, value in own.items() if name not in left_out and value is not None}
    settings |= {"do_sample": False, "use_cache": True, "num_beams": beams, "max_new_tokens": part.new_tokens}
    if part.may_end:
        settings.pop("max_length", None)  # counts the token that starts the decoder; the other does not
    else:
        settings["min_new_tokens"] = part.new_tokens
    return GenerationConfig.from_dict(settings)
