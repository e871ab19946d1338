"""What is put over a classifier's logits, by what its folder says.

Decided as the checkpoint's own stack decides it: by ``problem_type`` and the number of outputs, as transformers'
text-classification pipeline does; for a CrossEncoder of sentence-transformers by the activation that its folder names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .errors import ArtefactError

# The modules of torch that a CrossEncoder may name, and what they are called here.
_BY_CLASS: Mapping[str, str] = {
    "Identity": "none",
    "Sigmoid": "sigmoid",
    "Softmax": "softmax",
    "Tanh": "tanh",
    "ReLU": "relu",
}
_OURS, _OLD = "sentence_transformers", "sbert_ce_default_activation_function"


def is_cross_encoder(config: Mapping[str, Any], sentences: Mapping[str, Any]) -> bool:
    """Whether a folder is a CrossEncoder of sentence-transformers.

    Args:
        config: The content of ``config.json``.
        sentences: That of ``config_sentence_transformers.json``; empty where there is none.
    """
    ours = config.get(_OURS)
    return (
        sentences.get("model_type") == "CrossEncoder"
        or config.get(_OLD) is not None
        or (isinstance(ours, Mapping) and "activation_fn" in ours)
    )


def activation_of(config: Mapping[str, Any], sentences: Mapping[str, Any], outputs: int) -> str:
    """What is put over the logits: a name of ``none``, ``sigmoid``, ``softmax``, ``tanh``, ``relu``.

    Args:
        config: The content of ``config.json``.
        sentences: That of ``config_sentence_transformers.json``; empty where there is none.
        outputs: How many logits there are.

    Raises:
        ArtefactError: A CrossEncoder names an activation that is not built.
    """
    if is_cross_encoder(config, sentences):
        path = next(_trusted(config, sentences), None)
        if path is None:
            return "sigmoid" if outputs == 1 else "none"
        name = _BY_CLASS.get(path.rpartition(".")[2])
        if name is None:
            raise ArtefactError(
                f"'activation_fn' of this CrossEncoder is {path}, which is not built",
                todo=f"choose one of {', '.join(_BY_CLASS)} of torch.nn.modules",
            )
        return name
    problem = config.get("problem_type")
    if problem == "regression":
        return "none"
    return "sigmoid" if problem == "multi_label_classification" or outputs == 1 else "softmax"


def _trusted(config: Mapping[str, Any], sentences: Mapping[str, Any]) -> Iterator[str]:
    """The activations that are named, first to last, of those that sentence-transformers trusts: torch's own."""
    ours = config.get(_OURS)
    stated = ours if isinstance(ours, Mapping) else {}
    for path in (sentences.get("activation_fn"), stated.get("activation_fn", config.get(_OLD))):
        if isinstance(path, str) and path.startswith("torch."):
            yield path
