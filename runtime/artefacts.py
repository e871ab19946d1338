"""An artefact folder as one who serves it sees it: task, labels, lengths, and which of its graphs is best here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import ArtefactError
from .folder import read_object
from .machine import MachineInfo, describe_int8, describe_machine
from .providers import not_run_reason
from .tokenizer import read_limit

MANIFEST = "compactor.json"
PRECISIONS: Mapping[str, str] = {"compact": "fp32", "int8": "int8", "fp16": "fp16"}
"""The precision of each stage of the manifest."""

EXACT_INT8 = frozenset({"amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp"})
"""Instruction sets whose int8 products cannot saturate."""
_FAST_INT8 = {"avx2", "avx512f"}  # faster than fp32, and exact where the graph's own sums cannot saturate
_EXPORT = "give a folder that 'compactor export' wrote"


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which graph runs where, and why.

    Attributes:
        precision: ``fp32``, ``int8`` or ``fp16``.
        provider: ``cpu`` or ``cuda``.
        reason: In one sentence.
    """

    precision: str
    provider: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Artefact:
    """What ``compactor export`` wrote.

    Attributes:
        folder: Where it lies.
        task: For example ``text-classification``.
        target: What it was lowered for: ``cpu``, ``cuda`` or ``portable``.
        graphs: The graph of each precision, relative to the folder; of an encoder-decoder its encoder's.
        config: The content of ``config.json``.
        labels: Their names in the order of the logits; empty where the task has none.
        saturates: Whether sums of its int8 products can pass the 16 bits that x86 without VNNI has for them.
        max_tokens: The longest sequence; None where nothing says.
        generates: Whether it is an encoder-decoder.
        prefix: What stands before each text of an encoder-decoder.
    """

    folder: Path
    task: str
    target: str
    graphs: Mapping[str, str]
    config: Mapping[str, Any]
    labels: tuple[str, ...]
    saturates: bool
    max_tokens: int | None
    generates: bool
    prefix: str

    @classmethod
    def open(cls, folder: str | Path) -> Artefact:
        """Read its manifest and configs.

        Raises:
            ArtefactError: There is no artefact there, or it is damaged.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ArtefactError("no such folder", where=str(folder), todo=_EXPORT)
        manifest = read_object(
            folder / MANIFEST, missing=f"there is no {MANIFEST}: no artefact lies there", todo=_EXPORT
        )
        config = read_object(folder / "config.json", missing="there is no config.json", todo=_EXPORT)
        stages = manifest.get("stages")
        stages = stages if isinstance(stages, list) else []
        graphs: dict[str, str] = {}
        saturates = True  # unless every int8 graph says that it cannot
        for stage in (stage for stage in stages if isinstance(stage, dict)):
            precision, file = PRECISIONS.get(str(stage.get("name"))), stage.get("file")
            if precision is not None and isinstance(file, str) and stage.get("graph") in (None, "encoder_model"):
                graphs[precision] = _inside(folder, file)
            if precision == "int8":
                stated = stage.get("int8")
                saturates = not isinstance(stated, dict) or stated.get("saturates") is not False
        if not graphs:
            raise ArtefactError("the manifest names no graph", where=str(folder / MANIFEST), todo=_EXPORT)
        generates = any(isinstance(stage, dict) and stage.get("graph") for stage in stages)
        prefix = config.get("prefix") if generates else None
        return cls(
            folder=folder,
            task=str(manifest.get("task")),
            target=str(manifest.get("target")),
            graphs=graphs,
            config=config,
            labels=_labels(config, folder),
            saturates=saturates,
            max_tokens=read_limit(folder),
            generates=generates,
            prefix=prefix if isinstance(prefix, str) else "",
        )

    def choose(
        self, precision: str | None = None, provider: str | None = None, *, machine: MachineInfo | None = None
    ) -> Choice:
        """The graph to run here.

        A GPU goes before the CPU where the artefact is for one and one can be used. On a CPU int8 goes before fp32
        where it is faster and its products cannot saturate: by the instructions, or by the graph's weights.

        Args:
            precision: Not to be chosen but taken: ``fp32``, ``int8`` or ``fp16``.
            provider: The same: ``cpu`` or ``cuda``.
            machine: This one, unless told otherwise.

        Raises:
            ArtefactError: The artefact has no such precision.
        """
        if precision is not None and precision not in self.graphs:
            raise ArtefactError(
                f"the artefact holds no {precision} graph, only {', '.join(self.graphs)}",
                where=str(self.folder),
                todo=f"export the model again with --precision {precision}, or choose another",
            )
        lacks_gpu = not_run_reason("cuda")
        if provider is None:
            provider = "cuda" if self.target == "cuda" and lacks_gpu is None else "cpu"
        if precision is not None:
            return Choice(precision, provider, "as asked")
        if provider != "cpu":
            precision = "fp16" if "fp16" in self.graphs else "fp32"
            return Choice(precision, provider, f"{precision} on the GPU, for which the artefact was lowered")
        machine = machine or describe_machine()
        int8 = describe_int8(machine)
        exact = EXACT_INT8 if self.saturates else EXACT_INT8 | _FAST_INT8
        if "int8" in self.graphs and set(machine.isa or ()) & exact:
            return Choice("int8", "cpu", f"int8 on this CPU. {int8}")
        if "fp32" not in self.graphs:
            only = next(iter(self.graphs))
            return Choice(only, "cpu", f"{only}, the only one there is")
        if "int8" in self.graphs:
            return Choice("fp32", "cpu", f"fp32, not int8, on this CPU. {int8}")
        because = f": {lacks_gpu.removeprefix('not run: ')}" if self.target == "cuda" and lacks_gpu else ""
        return Choice("fp32", "cpu", f"fp32 on the CPU{because}")


def _labels(config: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    by_id = config.get("id2label")
    if not isinstance(by_id, Mapping):
        return ()
    try:
        named = {int(number): str(name) for number, name in by_id.items()}
    except ValueError as error:
        raise ArtefactError(f"'id2label' is damaged: {error}", where=str(folder / "config.json")) from error
    return tuple(named.get(number, f"LABEL_{number}") for number in range(max(named, default=-1) + 1))


def _inside(folder: Path, file: str) -> str:
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts:
        raise ArtefactError(
            f"the manifest names a file outside of the artefact: {file!r}", where=str(folder / MANIFEST)
        )
    return file
