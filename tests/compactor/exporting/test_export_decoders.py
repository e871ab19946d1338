"""Encoder-decoders: three graphs, one decision a layer, weights stored once, and every graph verified."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from onnx import numpy_helper

from compactor.errors import ModelDirectoryError, VerificationError
from compactor.exporting.export import export
from compactor.exporting.verifying import verify
from compactor.manifest import artefact_file_problems, manifest_problems
from compactor.runtime.decoding import ENCODER, FIRST, NEXT, CachedDecoder
from tests.compactor import families
from tests.compactor.exporting import traces
from tests.compactor.fakes import run
from tests.compactor.families import PLANTED_HALVES
from tests.conftest import PrunedBart
from tests.saturation import assert_cannot_saturate

GRAPHS = [ENCODER, FIRST, NEXT]
LAYERS = {layer["path"]: layer for layer in PLANTED_HALVES}
FILES = [f"{name}{suffix}.onnx" for suffix in ("", "_quantized") for name in GRAPHS]


@pytest.fixture(autouse=True)
def _small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    traces.treat_small_as_large(monkeypatch)


def open_graph(artefact: Path, name: str) -> Any:
    return onnxruntime.InferenceSession(artefact / "onnx" / f"{name}.onnx", providers=["CPUExecutionProvider"])


# What is written


def test_writes_three_graphs_in_each_precision(pruned_bart: PrunedBart) -> None:
    written = sorted(path.name for path in (pruned_bart.path / "onnx").iterdir())
    assert written == sorted([*FILES, "model.onnx_data", "model_quantized.onnx_data"])
    assert {"config.json", "generation_config.json", "compactor.json"} <= {p.name for p in pruned_bart.path.iterdir()}
    assert pruned_bart.manifest["task"] == "text2text-generation"


def test_the_manifest_is_valid_and_agrees_with_the_files(pruned_bart: PrunedBart) -> None:
    assert manifest_problems(pruned_bart.manifest) == []
    assert artefact_file_problems(pruned_bart.manifest, pruned_bart.path) == []
    stages = [(stage["name"], stage["graph"], stage["file"]) for stage in pruned_bart.manifest["stages"]]
    assert stages == [
        *(("masked", graph, None) for graph in GRAPHS),
        *(("compact", graph, f"onnx/{graph}.onnx") for graph in GRAPHS),
        *(("int8", graph, f"onnx/{graph}_quantized.onnx") for graph in GRAPHS),
    ]


def test_the_planted_structure_went_from_every_attention(pruned_bart: PrunedBart) -> None:
    assert pruned_bart.manifest["layers"] == PLANTED_HALVES


@pytest.mark.parametrize("family", ["mbart", "marian", "pegasus"])
def test_other_families_export_compact_and_exact(family: str, tmp_path: Path) -> None:
    """mBART has a head of its own here, the others' is tied; transformers 4 cannot read what it saves of that."""
    tied = family != "mbart" or transformers.__version__.startswith("4.")
    model = families.save_encoder_decoder(tmp_path / "model", family, tie_word_embeddings=tied)
    result = export(model, tmp_path / "out", precision=["fp32"])
    assert result.manifest["layers"] == PLANTED_HALVES
    assert result.manifest["verification"]["max_abs_diff"] < 1e-4
    check_logits(transformers.AutoModelForSeq2SeqLM.from_pretrained(model), result.path)


def test_caches_have_their_layers_own_heads_and_widths(pruned_bart: PrunedBart) -> None:
    following = open_graph(pruned_bart.path, NEXT)
    caches = {entry.name: entry.shape for entry in following.get_inputs() if entry.name.startswith("past")}
    expected = {}
    for path, layer in LAYERS.items():
        if path.startswith("decoder") and layer["kind"] == "attention" and layer["heads"][1]:
            kind = "encoder" if path.endswith("cross_attention") else "decoder"
            for part, width in (("key", "qk_width"), ("value", "v_width")):
                name = f"past_key_values.{path.split('.')[2]}.{kind}.{part}"
                expected[name] = (layer["heads"][1], layer[width][1])
    assert {name: (shape[1], shape[3]) for name, shape in caches.items()} == expected
    assert not any(name.startswith("past_key_values.1.encoder") for name in caches), "its attention went"
    for shape in caches.values():
        assert all(isinstance(size, int) or str(size).isidentifier() for size in shape)


def test_the_encoders_keys_and_values_are_computed_once(pruned_bart: PrunedBart) -> None:
    following = open_graph(pruned_bart.path, NEXT)
    assert "encoder_hidden_states" not in [entry.name for entry in following.get_inputs()]
    assert not any(".encoder." in entry.name for entry in following.get_outputs())


def test_weights_that_graphs_share_are_on_disk_once(pruned_bart: PrunedBart) -> None:
    for precision, data in (("compact", "model.onnx_data"), ("int8", "model_quantized.onnx_data")):
        stages = [stage for stage in pruned_bart.manifest["stages"] if stage["name"] == precision]
        size = (pruned_bart.path / "onnx" / data).stat().st_size
        assert size < sum(stage["shared_bytes"] for stage in stages)
        first, following = stages[1:]
        projections = 2 * 4 * families.WIDTH * 4  # cross-attention's keys and values, which only one of them needs
        assert 0 <= first["shared_bytes"] - following["shared_bytes"] <= projections
    listed = {entry["file"]: entry["bytes"] for entry in pruned_bart.manifest["weights"]}
    assert listed == {
        f"onnx/{name}": (pruned_bart.path / "onnx" / name).stat().st_size
        for name in ("model.onnx_data", "model_quantized.onnx_data")
    }


@pytest.mark.parametrize("suffix", ["", "_quantized"])
def test_the_table_of_tied_embeddings_is_on_disk_once(suffix: str, pruned_bart: PrunedBart) -> None:
    places = {}
    for name in GRAPHS:
        graph = onnx.load(pruned_bart.path / "onnx" / f"{name}{suffix}.onnx", load_external_data=False).graph
        tables = [tensor for tensor in graph.initializer if families.VOCABULARY in tensor.dims and len(tensor.dims) > 1]
        assert [tuple(tensor.dims) for tensor in tables if families.WIDTH in tensor.dims] == [
            (families.VOCABULARY, families.WIDTH)
        ]
        table = next(tensor for tensor in tables if families.WIDTH in tensor.dims)
        places[name] = {entry.key: entry.value for entry in table.external_data}.get("offset", table.raw_data)
    assert len(set(places.values())) == 1, "of the encoder, and of the decoder's input and output, in both steps"


def test_logits_are_those_of_the_tied_head_and_its_bias(pruned_bart: PrunedBart) -> None:
    assert pruned_bart.module.final_logits_bias.abs().min() > 0
    check_logits(pruned_bart.module, pruned_bart.path)


def check_logits(module: Any, artefact: Path) -> None:
    """The graphs give what the module gives from which the checkpoint was saved."""
    ids = torch.tensor([[2, 5, 9, 4], [2, 7, 7, 3]])
    text = torch.tensor([[0, 8, 9, 10, 2], [0, 8, 2, 1, 1]])
    mask = (text != 1).long()
    with torch.no_grad():
        expected = module(input_ids=text, attention_mask=mask, decoder_input_ids=ids).logits.numpy()
    states = open_graph(artefact, ENCODER).run(None, {"input_ids": text.numpy(), "attention_mask": mask.numpy()})[0]
    logits = CachedDecoder.open(artefact).decode(ids.numpy(), states, mask.numpy())
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_int8_by_token_gives_a_text_what_it_gives_it_alone(tmp_path: Path) -> None:
    """In the encoder, in the first step and in every next one, whose caches take turns."""
    folder = families.save_encoder_decoder(tmp_path / "model", "bart")
    result = export(folder, tmp_path / "out", int8="token")
    for path in (result.path / "onnx").glob("*_quantized.onnx"):
        assert_cannot_saturate(path)
    encoder = open_graph(result.path, f"{ENCODER}_quantized")
    decoder = CachedDecoder.open(result.path, precision="int8")
    exact = CachedDecoder.open(result.path)
    ids = np.array([[2, 5, 9, 4], [2, 7, 7, 3]])
    text = np.array([[0, 8, 9, 10, 2], [0, 8, 2, 1, 1]])
    mask = (text != 1).astype(np.int64)

    def decode(rows: slice, length: int) -> Any:
        feeds = {"input_ids": text[rows, :length], "attention_mask": mask[rows, :length]}
        states = encoder.run(None, feeds)[0]
        return decoder.decode(ids[rows], states, mask[rows, :length])

    together = decode(slice(None), 5)
    for row, length in enumerate((5, 3)):
        alone = decode(slice(row, row + 1), length)[0]
        assert np.abs(alone - together[row]).max() <= 3e-6 * np.abs(alone).max()
    states = open_graph(result.path, ENCODER).run(None, {"input_ids": text, "attention_mask": mask})[0]
    right = exact.decode(ids, states, mask)
    assert 0 < np.abs(together - right).max() < 0.15 * np.abs(right).max()


@pytest.mark.parametrize("layout", ["hf", "flat"])
def test_portable_graphs_have_no_attention_operator(layout: Any, pruned_bart: PrunedBart, tmp_path: Path) -> None:
    result = export(pruned_bart.folder, tmp_path / "out", target="portable", layout=layout)
    assert result.manifest["layers"] == PLANTED_HALVES
    stages = result.manifest["stages"][3:]
    assert result.manifest["recipe"]["opset"] == 17
    assert all("Attention" not in stage["operators"] for stage in stages)
    assert all((result.path / stage["file"]).parent.name == ("onnx" if layout == "hf" else "out") for stage in stages)
    assert artefact_file_problems(result.manifest, result.path) == []
    assert verify(result.path, pruned_bart.folder)["passed"]
    CachedDecoder.open(result.path, precision="int8")


# Verification


def test_verification_covers_every_graph(pruned_bart: PrunedBart) -> None:
    verification = pruned_bart.manifest["verification"]
    assert verification["passed"] and verification["max_abs_diff"] < 1e-4
    for stage in ("compact", "int8"):
        for optimizations in (False, True):
            outputs = [
                case["output"]
                for case in verification["cases"]
                if (case["stage"], case["optimizations"]) == (stage, optimizations)
            ]
            assert outputs.count("last_hidden_state") >= 3 and outputs.count("logits") >= 3


def test_verify_finds_the_same_again(pruned_bart: PrunedBart, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", pruned_bart.path, pruned_bart.folder, "--json", "-q") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tolerance"] == pruned_bart.manifest["verification"]["tolerance"]
    names = [(case["stage"], case["case"], case["output"], case["optimizations"]) for case in found["cases"]]
    assert names == [
        (case["stage"], case["case"], case["output"], case["optimizations"])
        for case in pruned_bart.manifest["verification"]["cases"]
    ]


@pytest.mark.parametrize("graph", GRAPHS)
def test_verify_sees_one_changed_weight_of_any_graph(graph: str, pruned_bart: PrunedBart, tmp_path: Path) -> None:
    artefact = Path(shutil.copytree(pruned_bart.path, tmp_path / "copy"))
    path = artefact / "onnx" / f"{graph}.onnx"
    saved = onnx.load(path, load_external_data=False)
    norm = next(node for node in saved.graph.node if node.op_type == "LayerNormalization")
    weight = next(tensor for tensor in saved.graph.initializer if tensor.name == norm.input[1])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.5, weight.name))
    path.write_bytes(saved.SerializeToString())
    with pytest.raises(VerificationError, match="the compact graph differs from the masked model"):
        verify(artefact, pruned_bart.folder)


def test_verify_sees_a_changed_file_of_weights(
    pruned_bart: PrunedBart, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artefact = Path(shutil.copytree(pruned_bart.path, tmp_path / "copy"))
    data = artefact / "onnx" / "model.onnx_data"
    data.write_bytes(data.read_bytes()[:-1])
    assert run("verify", artefact, pruned_bart.folder, "-q") == 4
    assert "model.onnx_data" in capsys.readouterr().err


def test_verify_of_a_manifest_that_lacks_a_graph(pruned_bart: PrunedBart, tmp_path: Path) -> None:
    artefact = Path(shutil.copytree(pruned_bart.path, tmp_path / "copy"))
    path = artefact / "compactor.json"
    manifest = json.loads(path.read_text())
    manifest["stages"] = [stage for stage in manifest["stages"] if stage["graph"] != NEXT]
    path.write_text(json.dumps(manifest))
    with pytest.raises(ModelDirectoryError, match="names no 'decoder_with_past_model' of the stage 'compact'"):
        verify(artefact, pruned_bart.folder)


def test_explain_tells_every_attention(pruned_bart: PrunedBart, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", pruned_bart.path) == 0
    said = capsys.readouterr().out
    for path in LAYERS:
        assert f"{path}: " in said
    assert "attached-cache" in said


def test_explain_has_a_table_of_operators_for_each_graph(
    pruned_bart: PrunedBart, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("explain", pruned_bart.path) == 0
    said = capsys.readouterr().out
    stages = json.loads((pruned_bart.path / "compactor.json").read_text())["stages"]
    for graph in (ENCODER, FIRST, NEXT):
        _, _, table = said.partition(f"\nOperators of {graph}: in the file, and as ONNX Runtime runs them\n")
        header, *rows = table.partition("\n\n")[0].splitlines()
        assert header.split("  ")[0] == "operator" and header.count("compact, saved") == header.count("int8, run") == 1
        compact = next(stage for stage in stages if (stage["name"], stage["graph"]) == ("compact", graph))
        saved = {row.split()[0]: row.split()[1] for row in rows}
        assert {name: number for name, number in saved.items() if number != "-"} == {
            name: str(number) for name, number in compact["operators"].items()
        }
