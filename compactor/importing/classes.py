"""Which class of transformers loads a checkpoint: the one its config names, else the family's own for the task.

``architectures`` goes before the Auto classes where it names a class for the same task, because they know one a
family and task: T5's is the whole encoder-decoder, also for the folder of a ``T5EncoderModel``, and many towers of CLIP
and its kin have none.
"""

from __future__ import annotations

from typing import Any

from compactor.errors import ModelDirectoryError
from compactor.tasks import Task, stands_for

_GENERATORS = ("HeadModel", "HeadsModel")  # they end as classes without a head do


def model_class(task: Task, config: Any, named: str, where: str) -> Any:
    """The class that loads a model for ``task``.

    Args:
        task: What it is for.
        config: Its config, built by transformers.
        named: The class in ``architectures``; empty where there is none.
        where: The model directory, for messages.

    Raises:
        ModelDirectoryError: There is none.
    """
    own = stock_class(named)
    if own is not None and own.config_class is type(config) and _is_for(named, task):
        return own
    import transformers

    mapping = getattr(transformers, task.auto_class)._model_mapping
    if type(config) not in mapping:
        raise ModelDirectoryError(
            f"transformers has no '{config.model_type}' model for {task.name}",
            where=where,
            todo="pass another --task, or name a class of transformers in 'architectures'; an encoder-decoder is "
            "exported for text2text-generation",
        )
    found = mapping[type(config)]
    return found[0] if isinstance(found, tuple) else found


def config_class(model_type: str, named: str) -> Any | None:
    """The config class of a model type; None where transformers has none.

    Args:
        model_type: As ``config.json`` names it.
        named: The class in ``architectures``, whose config is that of a tower which version 4 knows by no type.
    """
    from transformers import CONFIG_MAPPING

    if model_type in CONFIG_MAPPING:
        return CONFIG_MAPPING[model_type]
    own = getattr(stock_class(named), "config_class", None)
    return own if own is not None and own.model_type == model_type else None


def tower_class(task: Task, config: Any, named: str) -> Any | None:
    """The class of one half of a model that compares texts with images: CLIP's, SigLIP's.

    Args:
        task: Feature extraction, of texts or of images, says which half.
        config: The config of the whole.
        named: The class of the whole, such as ``CLIPModel``.

    Returns:
        The class, with its projection where there is one; None for a model that is no such pair.
    """
    if task.auto_class != "AutoModel" or not hasattr(config, "text_config") or not hasattr(config, "vision_config"):
        return None
    half, wanted = ("Vision", config.vision_config) if task.image else ("Text", config.text_config)
    names = [f"{named.removesuffix('Model')}{half}Model{end}" for end in ("WithProjection", "")]
    classes = [found for found in map(stock_class, names) if found is not None]
    return next((found for found in classes if found.config_class is type(wanted)), None)


def stock_class(name: str) -> Any | None:
    """The model class of transformers that is called so; None where there is none, or its libraries are missing."""
    import transformers

    try:
        found = getattr(transformers, name, None) if name.isidentifier() else None
    except Exception:  # whatever the import of a family's module raises
        return None
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


def _is_for(name: str, task: Task) -> bool:
    return stands_for(name, task) and not (task.auto_class == "AutoModel" and name.endswith(_GENERATORS))
