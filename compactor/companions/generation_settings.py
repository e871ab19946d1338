"""Refuse generation settings that the exported graphs cannot honour, before anything slow begins.

A checkpoint's ``generation_config.json`` travels with the artefact, and ``generate`` follows it. Most settings only
choose among logits and work as ever. A few want something of the model that its graphs do not give; found at run time,
they would fail there, or be ignored without a word.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compactor.checkpoint.config import read_json_object
from compactor.errors import ModelDirectoryError
from compactor.positions import max_tokens
from compactor.tasks import GENERATION

if TYPE_CHECKING:
    from compactor.checkpoint import Checkpoint

FILE_NAME = "generation_config.json"

_ASSISTED = "the graphs take one token a step, and cannot check several that were guessed"
_REMOTE = "transformers does it by code that it would download"
_LOGITS_ONLY = "the graphs compute logits only"

# Setting -> the values that change nothing, and why others cannot be honoured.
_SETTINGS: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "cache_implementation": ((None, "dynamic"), "the graphs keep their own caches, one a layer, as they come"),
    "output_attentions": ((None, False), _LOGITS_ONLY),
    "output_hidden_states": ((None, False), _LOGITS_ONLY),
    "guidance_scale": ((None, 1), "it runs the model without its text, which an encoder-decoder has no input for"),
    "prefill_chunk_size": ((None, 0), "the first step is one run of its graph"),
    "token_healing": ((None, False), "it changes the end of a prompt, which an encoder-decoder has not"),
    "prompt_lookup_num_tokens": ((None, 0), _ASSISTED),
    "assistant_early_exit": ((None, 0), _ASSISTED),
    "use_mtp": ((None, False), _ASSISTED),
    "num_beam_groups": ((None, 1), _REMOTE),
    "diversity_penalty": ((None, 0), _REMOTE),
    "force_words_ids": ((None,), _REMOTE),
    "constraints": ((None,), _REMOTE),
    "penalty_alpha": ((None, 0), _REMOTE),
    "dola_layers": ((None,), _REMOTE),
    "low_memory": ((None, False), "transformers no longer does it"),
    "num_return_sequences": ((None, 1), "a text gets one answer"),
    "return_dict_in_generate": ((None, False), "answers are texts"),
    "stop_strings": ((None,), "generate asks for the tokenizer with it, which no folder can give"),
    "encoder_repetition_penalty": (
        (None, 1),
        "it counts padding as text, so that an answer would depend on what it is batched with",
    ),
}


def check_generation_settings(checkpoint: Checkpoint) -> None:
    """Check what ``generate`` would follow: ``generation_config.json``, or where there is none ``config.json``.

    Args:
        checkpoint: That of an encoder-decoder.

    Raises:
        ModelDirectoryError: A setting cannot be honoured, or the file is damaged; the message names the setting.
    """
    path = checkpoint.model_path / FILE_NAME
    if path.is_file():
        settings = read_json_object(path)
        _check_readable(settings, path)
    else:
        path, settings = checkpoint.model_path / "config.json", dict(checkpoint.config)
    for name, (neutral, why) in _SETTINGS.items():
        value = settings.get(name)
        if value not in neutral:
            raise ModelDirectoryError(
                f"'{name}' is {_short(value)} in {path.name}, which the export cannot honour: {why}",
                where=str(path),
                todo=f"set '{name}' to {json.dumps(neutral[-1])}, or remove it",
            )
    _check_tokens(settings, checkpoint.config.get("vocab_size"), path)
    _check_lengths(settings, max_tokens(dict(checkpoint.config)), path)
    specific = checkpoint.config.get("task_specific_params")
    if isinstance(specific, Mapping) and specific.get(GENERATION):
        raise ModelDirectoryError(
            f"'task_specific_params' of config.json has settings for {GENERATION}, which only transformers 4 reads",
            where=str(checkpoint.model_path / "config.json"),
            todo=f"move them into {FILE_NAME} (a 'prefix' into config.json), and remove them there",
        )


def _check_readable(settings: Mapping[str, Any], path: Path) -> None:
    from transformers import GenerationConfig

    from compactor.quiet import quiet

    try:
        with quiet():
            GenerationConfig.from_dict(dict(settings)).validate()
    except Exception as error:  # transformers raises what it likes for a damaged file
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelDirectoryError(f"transformers rejects {path.name}: {reason[0]}", where=str(path)) from error


def _check_tokens(settings: Mapping[str, Any], vocabulary: Any, path: Path) -> None:
    """Refuse special tokens that the model has no logit for: they would fail at the first step."""
    for name, token in _tokens(settings):
        is_known = isinstance(token, int) and not isinstance(token, bool) and token >= 0
        if not is_known or (isinstance(vocabulary, int) and token >= vocabulary):
            raise ModelDirectoryError(
                f"'{name}' is {_short(token)} in {path.name}, which is no token of the model's {vocabulary}",
                where=str(path),
                todo="config.json and the generation settings do not belong together",
            )


def _check_lengths(settings: Mapping[str, Any], positions: int | None, path: Path) -> None:
    """Refuse texts that are longer than the decoder takes: the step beyond would fail."""
    for name in ("min_length", "max_length", "min_new_tokens", "max_new_tokens"):
        value = settings.get(name)
        if positions is not None and isinstance(value, int) and value > positions:
            raise ModelDirectoryError(
                f"'{name}' is {value} in {path.name}, and the decoder takes {positions} tokens",
                where=str(path),
                todo=f"set it to {positions} at most",
            )


def _tokens(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in ("bad_words_ids", "sequence_bias"):
        for entry in settings.get(name) or ():
            ids = entry[0] if name == "sequence_bias" and isinstance(entry, list) and entry else entry
            yield from ((name, token) for token in (ids if isinstance(ids, list) else [ids]))
    for name, value in settings.items():
        if name.endswith("_token_id") and value is not None:
            yield from ((name, token) for token in (value if isinstance(value, list) else [value]))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
