"""Where a benchmark's models are built: each thing once, in a process of its own, and kept for later runs.

A folder for each entry of the paper, and in it the checkpoint and every graph made from it:

    WORK/squadv1-hybrid-filled-87.709/checkpoint, ours/, portable/, compact.onnx, …
    WORK/dense-768/checkpoint, plain.onnx, …

What is there is taken as it is. Each thing is built beside its place and renamed, so an interrupted build leaves
nothing that looks finished.
"""

from __future__ import annotations

import abc
import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import _graphs, plant
from compactor.benching.plan import Case

PLAIN_OPSET = 23  # with Attention: the faster baseline
CALIBRATION = 32  # batches of 1 x 128 for static quantization

Outputs = list[dict[str, NDArray[Any]]]  # of each batch of a case
Say = Callable[[str], None]


class Workshop(abc.ABC):
    """One model, and what is made of it."""

    @property
    @abc.abstractmethod
    def folder(self) -> Path:
        """Where everything of this model goes."""

    @abc.abstractmethod
    def checkpoint(self) -> Path:
        """The model with its zeros: a Hugging Face folder."""

    @abc.abstractmethod
    def check_sizes(self, manifest: Mapping[str, Any]) -> None:
        """Assert that an artefact kept what it should, where that is known."""

    def once(self, name: str, build: Callable[[Path], object]) -> Path:
        """The path of ``name``, built unless an earlier run did."""
        path = self.folder / name
        if not path.exists():
            say(f"building {self.folder.name}/{name}")
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"partial-{name}")
            shutil.rmtree(partial, ignore_errors=True)
            build(partial)
            weights = partial.with_suffix(".bin")  # OpenVINO's
            if weights.exists():
                weights.rename(path.with_suffix(".bin"))
            partial.rename(path)
        return path

    def ours(self, target: str = "cpu", **options: Any) -> Path:
        """The folder of our artefact's graphs, with the kept sizes checked."""
        name = "-".join(["ours", target, *(f"{name}-{value}" for name, value in options.items())])

        def build(path: Path) -> None:
            checkpoint = self.checkpoint()
            manifest = _graphs.in_fresh_process(_graphs.export_ours, checkpoint, path, {"target": target, **options})
            self.check_sizes(manifest)

        return self.once(name, build) / "onnx"

    def plain(self, opset: int = PLAIN_OPSET) -> Path:
        """What ``torch.onnx.export`` writes of the checkpoint, zeros and all."""
        return self.once(
            f"plain-{opset}.onnx",
            lambda path: _graphs.in_fresh_process(_graphs.export_plain, self.checkpoint(), path, opset=opset),
        )

    def portable(self) -> Path:
        """Our compact fp32 for other runtimes: attention spelled out, nothing packed."""

        def build(path: Path) -> None:
            options = {"target": "portable", "precision": ("fp32",)}
            _graphs.in_fresh_process(_graphs.export_ours, self.checkpoint(), path, options)

        return self.once("portable", build) / "onnx" / "model.onnx"

    def compact(self) -> Path:
        """Our compact fp32 with ``Attention``, before any lowering."""
        return self.once(
            "compact.onnx", lambda path: _graphs.in_fresh_process(_graphs.export_compact, self.checkpoint(), path)
        )

    def quantized(self, source: Path) -> Path:
        """``source`` through ``quantize_dynamic``."""
        return self.once(
            f"{self._stem(source)}-int8.onnx",
            lambda path: _graphs.in_fresh_process(_graphs.quantize, source, path),
        )

    def fused(self, source: Path) -> Path:
        """``source`` through ``optimize_model``."""

        def build(path: Path) -> None:
            say(f"fused: {_graphs.in_fresh_process(_graphs.fuse, source, path)}")

        return self.once(f"{self._stem(source)}-fused.onnx", build)

    def openvino(self, source: Path, python: str, *, static: bool = False) -> Path:
        """``source`` converted for OpenVINO; with ``static``, quantized by NNCF. Raises ``BuildError``."""
        calibration = self.calibration() if static else ()
        return self.once(
            f"{self._stem(source)}-openvino{'-int8' if static else ''}.xml",
            lambda path: _graphs.prepare_openvino(python, source, path, calibration),
        )

    def quantized_with(self, python: str, source: Path) -> Path:
        """``source`` through ``quantize_dynamic`` of another environment. Raises ``BuildError``."""
        return self.once(f"{self._stem(source)}-int8.onnx", lambda path: _graphs.quantize_with(python, source, path))

    def optimum(self, python: str, level: str) -> Path:
        """The checkpoint as optimum exports and optimizes it at ``level`` (``O2``, ``O3``). Raises ``BuildError``."""
        folder = self.once(
            f"optimum-{level}", lambda path: _graphs.export_optimum(python, self.checkpoint(), path, level)
        )
        return folder / "model.onnx"

    def ctranslate2(self, quantization: str) -> Path:
        """The encoder as CTranslate2's own converter writes it. Raises ``BuildError``."""
        return self.once(
            f"ctranslate2-{quantization}",
            lambda path: _graphs.in_fresh_process(_graphs.convert_ctranslate2, self.checkpoint(), path, quantization),
        )

    def calibration(self) -> list[Path]:
        """Random batches for static quantization."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files = [self.folder / f"calibration-{i}.npz" for i in range(CALIBRATION)]
        for i, file in enumerate(files):
            _graphs.write_batch(file, 1, 128, vocabulary=plant.VOCABULARY, seed=1000 + i)
        return files

    def reference(self, cases: Sequence[Case]) -> dict[str, Outputs]:
        """What PyTorch gives on each batch of each case, in fp32."""
        files = {case.id: list(case.files) for case in cases}
        folder = self.folder / "reference"
        index = folder / "cases.json"
        known = json.loads(index.read_text(encoding="utf-8")) if index.exists() else {}
        names = {case: [str(file) for file in batches] for case, batches in files.items()}
        missing = {case: batches for case, batches in files.items() if known.get(case) != names[case]}
        if missing:
            say(f"running {self.folder.name} in PyTorch")
            _graphs.in_fresh_process(_graphs.write_reference, self.checkpoint(), missing, folder)
            index.write_text(json.dumps(known | names), encoding="utf-8")
        return {case: [read_arrays(folder / f"{case}.{i}.npz") for i in range(len(files[case]))] for case in files}

    def _stem(self, source: Path) -> str:
        """What a graph of this entry is called: its file or its artefact's folder."""
        return source.relative_to(self.folder).parts[0].removesuffix(".onnx")


@dataclasses.dataclass(frozen=True)
class Planted(Workshop):
    """A random model with the sizes of an entry of the paper.

    Attributes:
        work: The folder of all models.
        entry: The sizes.
        task: Of the model; None takes that of the entry.
    """

    work: Path
    entry: plant.Entry
    task: str | None = None

    @property
    def folder(self) -> Path:
        """Where everything of this model goes."""
        return self.work / "-".join(filter(None, [self.entry.slug, self.task]))

    @property
    def dense(self) -> Planted:
        """The same model without zeros."""
        return Planted(self.work, plant.dense_twin(self.entry), self.task)

    def checkpoint(self) -> Path:
        """The random model, with its zeros."""
        return self.once(
            "checkpoint", lambda path: _graphs.in_fresh_process(plant.plant, path, self.entry, task=self.task)
        )

    def check_sizes(self, manifest: Mapping[str, Any]) -> None:
        """Assert that an artefact has the sizes of the entry."""
        plant.check_sizes(self.entry, manifest["layers"])


@dataclasses.dataclass(frozen=True)
class Given(Workshop):
    """A checkpoint that is there already.

    Attributes:
        work: The folder of all models.
        path: The checkpoint.
    """

    work: Path
    path: Path

    @property
    def folder(self) -> Path:
        """Where everything of this model goes."""
        return self.work / self.path.name

    def checkpoint(self) -> Path:
        """The one given."""
        return self.path

    def check_sizes(self, manifest: Mapping[str, Any]) -> None:
        """Nothing: what it should keep is not known."""


def synthetic_cases(work: Path, shapes: Sequence[tuple[int, int]]) -> list[Case]:
    """Random tokens without padding, one batch for each (batch, length); written into ``work``."""
    work.mkdir(parents=True, exist_ok=True)
    cases = []
    for batch, length in shapes:
        name, file = f"{batch}x{length}", work / f"case-{batch}x{length}.npz"
        _graphs.write_batch(file, batch, length, vocabulary=plant.VOCABULARY, seed=batch * 10_000 + length)
        cases.append(Case(name, batch, length, (file,), batch, batch * length, batch * length))
    return cases


def parse_shapes(text: str) -> list[tuple[int, int]]:
    """Batch and length of each of ``1x32,8x128``. Exits with a message where it is not that."""
    shapes = []
    for part in text.split(","):
        batch, _, length = part.partition("x")
        if not (batch.isdigit() and length.isdigit() and int(batch) and int(length)):
            sys.exit(f"error: expected a shape such as 8x128, got '{part}'")
        shapes.append((int(batch), int(length)))
    return shapes


def relative_error(reference: Outputs, candidate: Outputs) -> float:
    """The root mean square of the difference, as a share of that of the reference, over all outputs together.

    Raises:
        AssertionError: The candidate lacks an output.
    """
    difference = size = 0.0
    for expected, got in zip(reference, candidate, strict=True):
        missing = expected.keys() - got.keys()
        if missing:
            raise AssertionError(f"expected the outputs {sorted(expected)}, got {sorted(got)}")
        for name, array in expected.items():
            difference += float(np.square(got[name].astype(np.float64) - array).sum())
            size += float(np.square(array.astype(np.float64)).sum())
    return float(np.sqrt(difference / size))


def relative_errors(reference: Mapping[str, Outputs], outputs: Mapping[str, Outputs]) -> dict[str, float]:
    """``relative_error`` of each case."""
    return {case: relative_error(reference[case], found) for case, found in outputs.items()}


def read_arrays(file: Path) -> dict[str, NDArray[Any]]:
    """Everything in a ``.npz``."""
    with np.load(file) as arrays:
        return dict(arrays)


def say(line: str) -> None:
    """Tell the user on stderr how far it is."""
    print(line, file=sys.stderr, flush=True)
