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
GRAPHS = {"fp32": "model.onnx", "int8": "model_quantized.onnx", "fp16": "model_fp16.onnx"}  # of our artefacts

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "sst2-small"  # the bundled checkpoint
SENTENCES = EXAMPLE.with_name("sst2.tsv")
TASK = "text-classification"  # of both

Arrays = dict[str, NDArray[Any]]
Outputs = list[Arrays]  # of each batch of a case


@dataclasses.dataclass(frozen=True)
class Workshop(abc.ABC):
    """One model, and what is made of it.

    Attributes:
        work: The folder of all models.
    """

    work: Path

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

    def exported(self, name: str, export: Callable[..., object], *options: Any) -> Path:
        """What ``export`` writes of the checkpoint, in a process of its own. Raises ``BuildError``."""
        return self.once(name, lambda path: _graphs.in_fresh_process(export, self.checkpoint(), path, *options))

    def converted(self, source: Path, suffix: str, convert: Callable[..., object], *options: Any) -> Path:
        """What ``convert`` makes of a graph of this model, in a process of its own. Raises ``BuildError``."""
        stem = source.relative_to(self.folder).parts[0].removesuffix(".onnx")  # its file, or its artefact's folder
        return self.once(f"{stem}{suffix}", lambda path: _graphs.in_fresh_process(convert, source, path, *options))

    def plain(self, opset: int = PLAIN_OPSET) -> Path:
        """What ``torch.onnx.export`` writes of the checkpoint, zeros and all."""
        return self.exported(f"plain-{opset}.onnx", _graphs.export_plain, opset)

    def ours(self, target: str = "cpu", **options: Any) -> Path:
        """The folder of our artefact's graphs, with the kept sizes checked."""
        name = "-".join(["ours", target, *(f"{name}-{value}" for name, value in options.items())])

        def build(path: Path) -> None:
            checkpoint = self.checkpoint()
            manifest = _graphs.in_fresh_process(_graphs.export_ours, checkpoint, path, {"target": target, **options})
            self.check_sizes(manifest)

        return self.once(name, build) / "onnx"

    def graph(self, precision: str, target: str = "cpu", **options: Any) -> Path:
        """The graph of our artefact in ``fp32``, ``fp16`` or ``int8``."""
        return self.ours(target, **options) / GRAPHS[precision]

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
        return {case.id: read_outputs(folder, case) for case in cases}


@dataclasses.dataclass(frozen=True)
class Planted(Workshop):
    """A random model with the sizes of an entry of the paper.

    Attributes:
        entry: The sizes.
        task: Of the model; None takes that of the entry.
    """

    entry: plant.Entry
    task: str | None = None

    @property
    def folder(self) -> Path:
        return self.work / "-".join(filter(None, [self.entry.slug, self.task]))

    @property
    def dense(self) -> Planted:
        """The same model without zeros."""
        return dataclasses.replace(self, entry=plant.dense_twin(self.entry))

    def checkpoint(self) -> Path:
        return self.once(
            "checkpoint", lambda path: _graphs.in_fresh_process(plant.plant, path, self.entry, task=self.task)
        )

    def check_sizes(self, manifest: Mapping[str, Any]) -> None:
        plant.check_sizes(self.entry, manifest["layers"])


@dataclasses.dataclass(frozen=True)
class Given(Workshop):
    """A checkpoint that is there already.

    Attributes:
        path: The checkpoint.
    """

    path: Path

    @property
    def folder(self) -> Path:
        return self.work / self.path.name

    def checkpoint(self) -> Path:
        return self.path

    def check_sizes(self, manifest: Mapping[str, Any]) -> None:
        """Nothing: what it should keep is not known."""


def classifiers(work: Path, entry: plant.Entry) -> dict[str, Workshop]:
    """What real sentences are given to: random weights with the sizes of an entry of the paper, and the example."""
    return {"random weights": Planted(work, entry, TASK), "the example checkpoint": Given(work, EXAMPLE)}


def synthetic_cases(work: Path, shapes: Sequence[tuple[int, int]]) -> list[Case]:
    """Random tokens without padding, one batch for each (batch, length); written into ``work``."""
    work.mkdir(parents=True, exist_ok=True)
    cases = []
    for batch, length in shapes:
        name, file = f"{batch}x{length}", work / f"case-{batch}x{length}.npz"
        _graphs.write_batch(file, batch, length, seed=batch * 10_000 + length)
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


def read_outputs(folder: Path, case: Case) -> Outputs:
    """What was given on each batch of a case: ``<case>.<batch>.npz``."""
    return [read_arrays(folder / f"{case.id}.{i}.npz") for i in range(len(case.files))]


def read_arrays(file: Path) -> Arrays:
    """Everything in a ``.npz``."""
    with np.load(file) as arrays:
        return dict(arrays)


def say(line: str) -> None:
    """Tell the user on stderr how far it is."""
    print(line, file=sys.stderr, flush=True)
