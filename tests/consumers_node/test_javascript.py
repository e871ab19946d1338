"""Artefacts open in transformers.js and onnxruntime-web as they are, and answer as they do in Python."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import compactor
import compactor.runtime
from tests.compactor.exporting import traces

HERE = Path(__file__).parent
TEXTS = ["a charming and often affecting journey .", "unflinchingly bleak", "it is what it is , and no more"]
DTYPES = {"fp32": "fp32", "int8": "q8"}
"""What transformers.js calls our precisions."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="there is no Node"),
]

Consumer = Callable[..., Any]


@pytest.fixture(scope="module")
def consume(tmp_path_factory: pytest.TempPathFactory) -> Consumer:
    """Runs a job of ``consume.js``, beside the packages that it needs."""
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "consume.js"):
        shutil.copy(HERE / name, folder)
    # Their install scripts fetch drivers of GPUs.
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run(install, cwd=folder, check=True, capture_output=True, text=True)

    def run(way: str, **job: Any) -> Any:
        done = subprocess.run(
            ["node", "consume.js"],
            cwd=folder,
            input=json.dumps({"way": way, **job}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="module")
def classifier(example_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artefact of the bundled example."""
    return compactor.export(example_checkpoint, tmp_path_factory.mktemp("classifier") / "artefact").path


@pytest.mark.parametrize("precision", DTYPES)
def test_a_classifier_answers_texts(precision: str, classifier: Path, consume: Consumer) -> None:
    job = {"folder": str(classifier.parent), "name": classifier.name, "dtype": DTYPES[precision]}
    found = consume("classify", **job, texts=TEXTS)
    model = compactor.runtime.load(classifier, precision=precision)
    for answer, theirs in zip(model(TEXTS), found, strict=True):
        scores = {each["label"]: each["score"] for each in theirs}
        expected = dict(zip(answer.labels, answer.scores.tolist(), strict=True))
        assert scores == pytest.approx(expected, abs=1e-4 if precision == "fp32" else 0.05)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_graph_runs_in_web_assembly(precision: str, classifier: Path, consume: Consumer) -> None:
    file = classifier / "onnx" / f"model{'_quantized' if precision == 'int8' else ''}.onnx"
    ids = np.random.default_rng(0).integers(200, 10_000, (2, 12))
    found = np.reshape(consume("run", file=str(file), ids=ids.tolist()), (2, -1))
    session = onnxruntime.InferenceSession(file)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    taken = {entry.name for entry in session.get_inputs()}
    expected = session.run(None, {name: array for name, array in feeds.items() if name in taken})[0]
    np.testing.assert_allclose(found, expected, atol=1e-4 if precision == "fp32" else 0.1)


@pytest.mark.parametrize("precision", DTYPES)
def test_an_embedder_gives_vectors(precision: str, example_checkpoint: Path, consume: Consumer, tmp_path: Path) -> None:
    out = compactor.export(example_checkpoint, tmp_path / "embedder", task="feature-extraction").path
    options = {"pooling": "mean", "normalize": True}
    job = {"folder": str(tmp_path), "name": out.name, "dtype": DTYPES[precision], "options": options}
    found = np.array(consume("embed", **job, texts=TEXTS))
    model = compactor.runtime.load(out, precision=precision)
    for answer, theirs in zip(model(TEXTS), found, strict=True):
        cosine = float(theirs @ answer.vector) / float(np.linalg.norm(answer.vector))
        assert cosine > (1 - 1e-5 if precision == "fp32" else 0.99)


@pytest.mark.parametrize("precision", DTYPES)
def test_an_encoder_decoder_writes(precision: str, pruned_bart: Any, consume: Consumer, tmp_path: Path) -> None:
    """Every layer has heads and widths of its own, and the config those of the dense model."""
    with pytest.MonkeyPatch.context() as patch:
        traces.treat_small_as_large(patch)
        out = compactor.export(
            pruned_bart.folder, tmp_path / "writer", precision=["fp32", "int8"], decoder="merged"
        ).path
    ids = np.random.default_rng(1).integers(3, 30, (2, 9))
    options = {"max_new_tokens": 8, "num_beams": 1, "do_sample": False}
    job = {"folder": str(tmp_path), "name": out.name, "dtype": DTYPES[precision], "options": options}
    found = consume("write", **job, ids=ids.tolist())
    if precision == "fp32":
        with torch.no_grad():
            expected = pruned_bart.module.generate(torch.from_numpy(ids), **options)
    else:
        from compactor.runtime.generation import EncoderDecoder

        expected = EncoderDecoder.open(out, precision="int8").generate(torch.from_numpy(ids), **options)
    assert found == expected.tolist()


def test_two_graphs_of_a_decoder_are_not_what_it_looks_for(pruned_bart: Any, consume: Consumer) -> None:
    """What ``--decoder merged`` is for."""
    path = pruned_bart.path
    with pytest.raises(AssertionError, match="decoder_model_merged"):
        consume("write", folder=str(path.parent), name=path.name, dtype="fp32", ids=[[0, 5, 2]], options={})
