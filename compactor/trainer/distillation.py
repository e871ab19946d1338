"""What the student loses against its teacher: the divergence of its softened answers.

    L = α_ce CE + α_teacher T² KL(softmax(teacher / T) || softmax(student / T))

Of a text's label that is one distribution, of a question two over the tokens (start and end), of a written text one
over the vocabulary for each token. Reference: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network",
2015; Lagunas et al. (2021), Section 4.
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
