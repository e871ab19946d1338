"""What the student loses against its teacher: the divergence of its softened answers, and the distance of its states.

    L = α_ce CE + α_teacher T² KL(softmax(teacher / T) || softmax(student / T)) + α_hidden mean (h_student - h_teacher)²

Of a text's label that is one distribution, of a question two over the tokens (start and end), of a written text one
over the vocabulary for each token. The last term is a mean over layers, tokens that are no padding, and channels.
Reference: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015; Lagunas et al. (2021),
Section 4; of the states, Kurtić, Frantar and Alistarh (2023), Section 3.3, "layer-wise token distillation".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from compactor.errors import UsageError

IGNORED = -100  # a label of a token that is not scored


def divergence(
    student: Mapping[str, Any], teacher: Mapping[str, Any], inputs: Mapping[str, Tensor], temperature: float
) -> Tensor:
    """T² KL of the student's answers from the teacher's, a mean over what is answered.

    Args:
        student: A model's outputs: ``logits`` (B, C) or (B, S, V), or ``start_logits`` and ``end_logits`` (B, S).
        teacher: The same of the teacher.
        inputs: What both were given: padding is left out, and tokens whose label is -100.
        temperature: T.

    Raises:
        UsageError: The two have answers of different shape.
    """
    if "start_logits" in student:
        mask = inputs["attention_mask"].bool()
        parts = [
            _kl(_hide(student[name], mask), _hide(teacher[name], mask), temperature)
            for name in ("start_logits", "end_logits")
        ]
        return (parts[0] + parts[1]) / 2
    ours, theirs = student["logits"], teacher["logits"]
    if ours.shape != theirs.shape:
        raise UsageError(
            f"the teacher's answers have another shape: {tuple(theirs.shape)}, not {tuple(ours.shape)}",
            todo="give a teacher of the same task, labels and vocabulary",
        )
    if ours.ndim == 3:
        kept = inputs["labels"] != IGNORED
        ours, theirs = ours[kept], theirs[kept]
    return _kl(ours, theirs, temperature)


def token_distance(student: Mapping[str, Any], teacher: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> Tensor:
    """The mean square by which the student's states differ from the teacher's, after each layer.

    Args:
        student: A model's outputs with ``hidden_states``, a (B, S, D) of the embedding and one of each layer; of an
            encoder-decoder, ``encoder_hidden_states`` and ``decoder_hidden_states`` (B, T, D).
        teacher: The same of the teacher.
        inputs: What both were given: padding is left out, and in a decoder tokens whose label is -100.

    Raises:
        UsageError: The two have states of different shape or number, or give none.
    """
    parts = []
    for name in ("hidden_states", "encoder_hidden_states", "decoder_hidden_states"):
        ours, theirs = student.get(name), teacher.get(name)
        if ours is None or theirs is None:
            continue
        if [state.shape for state in ours] != [state.shape for state in theirs]:
            raise UsageError(
                f"the teacher has {len(theirs) - 1} layers of {theirs[-1].shape[-1]} channels, "
                f"the model {len(ours) - 1} of {ours[-1].shape[-1]}: their states cannot be compared",
                todo="leave out alpha_hidden, or give a teacher of the model's own shape",
            )
        kept = inputs["labels"] != IGNORED if name.startswith("decoder") else inputs.get("attention_mask")
        for own, right in zip(ours[1:], theirs[1:], strict=True):
            apart = (own.float() - right.float()).square().flatten(2).mean(-1)  # (B, S); of images S may be two axes
            if kept is not None and kept.shape == apart.shape:
                apart = apart[kept.bool()]
            parts.append(apart.mean())
    if not parts:
        raise UsageError("model or teacher gives no states of its layers", todo="leave out alpha_hidden")
    return torch.stack(parts).mean()


def _kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    found = kl_div(
        log_softmax(student.float() / temperature, dim=-1),
        log_softmax(teacher.float() / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )
    return found * temperature**2


def _hide(logits: Tensor, mask: Tensor) -> Tensor:
    """Padding with no share of the distribution; finite, so that zero times it is zero."""
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min / 4)
