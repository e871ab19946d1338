"""What is asked of an export, checked before anything slow begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from compactor.errors import UsageError
from compactor.exporting.targets import Target, choose_precisions, find_target

_KEEP = 99.5
_OF_COPIES = ("precision", "allow_pickle")  # what also a folder that was exported already can be asked for


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a checkpoint is compiled; None leaves the choice here.

    Attributes:
        task: What the model is exported for, else what the folder says of itself.
        target: Where it shall run, else on a CPU.
        pack: Whether token-wise work shall run on real tokens only, else as the target has it.
        int8: A scale of int8 activations is for a ``token`` or for the whole ``tensor``, else the latter.
        calibrate: A file of texts by which int8 is chosen, layer by layer.
        keep: Percent of fp32's answers that it has to give as well; None takes 99.5 where there is a file.
        int8_budget: What int8 may differ by, as a share of the largest output.
        route: Of a Router of sentence-transformers, which of its chains of modules.
        embed: Whether the modules of a sentence-transformers folder go into the graph.
        decoder: Of an encoder-decoder: ``split`` into a first step and every next one, else ``merged`` into one graph.
        precision: Number formats, else those of the target.
        allow_pickle: Whether pickled weights are read, with ``weights_only``.
    """

    task: str | None = None
    target: str | None = None
    pack: bool | None = None
    int8: str | None = None
    calibrate: Path | None = None
    keep: float | None = None
    int8_budget: float | None = None
    route: str | None = None
    embed: bool = False
    decoder: str | None = None
    precision: Sequence[str] | None = None
    allow_pickle: bool = False

    @property
    def chosen_target(self) -> Target:
        """The target itself. Raises UsageError where there is none of that name."""
        return find_target(self.target or "cpu")

    @property
    def precisions(self) -> tuple[str, ...]:
        """Number formats, fp32 first. Raises UsageError where the target does not take one of them."""
        return choose_precisions(self.chosen_target, self.precision)

    @property
    def int8_scales(self) -> str:
        """What a scale of int8 activations is for: a ``token``, or the whole ``tensor``."""
        return self.int8 or "tensor"

    @property
    def merges(self) -> bool:
        """Whether a decoder's two graphs are written as one, and each file holds its own weights."""
        return self.decoder == "merged"

    @property
    def kept_share(self) -> float | None:
        """Percent of fp32's answers that int8 has to give; None where nobody asks."""
        return _KEEP if self.keep is None and self.calibrate is not None else self.keep

    @property
    def packs(self) -> bool:
        """Whether token-wise work shall run on real tokens only, as far as the model allows it."""
        return self.chosen_target.packs if self.pack is None else self.pack

    def check(self) -> None:
        """Raises UsageError where something cannot be meant."""
        if self.precisions and self.int8_budget is not None and not 0 <= self.int8_budget < 1:
            raise UsageError(
                f"the int8 budget is {self.int8_budget}", todo="give a share of the largest output, from 0 to below 1"
            )

        if self.int8 is not None and "int8" not in self.precisions:
            raise UsageError(f"int8 '{self.int8}' is asked for, and no int8", todo="add int8 to the precisions")
        if self.kept_share is not None and "int8" not in self.precisions:
            raise UsageError("int8 is to keep answers, and there is no int8", todo="add int8 to the precisions")
        if self.keep is not None and not 50 <= self.keep < 100:
            raise UsageError(
                f"int8 cannot promise to keep {self.keep:g} % of the answers",
                todo="ask for a share from 50 to below 100, such as 99.5",
            )
        if self.int8 == "token" and self.chosen_target.name != "cpu":
            raise UsageError(
                f"the target '{self.chosen_target.name}' takes one int8 scale a tensor",
                where="a scale for each token is written in ONNX Runtime's own operators, for its CPU provider",
                todo="take --target cpu, or leave --int8",
            )

    def stated(self) -> list[str]:
        """The options that only a compiler can follow, as far as they were given."""
        fields = (field for field in dataclasses.fields(self) if field.name not in _OF_COPIES)
        return [field.name for field in fields if getattr(self, field.name) != field.default]
