"""What each target runs best: precisions, operator set, packing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from compactor.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Target:
    """Where an artefact is to run.

    Attributes:
        name: ``cpu``, ``cuda`` or ``portable``.
        precisions: Those it can be exported in; the first ones up to ``defaults`` are exported unasked.
        defaults: How many of ``precisions`` are the default.
        packs: Whether token packing is on by default.
        refusals: Why a precision known elsewhere is not offered here.
    """

    name: str
    precisions: tuple[str, ...]
    defaults: int
    packs: bool
    refusals: Mapping[str, str] = dataclasses.field(default_factory=dict)


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target(
            "cpu",
            precisions=("fp32", "int8"),
            defaults=2,
            packs=True,
            refusals={"fp16": "ONNX Runtime's CPU provider computes fp16 in fp32, with casts: slower than fp32 itself"},
        ),
        Target(
            "cuda",
            precisions=("fp32", "fp16"),
            defaults=2,
            packs=False,  # finding the real tokens (NonZero) makes the GPU wait for the host
            refusals={"int8": "dynamic int8 falls back to the CPU node by node on CUDA and is 10 to 20 times slower"},
        ),
        Target(
            "portable",
            precisions=("fp32", "int8"),
            defaults=2,
            packs=False,  # shapes that depend on the data cost more than they save in other runtimes
            refusals={"fp16": "not every runtime computes fp16; convert the fp32 graph with the runtime's own tool"},
        ),
    )
}


def find_target(name: str) -> Target:
    """The target called ``name``. Raises UsageError."""
    if name not in TARGETS:
        raise UsageError(f"there is no target '{name}'", todo=f"choose one of: {', '.join(TARGETS)}")
    return TARGETS[name]


def choose_precisions(target: Target, asked: Sequence[str] | None) -> tuple[str, ...]:
    """The precisions to export: what was asked for, and always fp32, which verification and fall-backs need.

    Raises:
        UsageError: The target does not offer one of them; the message says why.
    """
    if asked is None:
        return target.precisions[: target.defaults]
    known = sorted({name for entry in TARGETS.values() for name in entry.precisions})
    for precision in asked:
        if precision not in known:
            raise UsageError(
                f"there is no precision '{precision}'", todo=f"choose from: {', '.join(target.precisions)}"
            )
        if precision not in target.precisions:
            raise UsageError(
                f"the target '{target.name}' does not take {precision}",
                where=target.refusals.get(precision),
                todo=f"choose from: {', '.join(target.precisions)}, or another --target",
            )
    return ("fp32", *dict.fromkeys(name for name in asked if name != "fp32"))
