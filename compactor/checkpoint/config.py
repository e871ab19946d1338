"""Read ``config.json`` as what it is, a stranger's file: capped, checked, and stripped of whatever runs code.

Nothing here imports transformers. The sizes it names are compared with the weights in ``agreement.py``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compactor.errors import ModelDirectoryError

MAX_JSON_BYTES = 1 << 20
MAX_INDEX_BYTES = 32 << 20
NORM_TYPE = "layer_norm_type"  # nn_pruning's: what stands for every LayerNorm of the stock model
NO_NORM = "no_norm"
_NORM_TYPES = (NO_NORM, "layer_norm")

_DROPPED = frozenset({"auto_map", "trust_remote_code", "custom_pipelines", "pruned_heads"})
_DROPPED_PREFIXES = ("_attn_implementation", "attn_implementation", "_experts_implementation")
# Encoder-decoders that decode as BART does: each layer with self- and cross-attention whose caches are its keys and
# values, and no position bias that would depend on how much is cached.
_BART_LIKE = frozenset({"bart", "mbart", "marian", "pegasus"})
_POSITION_BIAS = frozenset({"t5", "mt5", "umt5", "longt5", "switch_transformers"})
_OTHER_ENCODER_DECODERS = frozenset(
    {"pegasus_x", "blenderbot", "blenderbot-small", "led", "m2m_100", "bigbird_pegasus", "prophetnet", "fsmt"}
    | {"plbart", "mvp", "encoder-decoder", "whisper", "speech-encoder-decoder", "vision-encoder-decoder"}
    | {"nllb-moe", "speech_to_text"}
)
# Classes of such a family that hold its encoder alone, though their configs may say otherwise.
_ENCODERS = ("EncoderModel", "T5ForTokenClassification")
_ENCODER_DECODERS = _BART_LIKE | _POSITION_BIAS | _OTHER_ENCODER_DECODERS

# Role -> the names families give it, and the largest value that is still a model and not an attack.
_ROLES: dict[str, tuple[tuple[str, ...], int]] = {
    "hidden": (("hidden_size", "dim", "d_model", "n_embd"), 1 << 16),
    "heads": (("num_attention_heads", "n_heads", "n_head", "encoder_attention_heads"), 1 << 12),
    "layers": (("num_hidden_layers", "n_layers", "n_layer", "encoder_layers"), 1 << 12),
    "intermediate": (("intermediate_size", "hidden_dim", "n_inner", "encoder_ffn_dim"), 1 << 20),
    "decoder_heads": (("decoder_attention_heads",), 1 << 12),
    "decoder_layers": (("decoder_layers",), 1 << 12),
    "decoder_intermediate": (("decoder_ffn_dim",), 1 << 20),
    "vocabulary": (("vocab_size",), 1 << 24),
    "positions": (("max_position_embeddings", "n_positions"), 1 << 22),
    "embedding": (("embedding_size",), 1 << 16),
    "types": (("type_vocab_size",), 1 << 16),
    "labels": (("num_labels",), 1 << 20),
    "image": (("image_size",), 1 << 14),
    "patch": (("patch_size",), 1 << 12),
    "channels": (("num_channels",), 1 << 12),
}
_MAY_BE_ZERO = frozenset({"types"})


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes a config states; None where it states none and the family's default holds."""

    hidden: int | None = None
    heads: int | None = None
    layers: int | None = None
    intermediate: int | None = None
    decoder_heads: int | None = None
    decoder_layers: int | None = None
    decoder_intermediate: int | None = None
    vocabulary: int | None = None
    positions: int | None = None
    embedding: int | None = None
    types: int | None = None
    labels: int | None = None
    image: int | None = None
    patch: int | None = None
    channels: int | None = None


def read_json_object(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON file that must hold an object.

    Raises:
        ModelDirectoryError: It is unreadable, larger than ``max_bytes``, no JSON, or no object.
    """
    value = read_json(path, max_bytes=max_bytes)
    if not isinstance(value, dict):
        raise ModelDirectoryError(f"{path.name} holds a {type(value).__name__}, not an object", where=str(path))
    return value


def read_json(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file of at most ``max_bytes``; raises ModelDirectoryError where that fails."""
    try:
        with path.open("rb") as file:
            text = file.read(max_bytes + 1)
    except OSError as error:
        raise ModelDirectoryError(f"{path.name} cannot be read: {error.strerror}", where=str(path)) from error
    if len(text) > max_bytes:
        raise ModelDirectoryError(f"{path.name} is larger than {max_bytes:,} bytes", where=str(path))
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ModelDirectoryError(f"{path.name} is not valid JSON: {reason}", where=str(path)) from error


def check_config(config: dict[str, Any], where: str) -> Sizes:
    """Refuse a config this tool cannot or must not handle, and return the sizes it states.

    Args:
        config: The parsed ``config.json``.
        where: Its path, for messages.

    Raises:
        ModelDirectoryError: Wrong types, sizes out of range, an encoder-decoder unlike BART, a quantized
            model, or norms of an unknown kind.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise ModelDirectoryError(
            "config.json has no 'model_type'", where=where, todo='add the family\'s name, such as "bert"'
        )
    architectures = config.get("architectures")
    if architectures is not None and not (
        isinstance(architectures, list) and all(isinstance(name, str) for name in architectures)
    ):
        raise ModelDirectoryError("'architectures' must be a list of class names", where=where)
    if not (architectures and architectures[0].endswith(_ENCODERS)):
        _refuse_other_encoder_decoders(config, model_type, where)
    if config.get("quantization_config") is not None:
        raise ModelDirectoryError(
            "the model is already quantized ('quantization_config' is set)",
            where=where,
            todo="start from its fp32, fp16 or bf16 weights; compactor quantizes by itself",
        )
    if (named := config.get("transformers_weights")) is not None:
        raise ModelDirectoryError(
            f"'transformers_weights' names a file of its own, {str(named)[:80]!r}, which is not read here",
            where=where,
            todo="call that file model.safetensors, and remove the key",
        )
    if (norm := config.get(NORM_TYPE)) is not None and norm not in _NORM_TYPES:
        raise ModelDirectoryError(
            f"'{NORM_TYPE}' is {str(norm)[:40]!r}, which is not known here",
            where=where,
            todo=f"known are {' and '.join(map(repr, _NORM_TYPES))}",
        )
    sizes = _read_sizes(config, where)
    for heads in (sizes.heads, sizes.decoder_heads):
        if sizes.hidden and heads and config.get("head_dim") is None and sizes.hidden % heads:
            raise ModelDirectoryError(
                f"the hidden size {sizes.hidden} is not divisible by {heads} attention heads", where=where
            )
    return sizes


def has_no_norm(config: Mapping[str, Any]) -> bool:
    """Whether a config says that every LayerNorm is a NoNorm."""
    return config.get(NORM_TYPE) == NO_NORM


def sanitise(config: dict[str, Any]) -> dict[str, Any]:
    """A copy without the keys that name code to run, pick a kernel, or describe what the reader has undone."""
    return {key: _sanitise_value(value) for key, value in config.items() if not _is_dropped(key)}


def _sanitise_value(value: Any) -> Any:
    if isinstance(value, dict):
        return sanitise(value)
    if isinstance(value, list):
        return [_sanitise_value(item) for item in value]
    return value


def _is_dropped(key: str) -> bool:
    return key in _DROPPED or key.startswith(_DROPPED_PREFIXES)


def _refuse_other_encoder_decoders(config: dict[str, Any], model_type: str, where: str) -> None:
    stated = config.get("is_encoder_decoder")
    if stated is not None and not isinstance(stated, bool):
        raise ModelDirectoryError(f"'is_encoder_decoder' must be true or false, not {stated!r}", where=where)
    if not (stated or (stated is None and model_type in _ENCODER_DECODERS)) or model_type in _BART_LIKE:
        return
    why = ""
    if model_type in _POSITION_BIAS:
        why = ": its position bias depends on how many tokens are cached, which one compact graph cannot say"
    raise ModelDirectoryError(
        f"encoder-decoder models of type '{model_type}' are not supported{why}",
        where=where,
        todo="supported are encoders (BERT and the like, ViT, of T5 a T5EncoderModel), and as encoder-decoders BART, "
        "mBART, Marian and Pegasus",
    )


def _read_sizes(config: dict[str, Any], where: str) -> Sizes:
    found: dict[str, int] = {}
    for role, (names, limit) in _ROLES.items():
        for name in names:
            value = config.get(name)
            if value is None:
                continue
            lowest = 0 if role in _MAY_BE_ZERO else 1
            several = isinstance(value, list) and bool(value)  # one size a stage, or [height, width]
            for number in value if several else [value]:
                if isinstance(number, bool) or not isinstance(number, int) or not lowest <= number <= limit:
                    raise ModelDirectoryError(
                        f"'{name}' must be a whole number from {lowest} to {limit:,}, not {str(number)[:40]!r}",
                        where=where,
                    )
            if several:
                continue  # states no single size; the model's own class checks it
            if found.setdefault(role, value) != value:
                raise ModelDirectoryError(
                    f"'{name}' is {value}, but another name for the same size says {found[role]}", where=where
                )
    return Sizes(**found)
