"""Check an artefact's graphs against the masked checkpoint, run by PyTorch.

The reference is the stock PyTorch model with the zeros in place, so a fault of the importer shows as well as one of a
pass. Graphs run in ONNX Runtime with its own optimizations on and off.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactor.checkpoint import read_checkpoint
from compactor.companions.sentence_modules import copy_modules
from compactor.errors import ModelDirectoryError, VerificationError, describe_failure
from compactor.exporting.graphs import files_of
from compactor.importing.encoder_decoder import PROMPT
from compactor.importing.parts import load_parts
from compactor.importing.sentence_vectors import with_vectors
from compactor.manifest import load_manifest
from compactor.runtime.decoding import CachedDecoder, is_merged
from compactor.runtime.sentences import SentenceSettings
from compactor.runtime.sessions import open_session
from compactor.runtime.verification import Case, Comparison, Tolerance, check, compare, run_case
from compactor.tasks import Task, find_task

EXACT = Tolerance(atol=1e-4, rtol=1e-4)
"""For fp32: float32 rounding over a deep model, and nothing more."""

HALF = Tolerance(atol=2e-2, rtol=2e-2)
"""For fp16: its eleven bits over a deep model."""

Progress = Callable[[str], None]
Outputs = dict[str, NDArray[Any]]


class References:
    """The masked model's outputs on every case, kept on disk: the logits of a large vocabulary fill the memory."""

    def __init__(self, cases: Sequence[Case], run: Callable[[Case], Outputs], folder: Path) -> None:
        self.cases = tuple(cases)
        self._folder = folder
        folder.mkdir(exist_ok=True)
        self._names: tuple[str, ...] = ()
        for number, case in enumerate(self.cases):
            outputs = run(case)
            self._names = tuple(outputs)
            for name, array in outputs.items():
                np.save(self._file(number, name), array)

    def __iter__(self) -> Iterator[tuple[Case, Outputs]]:
        for number, case in enumerate(self.cases):
            yield case, {name: np.load(self._file(number, name), mmap_mode="r") for name in self._names}

    def _file(self, number: int, name: str) -> Path:
        return self._folder / f"{number}.{name}.npy"


@dataclasses.dataclass(frozen=True)
class Files:
    """What is to be checked of a stage.

    Attributes:
        stage: Its name in the manifest.
        paths: The files of its graphs, by name.
        tolerance: What they may differ by; None where it is reported only.
    """

    stage: str
    paths: Mapping[str, Path]
    tolerance: Tolerance | None


def _open(paths: Sequence[Path], *, optimize: bool) -> Callable[[Case], Outputs]:
    """What runs the graphs of a part on a case, with ONNX Runtime's own optimizations or without.

    Of a decoder, which is two graphs or one that is both, the first tokens of a case are decoded at once, the others
    one by one.
    """
    sessions = [open_session(path, optimize=optimize, allow_spinning=False) for path in paths]
    if len(sessions) == 1 and not is_merged(sessions[0]):
        return lambda case: run_case(sessions[0], case)
    decoder = CachedDecoder(*sessions)

    def decode(case: Case) -> Outputs:
        feeds = case.feeds
        tokens, states = feeds["decoder_input_ids"], feeds["encoder_hidden_states"]
        return {"logits": decoder.decode(tokens, states, feeds["encoder_attention_mask"], prompt=PROMPT)}

    return decode


def _compare_all(paths: Sequence[Path], expected: References, *, optimize: bool) -> list[Comparison]:
    """Every case. The sessions are gone when it returns: the next ones need the room."""
    run = _open(paths, optimize=optimize)
    return [comparison for case, outputs in expected for comparison in compare(case, outputs, run(case))]


@contextlib.contextmanager
def onnxruntime_failures(stage: str) -> Iterator[None]:
    """Tell a failure inside of ONNX Runtime as one; any other passes.

    Args:
        stage: The graph that it runs, by its name in the manifest.

    Raises:
        VerificationError: It does not open the graph, or fails in it.
    """
    try:
        yield
    except Exception as error:  # its classes have no base of their own
        if not type(error).__module__.startswith("onnxruntime."):
            raise
        raise VerificationError(
            f"ONNX Runtime fails in the {stage} graph: {describe_failure(error, 'onnxruntime')}",
            todo="nothing was published; please report it with config.json",
        ) from error


def verify_files(task: Task, references: Mapping[str, References], stages: Sequence[Files]) -> dict[str, Any]:
    """Run every graph on every case, with ONNX Runtime's optimizations on and off.

    Args:
        task: What the model is for.
        references: What the masked model gave, by part; see ``importing.parts``.
        stages: Every stage that has files.

    Returns:
        The manifest's ``verification`` block. ``max_abs_diff`` is the fp32 graphs', or where only others are left, as
        in a Triton repository, that of those.

    Raises:
        VerificationError: A graph differs by more than its tolerance, gives a number that is not finite, or cannot be
            run.
    """
    entries: list[dict[str, Any]] = []
    largest: dict[str, float] = {}
    written = files_of(task, stages[0].paths)
    for part, expected in references.items():
        names = [name for name, origin in written.items() if origin.part == part]
        failures: list[tuple[str, Comparison]] = []
        for files, optimize in itertools.product(stages, (True, False)):
            stage, tolerance = files.stage, files.tolerance
            with onnxruntime_failures(stage):
                found = _compare_all([files.paths[name] for name in names], expected, optimize=optimize)
            entries += [{"stage": stage, "optimizations": optimize, **comparison.to_json()} for comparison in found]
            failures += [(stage, comparison) for comparison in found if not math.isfinite(comparison.max_abs_diff)]
            if tolerance is not None:
                failures += [(stage, comparison) for comparison in check(found, tolerance)]
            largest[stage] = max(largest.get(stage, 0.0), *(comparison.max_abs_diff for comparison in found))
        if failures:
            stage, worst = max(failures, key=lambda failure: failure[1].max_abs_diff)
            raise VerificationError(
                f"the {stage} graph differs from the masked model, by up to {worst.max_abs_diff:.3g}",
                where=str(worst),
                todo="nothing was published; if it is int8, loosen --int8-budget, "
                "else please report it with config.json",
            )
    return {
        "passed": True,
        "max_abs_diff": largest["compact"] if "compact" in largest else max(largest.values(), default=0.0),
        "tolerance": {files.stage: files.tolerance.to_json() for files in stages if files.tolerance is not None},
        "cases": entries,
    }


def int8_tolerance(budget: float | None) -> Tolerance | None:
    """int8 differs by rounding; it fails only beyond ``budget``, a share of the largest output magnitude."""
    return None if budget is None else Tolerance(atol=0.0, rtol=budget)


def verify(
    out_dir: str | Path, model_dir: str | Path, *, allow_pickle: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Re-check an artefact against the checkpoint it was made from.

    Args:
        out_dir: The artefact.
        model_dir: The checkpoint.
        allow_pickle: Also read pickled weights.
        progress: Called with a line at each step.

    Returns:
        A new ``verification`` block.

    Raises:
        ModelDirectoryError: One of the folders is damaged.
        VerificationError: A graph differs by more than the manifest's tolerance.
    """
    say = progress or (lambda _: None)
    manifest = load_manifest(out_dir)
    say("reading the checkpoint")
    checkpoint = read_checkpoint(model_dir, allow_pickle=allow_pickle)
    task = find_task(manifest["task"], checkpoint.config, where=str(checkpoint.path))
    stages = _files(Path(out_dir), manifest, task)
    with tempfile.TemporaryDirectory(prefix="compactor-") as folder:
        vectors = None
        if manifest["recipe"].get("embed") and (settings := SentenceSettings.read(Path(out_dir))) is not None:
            modules = Path(folder, ".modules")
            modules.mkdir()
            copy_modules(checkpoint.path, checkpoint.model_path, modules, allow_pickle=allow_pickle)
            vectors = functools.partial(with_vectors, folder=modules, settings=settings)
        parts = load_parts(checkpoint, task, vectors)
        say("running the masked model in PyTorch")
        references = {name: References(part.cases, part.run, Path(folder, name)) for name, part in parts.items()}
        del parts
        say("running the artefact's graphs in ONNX Runtime")
        return verify_files(task, references, stages)


def _files(out_dir: Path, manifest: dict[str, Any], task: Task) -> list[Files]:
    """What the manifest names. Raises ModelDirectoryError where graphs of a stage are missing."""
    stages: dict[str, dict[str, Path]] = {}
    for stage in manifest["stages"]:
        if stage["file"] is not None:
            stages.setdefault(stage["name"], {})[stage.get("graph", "")] = out_dir / stage["file"]
    for name, paths in stages.items():
        for graph in files_of(task, paths).keys() - paths.keys():
            raise ModelDirectoryError(
                f"the manifest names no '{graph}' of the stage '{name}'",
                where=str(out_dir),
                todo="export the model again, with --overwrite",
            )
    stated = manifest["verification"]["tolerance"]
    return [Files(name, paths, Tolerance(**stated[name]) if name in stated else None) for name, paths in stages.items()]
