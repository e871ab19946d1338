"""What every pass returns and how it reports: rules applied and refusals, each with the layer and the reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar

import onnx_ir as ir


@dataclasses.dataclass(frozen=True)
class Applied:
    """A rule that fired ``count`` times in ``layer``."""

    layer: str
    rule: str
    count: int


@dataclasses.dataclass(frozen=True)
class Refused:
    """A layer that a pass left alone, and why."""

    layer: str
    reason: str


class NoMatch(Exception):
    """A place that a pass leaves alone; the message is the reason shown to the user."""


@dataclasses.dataclass
class RewriteResult(ir.passes.PassResult):
    """A pass result that can be explained.

    Attributes:
        applied: Rules that fired, by layer.
        refused: Layers left alone, with the reason.
    """

    applied: tuple[Applied, ...] = ()
    refused: tuple[Refused, ...] = ()

    @classmethod
    def of(cls, model: ir.Model, applied: Iterable[Applied], refused: Iterable[Refused] = ()) -> RewriteResult:
        """Build a result whose ``modified`` follows from what was applied."""
        fired = tuple(event for event in applied if event.count)
        return cls(model, bool(fired), fired, tuple(refused))


class RewritePass(ir.passes.InPlacePass):
    """Base of all passes: a frozen dataclass whose fields are its options and whose ``name`` is its public name."""

    name: ClassVar[str]

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite ``model`` in place and say what was done."""
        raise TypeError(f"pass developer: '{type(self).__name__}' must define call()")

    def __str__(self) -> str:
        """Its name, and the options that differ from the default."""
        options: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(self) if dataclasses.is_dataclass(self) else ()
        given = {option.name: getattr(self, option.name) for option in options}
        changed = [option.name for option in options if given[option.name] != _default(option)]
        text = ",".join(f"{name.replace('_', '-')}={given[name]}" for name in changed)
        return f"{self.name}{{{text}}}" if text else self.name


def _default(field: dataclasses.Field[Any]) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()
