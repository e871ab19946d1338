"""A checkpoint's model as the parts that are traced one by one: the whole of it, or an encoder and a decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import onnx_ir as ir

from compactor.checkpoint import Checkpoint
from compactor.importing.encoder import LoadedModel, load_model
from compactor.importing.encoder_decoder import load_encoder_decoder
from compactor.runtime.verification import Case
from compactor.tasks import Task

WHOLE, ENCODER, DECODER = "", "encoder", "decoder"
"""The names of parts, with which the names of their layers begin."""


class Part(Protocol):
    """What is traced at once."""

    @property
    def max_tokens(self) -> int | None:
        """Tokens of a text that the model reads, at most; None where nothing limits them, and for images."""

    @property
    def cases(self) -> list[Case]:
        """The inputs on which its graphs are verified."""

    def run(self, case: Case) -> dict[str, Any]:
        """Its outputs on one of ``cases``, as numpy arrays by name."""

    def trace(self, beside: Sequence[ir.Model] = ()) -> ir.Model:
        """Its graph; those in ``beside`` keep the weights they share with it."""


def load_parts(
    checkpoint: Checkpoint, task: Task, vectors: Callable[[LoadedModel], LoadedModel] | None = None
) -> dict[str, Part]:
    """Build the stock model of a checkpoint. Its tensors move into the model.

    Args:
        checkpoint: What ``read_checkpoint`` returned.
        task: What the model is for.
        vectors: Puts what makes a text's vector behind a model; None leaves it as it is.

    Returns:
        The parts, by name, in the order in which they are traced.

    Raises:
        ModelDirectoryError: The model cannot be built, or is none for the task.
    """
    parts: dict[str, Part]
    if task.generates:
        decoder = load_encoder_decoder(checkpoint, task)
        parts = {ENCODER: decoder.encoder, DECODER: decoder}
    else:
        loaded = load_model(checkpoint, task)
        parts = {WHOLE: loaded if vectors is None else vectors(loaded)}
    checkpoint.tensors.clear()  # the model owns them now
    return parts
