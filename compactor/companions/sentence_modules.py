"""The modules of a sentence-transformers folder: checked before anything takes long, and written beside the graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compactor.companions.files import MEND, copy_file, inside, matching, read_json, write_json
from compactor.errors import ModelDirectoryError
from compactor.runtime.activation import activation_of
from compactor.runtime.errors import ArtefactError
from compactor.runtime.folder import MODULES, TRANSFORMER_CONFIGS, read_object
from compactor.runtime.sentences import Prompts, Roles, SentenceSettings, read_chain
from compactor.runtime.sentences.chain import read_modules
from compactor.runtime.sentences.module import WEIGHTS
from compactor.runtime.sentences.settings import CONFIG

if TYPE_CHECKING:
    from compactor.checkpoint import Checkpoint

_SUFFIXES = (".json", ".txt", ".model")
_PICKLED = "pytorch_model.bin"
_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json")


def read_sentences(
    checkpoint: Checkpoint, copy: Path, *, task: str | None, allow_pickle: bool
) -> SentenceSettings | None:
    """What a folder says of itself, after all that is not built has been refused; None without a ``modules.json``.

    Args:
        checkpoint: The checkpoint.
        copy: A folder that is not there yet. Where there are modules, it then holds them and the settings as an
            artefact does: weights in safetensors, in float32.
        task: The task that the user asks for.
        allow_pickle: Also read weights of modules that exist only in pickled form.

    Raises:
        ModelDirectoryError: A module or a setting is damaged or not built, or is for another task.
    """
    source = checkpoint.path
    if not (source / MODULES).is_file():
        return None
    copy.mkdir()
    try:
        _copy_settings(checkpoint, copy)
        copy_modules(source, checkpoint.model_path, copy, allow_pickle=allow_pickle)
        settings = SentenceSettings.read(copy)
        assert settings is not None
        chain = read_chain(copy, settings)
        Roles.read(copy, settings)
        Prompts.read(copy)
        labels = checkpoint.config.get("id2label") or ()
        activation_of(checkpoint.config, read_object(copy / CONFIG), max(len(labels), 1))
    except ArtefactError as error:
        where = None if error.where is None else error.where.replace(str(copy), str(source))
        raise ModelDirectoryError(error.what, where=where or str(source), todo=error.todo) from error
    if "WeightedLayerPooling" in chain.kinds and checkpoint.config.get("output_hidden_states"):
        raise ModelDirectoryError(
            "a WeightedLayerPooling over all layers ('output_hidden_states' is true) is not built",
            where=str(source / MODULES),
            todo="leave the module out; without 'output_hidden_states' it changes nothing",
        )
    if task is not None and task != settings.task:
        raise ModelDirectoryError(
            f"this folder is a {settings.kind} of sentence-transformers, whose task is {settings.task}, not {task}",
            where=str(source / MODULES),
            todo=f"leave --task, or copy the transformer to a folder of its own, without {MODULES}",
        )
    return settings


def sentence_task(folder: Path, home: Path) -> str | None:
    """The task of a sentence-transformers folder; None where it is none.

    Args:
        folder: The folder.
        home: The folder inside of it that holds the transformer.

    Raises:
        ModelDirectoryError: It says something that is not built.
    """
    try:
        settings = SentenceSettings.read(folder, home)
    except ArtefactError as error:
        raise ModelDirectoryError(error.what, where=error.where, todo=error.todo) from error
    return None if settings is None else settings.task


def copy_modules(source: Path, home: Path, directory: Path, *, allow_pickle: bool) -> list[str]:
    """Write ``modules.json`` and the folders it names (pooling, norms, dense layers), less the transformer's.

    Weights become one safetensors file a module, in float32.

    Args:
        source: The model directory.
        home: The folder inside ``source`` that holds the transformer; in ``directory`` that is the root.
        directory: Where the files go.
        allow_pickle: Also read weights that exist only in pickled form.

    Returns:
        The names of the files written, relative to ``directory``.

    Raises:
        ModelDirectoryError: A file is damaged, pickled, or leads out of the model directory.
    """
    read_json(source, MODULES)  # refuses a link that leads out
    try:
        modules = read_modules(source)
    except ArtefactError as error:
        raise ModelDirectoryError(error.what, where=error.where, todo=error.todo or MEND) from error
    transformer = "" if home == source else home.relative_to(source).as_posix()
    for module in modules:
        if module.get("path", "") == transformer:
            module["path"] = ""
    write_json(directory / MODULES, modules)
    names = [MODULES]
    for folder in (str(module.get("path", "")) for module in modules):
        if folder in ("", "."):  # the transformer itself, which lies in the root
            continue
        (directory / folder).mkdir(parents=True, exist_ok=True)  # a normalisation's folder is empty, yet looked for
        names.extend(_copy_module(source, directory, folder, allow_pickle=allow_pickle))
    return names


def _copy_settings(checkpoint: Checkpoint, directory: Path) -> None:
    write_json(directory / "config.json", checkpoint.config)
    for folder in dict.fromkeys((checkpoint.path, checkpoint.model_path)):
        for name in matching(folder, (CONFIG, *TRANSFORMER_CONFIGS, *_TOKENIZER)):
            copy_file(folder, directory, name)


def _copy_module(source: Path, directory: Path, folder: str, *, allow_pickle: bool) -> list[str]:
    if not (source / folder).is_dir():
        return []
    present = sorted(path.name for path in (source / folder).iterdir() if path.is_file())
    names = [f"{folder}/{name}" for name in present if name.endswith(_SUFFIXES)]
    for name in names:
        copy_file(source, directory, name)
    weights = next((name for name in (WEIGHTS, _PICKLED) if name in present), None)
    if weights is not None:
        _convert(source, directory, f"{folder}/{weights}", f"{folder}/{WEIGHTS}", allow_pickle=allow_pickle)
        names.append(f"{folder}/{WEIGHTS}")
    return names


def _convert(source: Path, directory: Path, name: str, as_name: str, *, allow_pickle: bool) -> None:
    """Write a module's weights in float32."""
    import torch
    from safetensors.torch import load_file, save_file

    path = inside(source, name)
    if name.endswith(_PICKLED) and not allow_pickle:
        raise ModelDirectoryError(
            "the weights of this module are pickled, and loading them can run any code",
            where=str(source / name),
            todo="save the model again with safetensors, or pass --allow-pickle if you trust it",
        )
    try:
        tensors: dict[str, Any] = (
            torch.load(path, map_location="cpu", weights_only=True) if name.endswith(_PICKLED) else load_file(path)
        )
        save_file({key: tensor.float().contiguous() for key, tensor in tensors.items()}, directory / as_name)
    except Exception as error:  # torch, pickle and safetensors raise what they like for a damaged file
        line = (str(error).strip().splitlines() or [repr(error)])[0]
        raise ModelDirectoryError(
            f"the weights of this module cannot be read: {line}", where=str(source / name), todo=MEND
        ) from error
