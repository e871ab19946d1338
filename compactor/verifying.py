"""Check an artefact's graphs against the masked checkpoint, run by PyTorch.

The reference is the stock PyTorch model with the zeros in place, so a fault of the importer shows as well as one of a
pass. Graphs run in ONNX Runtime with its own optimizations on and off.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactor.errors import VerificationError
from compactor.runtime.decoding import CachedDecoder
from compactor.runtime.sessions import open_session
from compactor.runtime.verification import Case, Comparison, Tolerance, check, compare, run_case

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
        from compactor.encoder_decoder import PROMPT

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
        The manifest's ``verification`` block. ``max_abs_diff`` is the fp32 graph's.

    Raises:
        VerificationError: A candidate differs by more than its tolerance, or gives a number that is not finite.
    """
    entries: list[dict[str, Any]] = []
    failures: list[tuple[str, Comparison]] = []
    exact = 0.0
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
            if candidate.stage == "compact":
                exact = max(exact, *(comparison.max_abs_diff for comparison in comparisons))
    if failures:
        stage, worst = max(failures, key=lambda failure: failure[1].max_abs_diff)
        raise VerificationError(
            f"the {stage} graph differs from the masked model, by up to {worst.max_abs_diff:.3g}",
            where=str(worst),
            todo="nothing was published; if it is int8, loosen --int8-budget, else please report it with config.json",
        )
    return {"passed": True, "max_abs_diff": exact, "tolerance": tolerances, "cases": entries}


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
    from compactor.importer import load_model
    from compactor.manifest import load_manifest

    say = progress or (lambda _: None)
    manifest = load_manifest(out_dir)
    tolerances = manifest["verification"]["tolerance"]
    say("reading the checkpoint")
    loaded = load_model(read_checkpoint(model_dir, allow_pickle=allow_pickle), manifest["task"])
    with tempfile.TemporaryDirectory(prefix="compactor-") as folder:
        say("running the masked model in PyTorch")
        references = References(loaded.cases, loaded.run, Path(folder))
        del loaded
        say("running the artefact's graphs in ONNX Runtime")
        candidates = [
            Candidate(
                stage["name"],
                Path(out_dir) / stage["file"],
                Tolerance(**tolerances[stage["name"]]) if stage["name"] in tolerances else None,
            )
            for stage in manifest["stages"]
            if stage["file"] is not None
        ]
        return verify_candidates(references, candidates)
