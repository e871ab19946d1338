"""The files that travel with a model: its config, tokenizer, processors and sentence-transformers modules.

Only files on the lists below are copied, only from inside the model directory, and never one that holds code.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compactor.errors import ModelDirectoryError
from compactor.manifest import MANIFEST_NAME, is_inside_name
from compactor.model_files import MEND, copy_file, matching, read_json, write_json

if TYPE_CHECKING:
    from compactor.source_tokenizer import SourceTokenizer

_OTHER_FILES = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
)
_MODULES = "modules.json"
_MODULE_SUFFIXES = (".json", ".safetensors", ".txt", ".model")


def copy_companions(
    source: Path,
    directory: Path,
    config: dict[str, Any],
    *,
    model_folder: Path | None = None,
    tokenizer: SourceTokenizer | None = None,
    max_tokens: int | None = None,
    allow_pickle: bool = False,
) -> tuple[str, ...]:
    """Fill ``directory`` with all that consumers look for beside the models.

    Args:
        source: The model directory.
        directory: Where the files go.
        config: What ``config.json`` shall hold.
        model_folder: The folder inside ``source`` that holds the transformer, where that is not ``source`` itself (old
            sentence-transformers folders). Its files move to the root, and ``modules.json`` follows.
        tokenizer: The checkpoint's.
        max_tokens: How many tokens the model takes; None where nothing limits them.
        allow_pickle: Also copy the weights of sentence-transformers modules that exist only in pickled form.

    Returns:
        The names of the files written, relative to ``directory``.

    Raises:
        ModelDirectoryError: A file is damaged, or leads out of the model directory.
    """
    write_json(directory / "config.json", config)
    names = ["config.json"]

    home = model_folder or source
    for folder in dict.fromkeys((source, home)):
        for name in matching(folder, _OTHER_FILES):
            copy_file(folder, directory, name)
            names.append(name)
    if not (source / MANIFEST_NAME).is_file():  # an earlier artefact's says all already
        from compactor.image_processors import write_image_processor  # it brings torch

        names.extend(write_image_processor(home, directory))
    if tokenizer is not None:
        names.extend(tokenizer.write(directory, max_tokens=max_tokens, config=config))
    if (source / _MODULES).is_file():
        transformer = "" if home == source else home.relative_to(source).as_posix()
        names.extend(_copy_modules(source, directory, transformer, allow_pickle=allow_pickle))
    return tuple(dict.fromkeys(names))


def _copy_modules(source: Path, directory: Path, transformer: str, *, allow_pickle: bool) -> list[str]:
    """Copy ``modules.json`` and the folders it names (pooling, normalisation, dense layers), less the transformer's."""
    modules = read_json(source, _MODULES)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ModelDirectoryError("expected a list of modules", where=str(source / _MODULES), todo=MEND)
    for module in modules:
        if module.get("path") == transformer:
            module["path"] = ""
    write_json(directory / _MODULES, modules)
    names = [_MODULES]
    for module in modules:
        folder = module.get("path", "")
        if folder == "":  # the transformer itself, which lies in the root
            continue
        if not isinstance(folder, str) or not is_inside_name(folder):
            raise ModelDirectoryError(
                f"module path {folder!r} leads out of the model directory", where=str(source / _MODULES), todo=MEND
            )
        (directory / folder).mkdir(parents=True, exist_ok=True)  # a normalisation's folder is empty, yet looked for
        for name in _module_files(source, folder, allow_pickle=allow_pickle):
            copy_file(source, directory, name)
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
