"""What a model takes: the names of its inputs, the size of its images, and examples to trace it with."""

from __future__ import annotations

import contextlib
import inspect
from pathlib import Path
from typing import Any

import torch

from compactor.companions.image_processor import read_image_processor
from compactor.errors import ModelDirectoryError
from compactor.tasks import Task

_BATCH, _LENGTH = 2, 16
_TEXTS = ("input_ids", "attention_mask", "token_type_ids")
PIXELS = "pixel_values"

Shape = tuple[int, int, int]


def input_names(module: Any, task: Task, where: str) -> tuple[str, ...]:
    """The inputs of a model's graph.

    Raises:
        ModelDirectoryError: The model takes others, so that it cannot be exported for ``task``.
    """
    accepted = inspect.signature(module.forward).parameters
    wanted, other = (PIXELS, "input_ids") if task.image else ("input_ids", PIXELS)
    name = type(module).__name__
    if wanted not in accepted:
        raise ModelDirectoryError(
            f"'{name}' takes no '{wanted}', so it cannot be exported for {task.name}",
            where=where,
            todo="pass --task with the task the model was trained for",
        )
    if other in accepted and hasattr(module.config, "text_config") and hasattr(module.config, "vision_config"):
        raise ModelDirectoryError(
            f"'{name}' takes texts and images together, and a graph takes one of them",
            where=where,
            todo="save the half that you want with a class of its own, and export that",
        )
    if task.image and (further := [each for each in ("pixel_attention_mask", "spatial_shapes") if each in accepted]):
        raise ModelDirectoryError(
            f"'{name}' takes patches of images of any shape ({PIXELS}, {', '.join(further)}), and resizes its "
            "positions for each image, which no graph does",
            where=where,
            todo="use a checkpoint of the family for images of one size (of SigLIP 2 those whose model_type is siglip)",
        )
    if task.image:
        return (PIXELS,)
    if not isinstance(getattr(module.config, "vocab_size", None), int):
        raise ModelDirectoryError(
            f"config.json of this {module.config.model_type} states no 'vocab_size'",
            where=where,
            todo="state how many tokens its table of embeddings holds",
        )
    names = tuple(each for each in _TEXTS[:2] if each in accepted)
    return (*names, _TEXTS[2]) if _TEXTS[2] in accepted and token_types(module.config) > 1 else names


def token_types(config: Any) -> int:
    """How many token types a model tells apart. XLNet has no table of them: it asks whether two are the same."""
    return int(getattr(config, "type_vocab_size", None) or (3 if config.model_type == "xlnet" else 1))


def example_images(shape: Shape) -> dict[str, torch.Tensor]:
    """``pixel_values`` of a batch of two, to trace a model with; ``shape`` is channels, height, width."""
    return {PIXELS: torch.randn(_BATCH, *shape)}


def example_texts(names: tuple[str, ...], vocabulary: int, limit: int | None) -> dict[str, torch.Tensor]:
    """A batch of two to trace a model with, nothing of it padding: (B, S) each.

    Args:
        names: What ``input_names`` says.
        vocabulary: Token ids lie below this.
        limit: Tokens of a text, at most; None where nothing limits them.
    """
    ids = torch.full((_BATCH, min(_LENGTH, limit or _LENGTH)), vocabulary // 2, dtype=torch.long)
    filled = dict(zip(_TEXTS, (ids, torch.ones_like(ids), torch.zeros_like(ids)), strict=True))
    return {name: filled[name] for name in names}


def image_shape(module: Any, home: Path, where: str) -> Shape:
    """Channels, height and width of the images that a model takes.

    What its image processor makes, where the model takes that: a config says how large images were in training, and
    DINOv2 resizes its positions to any other size. Else what the config says.

    Args:
        module: The model, in evaluation mode.
        home: The folder that may hold an image processor.
        where: The model directory, for messages.

    Raises:
        ModelDirectoryError: Neither says.
    """
    try:
        processor = read_image_processor(home)
    except ModelDirectoryError:  # an export refuses it; elsewhere it is not needed
        processor = None
    if processor is not None and _takes(module, processor.size):
        return processor.size
    return _stated_shape(module.config, where)


def _takes(module: Any, shape: Shape) -> bool:
    with torch.no_grad(), contextlib.suppress(Exception):  # what a stock model raises for another size is its own
        module(**{PIXELS: torch.zeros(1, *shape)})
        return True
    return False


def _stated_shape(config: Any, where: str) -> Shape:
    told = config if hasattr(config, "image_size") else getattr(config, "vision_config", config)  # CLIP's, SigLIP's
    size, channels = getattr(told, "image_size", None), getattr(told, "num_channels", 3)
    sizes = [channels, *(size if isinstance(size, list | tuple) else (size, size))]
    if len(sizes) != 3 or not all(isinstance(number, int) and number > 0 for number in sizes):
        raise ModelDirectoryError(
            f"config.json of this {config.model_type} does not say which images it takes: "
            f"'image_size' is {size!r}, 'num_channels' is {channels!r}",
            where=where,
            todo="set 'image_size' to [height, width], or give the folder of a family whose config has it, there or in "
            "'vision_config'",
        )
    return sizes[0], sizes[1], sizes[2]
