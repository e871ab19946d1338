"""The files that travel with a model: its config, tokenizer, processors and sentence-transformers modules.

Only files on the lists below are copied, only from inside the model directory, and never one that holds code.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, TypeGuard

from compactor.errors import ModelDirectoryError
from compactor.manifest import is_inside_name

TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "bpe.codes",
    "added_tokens.json",
    "special_tokens_map.json",
    "*.model",  # sentencepiece
)
_OTHER_FILES = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
)
_MODULES = "modules.json"
_MODULE_SUFFIXES = (".json", ".safetensors", ".txt", ".model")

_MAX_JSON_BYTES = 16 * 2**20
_MAX_REAL_LENGTH = 10**9  # transformers writes 10**30 for "unknown"
_FALLBACK_LENGTH = 512

# Models whose positions start behind the padding token's index, so that fewer tokens fit than there are positions.
_OFFSET_POSITIONS = {
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "luke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}


def copy_companions(
    source: Path,
    directory: Path,
    config: dict[str, Any],
    *,
    model_folder: Path | None = None,
    allow_pickle: bool = False,
) -> tuple[str, ...]:
    """Fill ``directory`` with all that consumers look for beside the models.

    Args:
        source: The model directory.
        directory: Where the files go.
        config: What ``config.json`` shall hold.
        model_folder: The folder inside ``source`` that holds the transformer, where that is not ``source`` itself (old
            sentence-transformers folders). Its files move to the root, and ``modules.json`` follows.
        allow_pickle: Also copy the weights of sentence-transformers modules that exist only in pickled form.

    Returns:
        The names of the files written, relative to ``directory``.

    Raises:
        ModelDirectoryError: A file is damaged, or leads out of the model directory.
    """
    _write_json(directory / "config.json", config)
    names = ["config.json"]

    home = model_folder or source
    tokenizer = _matching(home, _TOKENIZER_FILES)
    for folder in dict.fromkeys((source, home)):
        for name in (*_matching(folder, _OTHER_FILES), *(tokenizer if folder == home else ())):
            _copy(folder, directory, name)
            names.append(name)
    if tokenizer or (home / TOKENIZER_CONFIG).is_file():
        _write_json(directory / TOKENIZER_CONFIG, _tokenizer_config(home, config))
        names.append(TOKENIZER_CONFIG)
    if (source / _MODULES).is_file():
        transformer = "" if home == source else home.relative_to(source).as_posix()
        names.extend(_copy_modules(source, directory, transformer, allow_pickle=allow_pickle))
    return tuple(dict.fromkeys(names))


def max_tokens(config: dict[str, Any]) -> int | None:
    """How many tokens fit into the model by its config; None where the config does not say."""
    positions = config.get("max_position_embeddings")
    if not _is_length(positions):
        return None
    if config.get("model_type") not in _OFFSET_POSITIONS:
        return int(positions)
    padding = config.get("pad_token_id")
    return max(1, int(positions) - (padding if isinstance(padding, int) else 1) - 1)


def _tokenizer_config(source: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer's config with a real length limit and without pointers to remote code.

    Without a real ``model_max_length`` a consumer does not truncate, and the model fails on a long text.
    """
    path = source / TOKENIZER_CONFIG
    content = _read_object(source, TOKENIZER_CONFIG) if path.is_file() else {}
    content.pop("auto_map", None)
    limit = content.get("model_max_length")
    content["model_max_length"] = int(limit) if _is_length(limit) else max_tokens(config) or _FALLBACK_LENGTH
    return content


def _is_length(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 1 <= value <= _MAX_REAL_LENGTH


def _copy_modules(source: Path, directory: Path, transformer: str, *, allow_pickle: bool) -> list[str]:
    """Copy ``modules.json`` and the folders it names (pooling, normalisation, dense layers), less the transformer's."""
    modules = _read_json(source, _MODULES)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ModelDirectoryError("expected a list of modules", where=str(source / _MODULES), todo=_MEND)
    for module in modules:
        if module.get("path") == transformer:
            module["path"] = ""
    _write_json(directory / _MODULES, modules)
    names = [_MODULES]
    for module in modules:
        folder = module.get("path", "")
        if folder == "":  # the transformer itself, which lies in the root
            continue
        if not isinstance(folder, str) or not is_inside_name(folder):
            raise ModelDirectoryError(
                f"module path {folder!r} leads out of the model directory", where=str(source / _MODULES), todo=_MEND
            )
        (directory / folder).mkdir(parents=True, exist_ok=True)  # a normalisation's folder is empty, yet looked for
        for name in _module_files(source, folder, allow_pickle=allow_pickle):
            _copy(source, directory, name)
            names.append(name)
    return names


def _module_files(source: Path, folder: str, *, allow_pickle: bool) -> list[str]:
    if not (source / folder).is_dir():
        return []
    present = sorted(path.name for path in (source / folder).iterdir() if path.is_file())
    chosen = [name for name in present if name.endswith(_MODULE_SUFFIXES)]
    has_weights = any(name.endswith(".safetensors") for name in chosen)
    if "pytorch_model.bin" in present and not has_weights:
        if not allow_pickle:
            raise ModelDirectoryError(
                "the weights of this module are pickled, and loading them can run any code",
                where=str(source / folder / "pytorch_model.bin"),
                todo="save the model again with safetensors, or pass --allow-pickle if you trust it",
            )
        chosen.append("pytorch_model.bin")
    return [f"{folder}/{name}" for name in chosen]


def _matching(source: Path, patterns: tuple[str, ...]) -> list[str]:
    return [path.name for pattern in patterns for path in sorted(source.glob(pattern)) if path.is_file()]


def _copy(source: Path, directory: Path, name: str) -> None:
    target = directory / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_inside(source, name), target)


def _inside(source: Path, name: str) -> Path:
    """The real path of ``name``, which may be a link, but only to a file that belongs to the model.

    A model cache keeps a snapshot's files as links to ``../../blobs``; a link to anywhere else could carry a
    private file of this machine into a folder that is meant to be shared.
    """
    root = source.resolve()
    roots = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    path = (source / name).resolve()
    if not any(allowed in path.parents for allowed in roots):
        raise ModelDirectoryError(
            f"'{name}' is a link that leads out of the model directory",
            where=str(source / name),
            todo="put the file itself in its place",
        )
    return path


_MEND = "repair or remove this file"


def _read_json(source: Path, name: str) -> Any:
    path = _inside(source, name)
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ModelDirectoryError(f"larger than {_MAX_JSON_BYTES >> 20} MiB", where=str(source / name), todo=_MEND)
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelDirectoryError(f"not JSON: {error}", where=str(source / name), todo=_MEND) from error


def _read_object(source: Path, name: str) -> dict[str, Any]:
    content = _read_json(source, name)
    if not isinstance(content, dict):
        raise ModelDirectoryError("expected a JSON object", where=str(source / name), todo=_MEND)
    return content


def _write_json(path: Path, content: dict[str, Any] | list[Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
