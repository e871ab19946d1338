"""How text is searched for: one set of settings for every engine, so that all of them do the same work.

They are the model's own (``generation_config.json``): penalties, forced and forbidden tokens, no n-gram twice. Sampling
is switched off, and the number of beams and of new tokens are those of the case.

Options of the engines: ``generation``, the settings as JSON values; the model's config where it is left out.
"""

from __future__ import annotations

from typing import Any

from compactor.benching.plan import Part, Variant

OPTION = "generation"

_LENGTHS = ("max_length", "max_new_tokens", "min_length", "min_new_tokens", "max_time", "stop_strings")
_SAMPLING = (
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("num_return_sequences", "num_beam_groups", "diversity_penalty", "penalty_alpha"),
)
_OF_BEAMS = ("length_penalty", "early_stopping")


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
