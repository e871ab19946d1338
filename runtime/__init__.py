"""Run graphs: answer texts and images with an artefact, and what that takes.

    model = compactor.runtime.load("OUT_DIR")
    model(["a gripping film", "what a bore"])

======================  ==========================================================================
``model``               ``load``: an artefact as a function of texts
``artefacts``           what a folder holds, and which of its graphs is best here
``encoding``            texts to padded token ids
``images``              images to batches of pixels
``sentences``           what comes behind the graph in a folder of sentence-transformers
``reading``             outputs to the records of ``answers``
``machine``             instructions, cores, container quota and memory of this machine
``threads``             how many threads to use here, and why
``providers``           execution providers: which can run, what to install for the rest
``sessions``            open a graph in ONNX Runtime
``executed_graph``      operators in a file, and in the graph that ONNX Runtime makes of it
``verification``        hard inputs, and a comparison of two graphs' outputs on them
``errors``              what a user can mend
======================  ==========================================================================

Nothing here imports the rest of ``compactor``. All but ``load`` and ``Model`` are imported by their module's name, and
these load on use, so that describing the machine loads neither numpy nor ONNX Runtime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model import Model, load

__all__ = ["Model", "load"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from . import model

        return getattr(model, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
