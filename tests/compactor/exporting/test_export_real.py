"""Real checkpoints, as their training wrote them: the accuracy their README states, no sentence answered otherwise."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from compactor.checkpoint import read_checkpoint
from compactor.exporting.export import export
from compactor.importing.encoder import load_model

BATCH = 64


@pytest.fixture(scope="module")
def sentences(root: Path) -> tuple[list[str], np.ndarray]:
    with (root / "examples" / "sst2.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row["sentence"] for row in rows], np.array([int(row["label"]) for row in rows])


def _check(
    folder: Path, out: Path, sentences: tuple[list[str], np.ndarray], *, source: str, correct: int, heads: list[int]
) -> None:
    import transformers

    manifest = export(folder, out).manifest
    assert manifest["source"]["format"] == source
    assert [layer["heads"][1] for layer in manifest["layers"] if layer["kind"] == "attention"] == heads

    texts, labels = sentences
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    masked = load_model(read_checkpoint(folder)).module
    sessions = [onnxruntime.InferenceSession(out / stage["file"]) for stage in manifest["stages"] if stage["file"]]
    answers: list[list[np.ndarray]] = [[], [], []]
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # less padding, less time
    for start in range(0, len(order), BATCH):
        chosen = [texts[index] for index in order[start : start + BATCH]]
        feeds = dict(tokenizer(chosen, padding=True, truncation=True, return_tensors="np"))
        with torch.no_grad():
            answers[0].append(masked(**{name: torch.from_numpy(array) for name, array in feeds.items()}).logits.numpy())
        for found, session in zip(answers[1:], sessions, strict=True):
            found.append(session.run(None, {name: array.astype(np.int64) for name, array in feeds.items()})[0])
    logits = [np.concatenate(found) for found in answers]
    expected, compact, int8 = (array.argmax(1) for array in logits)
    assert (expected == labels[order]).sum() == correct
    np.testing.assert_array_equal(compact, expected)
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-4)
    assert abs(int((int8 == labels[order]).sum()) - correct) <= 9  # one point of 872


def test_the_bundled_checkpoint(
    example_checkpoint: Path, tmp_path: Path, sentences: tuple[list[str], np.ndarray]
) -> None:
    _check(example_checkpoint, tmp_path / "out", sentences, source="plain", correct=760, heads=[4, 3, 4])


@pytest.mark.slow
def test_the_larger_checkpoint(shared_dir: Path, tmp_path: Path, sentences: tuple[list[str], np.ndarray]) -> None:
    folder = shared_dir / "checkpoints" / "sst2-minilm-hybrid"
    _check(folder, tmp_path / "out", sentences, source="nn_pruning", correct=759, heads=[8, 7, 5, 2, 1, 6])
