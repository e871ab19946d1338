"""A decoder's two graphs as one: it decodes as they do, holds each weight once, and every reader of ours takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import compactor
from compactor.benching.engines.ort_generation import graph_files
from compactor.benching.plan import Variant
from compactor.cli import main
from compactor.exporting.verifying import verify
from compactor.manifest import load_manifest
from compactor.runtime.decoding import ENCODER, FIRST, MERGED, NEXT, SWITCH, CachedDecoder, decoder_paths
from compactor.runtime.generation import EncoderDecoder
from compactor.runtime.sessions import open_session
from tests.compactor import families
from tests.compactor.exporting import traces
from tests.runtime.test_generation import LENGTH, prompts

PRECISIONS = ["fp32", "int8"]


@pytest.fixture(scope="module")
def merged(pruned_bart: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artefact of the pruned BART with a merged decoder."""
    with pytest.MonkeyPatch.context() as patch:
        traces.treat_small_as_large(patch)
        out = tmp_path_factory.mktemp("merged") / "out"
        return compactor.export(pruned_bart.folder, out, precision=PRECISIONS, decoder="merged").path


def graph_file(folder: Path, name: str, precision: str) -> Path:
    return folder / "onnx" / f"{name}{'_quantized' if precision == 'int8' else ''}.onnx"


def text(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """States of two encoded texts of five tokens, one padded."""
    states = np.random.default_rng(seed).standard_normal((2, 5, families.WIDTH)).astype(np.float32)
    return states, np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("share", "prompt"), [(1, 1), (3, 2), (2, 5)])
def test_it_decodes_what_the_two_decode(
    share: int, prompt: int, precision: str, merged: Path, pruned_bart: Any
) -> None:
    one, two = (CachedDecoder.open(folder, precision=precision) for folder in (merged, pruned_bart.path))
    assert one.first is one.following and two.first is not two.following
    tokens = np.random.default_rng(share).integers(3, 30, (2 * share, 5))
    found, expected = (decoder.decode(tokens, *text(), prompt=prompt) for decoder in (one, two))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_beams_are_those_of_the_masked_model(merged: Path, pruned_bart: Any) -> None:
    options = {**prompts(3), "max_length": LENGTH, "num_beams": 4, "do_sample": False}
    with torch.no_grad():
        expected = pruned_bart.module.generate(**options)
    assert torch.equal(EncoderDecoder.open(merged, threads=1).generate(**options), expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_weight_is_there_once_and_nothing_lies_beside(precision: str, merged: Path, pruned_bart: Any) -> None:
    assert not list(merged.glob("onnx/*_data*"))
    model = onnx.load(graph_file(merged, MERGED, precision))
    contents = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    kept = [(array.tobytes(), array.dtype.str, array.shape) for array in contents]
    assert len(kept) == len(set(kept))
    (node,) = model.graph.node
    inner = [tensor for branch in node.attribute for tensor in branch.g.initializer]
    assert max(np.prod(tensor.dims) for tensor in inner) < 16
    first = onnx.load(graph_file(pruned_bart.path, FIRST, precision), load_external_data=False)
    large = [tensor for tensor in first.graph.initializer if np.prod(tensor.dims) >= 16]
    assert len(contents) == len({tensor.name for tensor in large}), "a step has no weights that the first has not"


def test_caches_of_the_first_step_may_have_any_sizes_and_none_come_out_for_the_text(merged: Path) -> None:
    """Consumers make empty ones by the config, which states the heads of the dense model."""
    session = open_session(graph_file(merged, MERGED, "fp32"))
    states, mask = text()
    tokens = np.array([[2, 5], [2, 6]])
    pasts = [each.name for each in session.get_inputs() if each.name.startswith("past_key_values.")]
    feeds = {"input_ids": tokens, "encoder_hidden_states": states, "encoder_attention_mask": mask}
    empty = dict.fromkeys(pasts, np.zeros((2, families.HEADS, 0, families.HEAD_DIM), np.float32))
    names = [each.name for each in session.get_outputs()]
    first = dict(zip(names, session.run(None, {**feeds, **empty, SWITCH: np.array([False])}), strict=True))
    caches = {name: first[name.replace("past_key_values", "present")] for name in pasts}
    widths = {(array.shape[1], array.shape[3]) for array in caches.values()}
    assert len(widths) > 1, "layers differ"
    feeds["input_ids"] = tokens[:, :1]
    step = dict(zip(names, session.run(None, {**feeds, **caches, SWITCH: np.array([True])}), strict=True))
    for name, array in step.items():
        if ".encoder." in name:
            assert array.shape == (0, first[name].shape[1], 0, first[name].shape[3])
        elif name != "logits":
            assert array.shape == (*first[name].shape[:2], 3, first[name].shape[3])


def test_the_manifest_names_it_and_verify_decodes_with_it(
    merged: Path, pruned_bart: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = load_manifest(merged)
    assert manifest["recipe"]["decoder"] == "merged" and "weights" not in manifest
    graphs = {(stage["name"], stage["graph"]) for stage in manifest["stages"]}
    assert graphs == {(stage, graph) for stage in ("masked", "compact", "int8") for graph in (ENCODER, MERGED)}
    assert all(
        stage["operators"]["If"] == 1 for stage in manifest["stages"] if stage["graph"] == MERGED and stage["file"]
    )
    assert verify(merged, pruned_bart.folder)["passed"]
    card = (merged / "README.md").read_text(encoding="utf-8")
    assert "--decoder merged" in card and "transformers.js" in card
    assert main(["explain", str(merged)]) == 0
    assert MERGED in capsys.readouterr().out


def test_a_benchmark_finds_it(merged: Path, pruned_bart: Any) -> None:
    def files(folder: Path) -> list[str]:
        return list(graph_files(Variant("v", "v", str(folder), "onnxruntime", "cpu", "fp32", folder)))

    assert files(merged) == [ENCODER, MERGED]
    assert files(pruned_bart.path) == [ENCODER, FIRST, NEXT]
    assert list(decoder_paths(merged, "int8")) == [MERGED]
    with pytest.raises(FileNotFoundError, match="there is no 'decoder_model_fp16"):
        decoder_paths(merged, "fp16")


def test_the_steps_of_a_decoder_are_two_or_one_that_is_both(merged: Path, pruned_bart: Any) -> None:
    one = open_session(graph_file(merged, MERGED, "fp32"))
    first = open_session(graph_file(pruned_bart.path, FIRST, "fp32"))
    for sessions in ((first,), (one, one)):
        with pytest.raises(ValueError, match="one merged graph, or a first step's and every next one's"):
            CachedDecoder(*sessions)


def test_an_encoder_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = families.save(tmp_path / "model", "bert", "ForSequenceClassification", planted=None)
    assert main(["export", str(folder), str(tmp_path / "out"), "--decoder", "merged"]) == 2
    assert "a model for text-classification has no decoder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
