"""An artefact, texts, and their answers by one process that nothing disturbed."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

from compactor.exporting.export import export
from compactor.predicting.predict import predict
from tests.compactor.predicting.files import write

CHUNK_ROWS = 16
_WORDS = "a an the film plot cast is was never always dull bright gripping slow warm cold , . and but too so".split()


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, example_checkpoint: Path) -> Path:
    """The bundled checkpoint as an artefact, in fp32 and int8."""
    return export(example_checkpoint, tmp_path_factory.mktemp("predicting") / "small").path


def sentences(count: int) -> list[str]:
    """Texts of 1 to 30 words."""
    chance = random.Random(3)
    return [" ".join(chance.choices(_WORDS, k=chance.randint(1, 30))) for _ in range(count)]


@dataclasses.dataclass(frozen=True)
class Scored:
    """A file, and the answers of an undisturbed run."""

    source: Path
    out: Path


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory, small: Path) -> Scored:
    folder = tmp_path_factory.mktemp("scored")
    texts = sentences(600)
    source = write(folder / "in.tsv", {"id": [f"r{number}" for number in range(len(texts))], "sentence": texts})
    out = folder / "out.parquet"
    predict(small, source, out, keep=["id"], chunk_rows=CHUNK_ROWS)
    return Scored(source, out)


@pytest.fixture
def clock() -> Callable[[], float]:
    """One that goes on by a second at each look."""
    ticks = itertools.count()
    return lambda: float(next(ticks))
