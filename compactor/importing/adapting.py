"""What is changed of some stock models so that the exporter can trace them, without a change of their numbers."""

from __future__ import annotations

from typing import Any


def adapt(module: Any) -> None:
    """Change a stock model where the exporter would stumble.

    * XLNet computes ``1.0 - attention_mask``. PyTorch gives floats for a mask of integers, and its exporter knows no
      such subtraction; of a mask of floats it is the same.
    * Dynamic rotary embeddings ask at each call whether a text is longer than ``max_position_embeddings``, which no
      graph can. No artefact takes such a text, and for the others the frequencies are those of the beginning.
    """
    if module.config.model_type == "xlnet":
        module.register_forward_pre_hook(_float_mask, with_kwargs=True)
    for part in module.modules():
        kinds = getattr(part, "rope_type", None)
        if isinstance(kinds, dict):  # by the kind of layer
            part.rope_type = {layer: _settled(kind) for layer, kind in kinds.items()}
        elif isinstance(kinds, str):
            part.rope_type = _settled(kinds)


def _float_mask(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    mask = kwargs.get("attention_mask")
    return args, kwargs if mask is None else {**kwargs, "attention_mask": mask.to(module.dtype)}


def _settled(kind: str) -> str:
    return "default" if "dynamic" in kind else kind
