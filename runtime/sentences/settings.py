"""What a sentence-transformers folder says of itself: its kind, and how its transformer is run.

The keys are those of sentence-transformers 6.2. A value that would change the answer and is not built is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..activation import is_cross_encoder
from ..errors import ArtefactError
from ..folder import MODULES, TRANSFORMER_CONFIGS, read_object, read_transformer_settings

CONFIG = "config_sentence_transformers.json"

VECTORS, SCORES, SPARSE, TOKEN_VECTORS = "SentenceTransformer", "CrossEncoder", "SparseEncoder", "MultiVectorEncoder"
_TASKS = {
    VECTORS: "feature-extraction",
    SCORES: "text-classification",
    SPARSE: "fill-mask",
    TOKEN_VECTORS: "feature-extraction",
}

# What the transformer of each kind does, and what it calls its output; other values make it another model.
_RUNS = {
    VECTORS: ("feature-extraction", "last_hidden_state", "token_embeddings"),
    TOKEN_VECTORS: ("feature-extraction", "last_hidden_state", "token_embeddings"),
    SPARSE: ("fill-mask", "logits", "token_embeddings"),
    SCORES: ("sequence-classification", "logits", "scores"),
}
# Read elsewhere, or of no effect on the answer: how attention is computed, and where.
_HONOURED = {"max_seq_length", "do_lower_case", "query_length", "document_length", "query_expansion", "unpad_inputs"}
_RUN_BY = {"transformer_task", "modality_config", "module_output_name"}
_ARGUMENTS = {"model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs"}
_INERT_ARGUMENTS = {"attn_implementation", "torch_dtype", "dtype", "device_map", "low_cpu_mem_usage", "use_safetensors"}
# Saves of PyLate and of Stanford's ColBERT, which sentence-transformers translates when it opens them.
_FOREIGN = (
    "do_query_expansion",
    "attend_to_expansion_tokens",
    "attend_to_mask_tokens",
    "query_prefix",
    "document_prefix",
    "skiplist_words",
    "query_length",
    "document_length",
    "query_expansion",
)


@dataclasses.dataclass(frozen=True)
class SentenceSettings:
    """Of one folder.

    Attributes:
        kind: ``SentenceTransformer``, ``CrossEncoder``, ``SparseEncoder`` or ``MultiVectorEncoder``.
        task: What its graph does, as this project names it.
        width: Numbers of a vector that are kept (``truncate_dim``); None keeps all.
        active: Numbers of a sparse vector that are kept, the largest (``max_active_dims``); None keeps all.
        transformer: The settings of its transformer, as its file holds them.

    Raises:
        ArtefactError: A file is damaged, or says something that is not built.
    """

    kind: str
    task: str
    width: int | None
    active: int | None
    transformer: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path, transformer: Path | None = None) -> SentenceSettings | None:
        """Those of ``folder``; None where it has no ``modules.json``.

        Args:
            folder: The folder.
            transformer: Where the transformer's files lie, if elsewhere.
        """
        if not (folder / MODULES).is_file():
            return None
        home = transformer or folder
        content = read_object(folder / CONFIG)
        kind = str(content.get("model_type") or VECTORS)
        if not content.get("model_type") and is_cross_encoder(read_object(home / "config.json"), content):
            kind = SCORES
        if kind not in _TASKS:
            raise _refusal(folder / CONFIG, f"'model_type' is {kind}, which is not built", "choose another model")
        foreign = next((key for key in _FOREIGN if key in content), None)
        if kind == TOKEN_VECTORS and foreign is not None:
            raise _refusal(
                folder / CONFIG,
                f"'{foreign}' stands here, so this is a save of PyLate or Stanford's ColBERT",
                "open it with MultiVectorEncoder of sentence-transformers and save it again",
            )
        stated = read_transformer_settings(home)
        _check_transformer(stated, kind, home)
        return cls(
            kind,
            _TASKS[kind],
            _size(content, "truncate_dim", folder) if kind == VECTORS else None,
            _size(content, "max_active_dims", folder) if kind == SPARSE else None,
            stated,
        )


def _check_transformer(stated: Mapping[str, Any], kind: str, home: Path) -> None:
    where = next((home / name for name in TRANSFORMER_CONFIGS if (home / name).is_file()), home)
    task, output, name = _RUNS[kind]
    for key, value in stated.items():
        if key in _HONOURED or value in (None, {}, []):
            continue
        if key in _ARGUMENTS:
            argument = next((name for name in value if name not in _INERT_ARGUMENTS), None)
            if argument is None:
                continue
            key, value = f"{key}.{argument}", value[argument]
        elif key in _RUN_BY:
            expected = {
                "transformer_task": value == task,
                "modality_config": _is_plain(value, output),
                "module_output_name": value == name,
            }
            if expected[key]:
                continue
        raise _refusal(where, f"'{key}' is {value!r}, which is not built", "remove it, or set it to its default")
    if not isinstance(stated.get("modality_config"), Mapping) and _talks(home):
        raise _refusal(
            home,
            "the tokenizer has a chat template, so sentence-transformers turns texts into messages: not built",
            "remove the template, or state a 'modality_config' of plain text",
        )


def _is_plain(value: object, output: str) -> bool:
    """Whether texts go through ``forward``, and its ``output`` counts."""
    text = value.get("text") if isinstance(value, Mapping) else None
    named = text.get("method_output_name") if isinstance(text, Mapping) else None
    return (
        isinstance(value, Mapping)
        and isinstance(text, Mapping)
        and "message" not in value
        and text.get("method") == "forward"
        and named in (output, [output])
    )


def _talks(home: Path) -> bool:
    template = read_object(home / "tokenizer_config.json").get("chat_template")
    return bool(template) or any((home / name).is_file() for name in ("chat_template.jinja", "chat_template.json"))


def _size(content: Mapping[str, Any], key: str, folder: Path) -> int | None:
    value = content.get(key)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise _refusal(folder / CONFIG, f"'{key}' is {value!r}, which is no positive number", "repair or remove it")


def _refusal(where: Path, what: str, todo: str) -> ArtefactError:
    return ArtefactError(what, where=str(where), todo=todo)
