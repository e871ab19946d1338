"""Check an artefact's graphs against the masked checkpoint, run by PyTorch.

The reference is the stock PyTorch model with the zeros in place, so a fault of the importer shows as well as one of a
pass. Graphs run in ONNX Runtime with its own optimizations on and off.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compactor.errors import ModelDirectoryError, VerificationError
from compactor.runtime.decoding import ENCODER, FIRST, NEXT, CachedDecoder
from compactor.runtime.sessions import open_session
from compactor.runtime.verification import Case, Comparison, Tolerance, check, compare, run_case

if TYPE_CHECKING:
    from compactor.checkpoint import Checkpoint
    from compactor.tasks import Task

EXACT = Tolerance(atol=1e-4, rtol=1e-4)
"""For fp32: float32 rounding over a deep model, and nothing more."""

HALF = Tolerance(atol=2e-2, rtol=2e-2)
"""For fp16: its eleven bits over a deep model."""

_REFERENCE = "running the masked model in PyTorch"
_GRAPHS = "running the artefact's graphs in ONNX Runtime"

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
class Candidate:
    """A graph to check: the name of its stage, its file, and what it may differ by (None: reported only)."""

    stage: str
    path: Path
    tolerance: Tolerance | None

    def open(self, *, optimize: bool) -> Callable[[Case], Outputs]:
        """What runs it on a case, with ONNX Runtime's own optimizations or without."""
        session = open_session(self.path, optimize=optimize, allow_spinning=False)
        return lambda case: run_case(session, case)


@dataclasses.dataclass(frozen=True)
class DecoderCandidate(Candidate):
    """A decoder's two graphs: ``path`` is the first step's, ``following`` that of every next one."""

    following: Path

    def open(self, *, optimize: bool) -> Callable[[Case], Outputs]:
        """What decodes the tokens of a case, the first ones at once and the others one by one."""
        from compactor.importing.encoder_decoder import PROMPT

        sessions = [open_session(path, optimize=optimize, allow_spinning=False) for path in (self.path, self.following)]
        decoder = CachedDecoder(*sessions)

        def run(case: Case) -> Outputs:
            feeds = case.feeds
            tokens, states = feeds["decoder_input_ids"], feeds["encoder_hidden_states"]
            return {"logits": decoder.decode(tokens, states, feeds["encoder_attention_mask"], prompt=PROMPT)}

        return run


def verify_candidates(references: References, candidates: Iterable[Candidate]) -> dict[str, Any]:
    """Run every candidate on every case, with ONNX Runtime's optimizations on and off.

    Returns:
        The manifest's ``verification`` block. ``max_abs_diff`` is the fp32 graph's, or where only another
        is left, as in a Triton repository, that one's.

    Raises:
        VerificationError: A candidate differs by more than its tolerance, or gives a number that is not finite.
    """
    entries: list[dict[str, Any]] = []
    failures: list[tuple[str, Comparison]] = []
    largest: dict[str, float] = {}
    tolerances = {}
    for candidate in candidates:
        if candidate.tolerance is not None:
            tolerances[candidate.stage] = candidate.tolerance.to_json()
        for optimize in (True, False):
            run = candidate.open(optimize=optimize)
            comparisons = [entry for case, expected in references for entry in compare(case, expected, run(case))]
            for comparison in comparisons:
                entries.append({"stage": candidate.stage, "optimizations": optimize, **comparison.to_json()})
            failures += [(candidate.stage, entry) for entry in comparisons if not math.isfinite(entry.max_abs_diff)]
            if candidate.tolerance is not None:
                failures += [(candidate.stage, comparison) for comparison in check(comparisons, candidate.tolerance)]
            differences = (comparison.max_abs_diff for comparison in comparisons)
            largest[candidate.stage] = max(largest.get(candidate.stage, 0.0), *differences)
    if failures:
        stage, worst = max(failures, key=lambda failure: failure[1].max_abs_diff)
        raise VerificationError(
            f"the {stage} graph differs from the masked model, by up to {worst.max_abs_diff:.3g}",
            where=str(worst),
            todo="nothing was published; if it is int8, loosen --int8-budget, else please report it with config.json",
        )
    shown = largest["compact"] if "compact" in largest else max(largest.values(), default=0.0)
    return {"passed": True, "max_abs_diff": shown, "tolerance": tolerances, "cases": entries}


@dataclasses.dataclass(frozen=True)
class EncoderDecoderFiles:
    """One stage of an encoder-decoder: the files of its graphs, by name, and what they may differ by."""

    stage: str
    paths: Mapping[str, Path]
    tolerance: Tolerance | None


def verify_encoder_decoder(
    encoder: References, decoder: References, stages: Sequence[EncoderDecoderFiles]
) -> dict[str, Any]:
    """``verify_candidates`` for three graphs: the encoder's, and the decoder's two, one after the other.

    Args:
        encoder: What the masked encoder gave.
        decoder: What the masked decoder gave for that.
        stages: Every stage that has files.
    """
    halves = [
        verify_candidates(encoder, [Candidate(each.stage, each.paths[ENCODER], each.tolerance) for each in stages]),
        verify_candidates(
            decoder,
            [DecoderCandidate(each.stage, each.paths[FIRST], each.tolerance, each.paths[NEXT]) for each in stages],
        ),
    ]
    return {
        "passed": all(half["passed"] for half in halves),
        "max_abs_diff": max(half["max_abs_diff"] for half in halves),
        "tolerance": halves[0]["tolerance"],
        "cases": [case for half in halves for case in half["cases"]],
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
    from compactor.checkpoint import read_checkpoint
    from compactor.companions.sentence_modules import copy_modules
    from compactor.manifest import load_manifest
    from compactor.tasks import find_task

    say = progress or (lambda _: None)
    manifest = load_manifest(out_dir)
    say("reading the checkpoint")
    checkpoint = read_checkpoint(model_dir, allow_pickle=allow_pickle)
    task = find_task(manifest["task"], checkpoint.config, where=str(checkpoint.path))
    check_again = _verify_encoder_decoder if task.generates else _verify_encoder
    with tempfile.TemporaryDirectory(prefix="compactor-") as folder:
        if manifest["recipe"].get("embed"):
            copy_modules(checkpoint.path, checkpoint.model_path, Path(folder), allow_pickle=allow_pickle)
        return check_again(Path(out_dir), manifest, checkpoint, task, Path(folder), say)


def _verify_encoder(
    out_dir: Path, manifest: dict[str, Any], checkpoint: Checkpoint, task: Task, scratch: Path, say: Progress
) -> dict[str, Any]:
    from compactor.importing.encoder import load_model
    from compactor.importing.sentence_vectors import with_vectors
    from compactor.runtime.sentences import SentenceSettings

    loaded = load_model(checkpoint, task.name)
    settings = SentenceSettings.read(out_dir) if manifest["recipe"].get("embed") else None
    if settings is not None:
        loaded = with_vectors(loaded, scratch, settings)
    say(_REFERENCE)
    references = References(loaded.cases, loaded.run, scratch)
    del loaded
    say(_GRAPHS)
    candidates = [
        Candidate(stage["name"], out_dir / stage["file"], _tolerance(manifest, stage["name"]))
        for stage in manifest["stages"]
        if stage["file"] is not None
    ]
    return verify_candidates(references, candidates)


def _verify_encoder_decoder(
    out_dir: Path, manifest: dict[str, Any], checkpoint: Checkpoint, task: Task, scratch: Path, say: Progress
) -> dict[str, Any]:
    from compactor.importing.encoder_decoder import load_encoder_decoder

    files: dict[str, dict[str, Path]] = {}
    for stage in manifest["stages"]:
        if stage["file"] is not None:
            files.setdefault(stage["name"], {})[stage.get("graph", "")] = out_dir / stage["file"]
    for stage, paths in files.items():
        for graph in (ENCODER, FIRST, NEXT):
            if graph not in paths:
                raise ModelDirectoryError(
                    f"the manifest names no '{graph}' of the stage '{stage}'",
                    where=str(out_dir),
                    todo="export the model again, with --overwrite",
                )
    loaded = load_encoder_decoder(checkpoint, task)
    say(_REFERENCE)
    encoder = References(loaded.encoder.cases, loaded.encoder.run, scratch / "encoder")
    decoder = References(loaded.cases, loaded.run, scratch / "decoder")
    del loaded
    say(_GRAPHS)
    stages = [EncoderDecoderFiles(stage, paths, _tolerance(manifest, stage)) for stage, paths in files.items()]
    return verify_encoder_decoder(encoder, decoder, stages)


def _tolerance(manifest: dict[str, Any], stage: str) -> Tolerance | None:
    stated = manifest["verification"]["tolerance"].get(stage)
    return None if stated is None else Tolerance(**stated)
