"""What lies behind one TARGET on disk: an artefact, a graph, a model directory, each read and checked."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compactor.benching.graphs import GraphFacts, read_graph
from compactor.companions.sentence_modules import sentence_task
from compactor.errors import ModelDirectoryError, UsageError
from compactor.manifest import MANIFEST_NAME, artefact_file_problems, load_manifest
from compactor.runtime.decoding import ENCODER
from compactor.tasks import GENERATION, IMAGE_FEATURES, TASKS, find_task


@dataclasses.dataclass(frozen=True)
class Model:
    """One graph or model directory, before providers are chosen.

    Attributes:
        path: The file or folder.
        label: Its name in tables, without the provider.
        precision: As in ``Variant``.
        graph: What the graph says, of an encoder-decoder the encoder's; None for a model directory.
    """

    path: Path
    label: str
    precision: str
    graph: GraphFacts | None


@dataclasses.dataclass(frozen=True)
class Target:
    """One TARGET, read.

    Attributes:
        given: As the user gave it.
        models: What is in it.
        task: What it is for; None where that is unknown.
        config: Its ``config.json``; None where there is none.
        home: Where config and tokenizer are looked for.
        manifest: Of an artefact.
    """

    given: Path
    models: Sequence[Model]
    task: str | None
    config: Mapping[str, Any] | None
    home: Path
    manifest: Mapping[str, Any] | None = None

    @property
    def is_image(self) -> bool:
        """Whether its models look at pixels."""
        graph = self.models[0].graph
        if graph is not None:
            return graph.is_image
        task = TASKS.get(self.task or "")
        return task is not None and task.image

    @property
    def generates(self) -> bool:
        """Whether it writes text, by three graphs or in PyTorch; a graph alone does not."""
        return self.task == GENERATION and not self.given.is_file()


def read_target(path: Path, label: str) -> Target:
    """Read a TARGET.

    Args:
        path: As the user gave it.
        label: Its name in tables.

    Raises:
        ModelDirectoryError: It is missing, damaged, or nothing that can be measured.
    """
    if not path.exists():
        raise ModelDirectoryError(
            "no such file or folder",
            where=str(path),
            todo="give an artefact, an .onnx file or a model directory; nothing is downloaded",
        )
    if path.is_file():
        return _read_file(path, label)
    if not any(path.iterdir()):
        raise ModelDirectoryError("the folder is empty", where=str(path), todo="give an artefact or a model directory")
    if (path / MANIFEST_NAME).is_file():
        return _read_artefact(path, label)
    if (path / "config.json").is_file() or (path / "modules.json").is_file():
        return _read_model_directory(path, label)
    raise ModelDirectoryError(
        f"this is no artefact and no model directory: neither {MANIFEST_NAME} nor config.json is in it",
        where=str(path),
        todo=_name_a_graph(path),
    )


def _read_file(path: Path, label: str) -> Target:
    if path.suffix != ".onnx":
        raise ModelDirectoryError(
            "this is not an .onnx file", where=str(path), todo="give an artefact, an .onnx file or a model directory"
        )
    graph = read_graph(path)
    home = next((folder for folder in (path.parent, path.parent.parent) if (folder / "config.json").is_file()), None)
    config = None if home is None else _read_config(home)
    models = [Model(path, label, graph.precision, graph)]
    return Target(path, models, _task_of_graph(graph, config), config, home or path.parent)


def _read_artefact(path: Path, label: str) -> Target:
    manifest = load_manifest(path)
    problems = artefact_file_problems(manifest, path)
    if problems:
        raise ModelDirectoryError(
            f"the artefact was changed: {problems[0]}",
            where=str(path),
            todo="export the model again; or give the .onnx file itself, to measure it as it is",
        )
    models = []
    for stage in manifest["stages"]:
        # Of an encoder-decoder the encoder stands for all three: the decoder's inputs are made while it runs.
        if stage["file"] is not None and stage.get("graph", ENCODER) == ENCODER:
            precision = "fp32" if stage["name"] in ("masked", "compact") else stage["name"]
            file = path / stage["file"]
            place = path if "graph" in stage else file
            models.append(Model(place, f"{label} {precision}", precision, read_graph(file)))
    if not models:
        raise ModelDirectoryError("the artefact names no graph", where=str(path / MANIFEST_NAME))
    return Target(path, models, manifest["task"], _read_config(path), path, manifest)


def _read_model_directory(path: Path, label: str) -> Target:
    """A Hugging Face model directory, by its config and the headers of its weights."""
    if importlib.util.find_spec("torch") is None:
        raise UsageError(
            "a model directory runs in PyTorch, which is not installed",
            where=str(path),
            todo="pip install 'compactor[export]', or measure artefacts and graphs alone",
        )
    from compactor.checkpoint.config import check_config, read_json_object
    from compactor.checkpoint.folder import find_model_folder
    from compactor.checkpoint.weights import open_weights

    folder = find_model_folder(path)
    if not any(folder.glob("*.safetensors")):
        if any(folder.glob("pytorch_model*.bin")):
            raise ModelDirectoryError(
                "the weights are pickled, and a pickle can run code",
                where=str(folder),
                todo="save the model as safetensors",
            )
        if (todo := _name_a_graph(path)) is not None:  # as optimum exports it
            raise ModelDirectoryError("the folder holds graphs, and no weights for PyTorch", where=str(path), todo=todo)
    where = str(folder / "config.json")
    config = read_json_object(folder / "config.json")
    check_config(config, where)
    open_weights(folder)
    try:
        task = find_task(sentence_task(path, folder), config, where=where)
    except ModelDirectoryError as error:
        todo = "name the model's class in 'architectures', as save_pretrained does"
        raise ModelDirectoryError(error.what, where=where, todo=todo) from error
    return Target(path, [Model(path, f"{label}, PyTorch", "fp32", None)], task.name, config, folder)


def search_settings(target: Target) -> dict[str, Any] | None:
    """What ``generation_config.json`` of an encoder-decoder says; None where there is none."""
    return _read_config(target.home, "generation_config.json") if target.generates else None


def _name_a_graph(folder: Path) -> str | None:
    """What to do about a folder that is no target but holds graphs; None where it holds none."""
    graphs = sorted(folder.rglob("*.onnx"))
    return f"give one of its graphs, such as {graphs[0]}" if graphs else None


def _read_config(folder: Path, name: str = "config.json") -> dict[str, Any] | None:
    """None where there is no such file."""
    path = folder / name
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelDirectoryError(f"{name} is not JSON: {error}", where=str(path)) from error
    if not isinstance(config, dict):
        raise ModelDirectoryError(f"{name} holds no object", where=str(path))
    return config


def _task_of_graph(graph: GraphFacts, config: Mapping[str, Any] | None) -> str | None:
    """What a graph is for by its outputs; where those leave it open, by the config."""
    outputs = graph.outputs
    if {"start_logits", "end_logits"} <= outputs.keys():
        return "question-answering"
    if graph.is_image and "last_hidden_state" in outputs:
        return IMAGE_FEATURES
    if "logits" in outputs and graph.is_image:
        return "image-classification"
    if "logits" in outputs and len(outputs["logits"]) == 2:
        return "text-classification"
    if "last_hidden_state" in outputs:
        return "feature-extraction"
    try:
        return find_task(None, config or {}, where="").name
    except ModelDirectoryError:
        return None
