"""Encoder-decoders: three graphs, one decision a layer, weights stored once, and every graph verified."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from compactor.errors import ModelDirectoryError, VerificationError
from compactor.exporting import export
from compactor.manifest import artefact_file_problems, manifest_problems
from compactor.runtime.decoding import ENCODER, FIRST, NEXT, CachedDecoder
from compactor.verifying import verify
from tests.compactor import families, traces
from tests.compactor.fakes import run
from tests.compactor.families import PLANTED_HALVES
from tests.conftest import PrunedBart

GRAPHS = [ENCODER, FIRST, NEXT]
LAYERS = {layer["path"]: layer for layer in PLANTED_HALVES}
FILES = [f"{name}{suffix}.onnx" for suffix in ("", "_quantized") for name in GRAPHS]


@pytest.fixture(autouse=True)
def _small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    traces.trace_once(monkeypatch)
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


# What cannot be exported


@pytest.fixture
def bart(pruned_bart: PrunedBart, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to be spoiled."""
    return Path(shutil.copytree(pruned_bart.folder, tmp_path / "model"))


def change_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("task", [[], ["--task", "text2text-generation"]])
def test_decoder_only(task: list[str], tmp_path: Path, ends: Callable[..., str]) -> None:
    config = transformers.GPT2Config(vocab_size=30, n_positions=20, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    assert "decoder" in ends(3, tmp_path / "model", *task)


def test_t5_and_why(tmp_path: Path, ends: Callable[..., str]) -> None:
    config = transformers.T5Config(vocab_size=30, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    said = ends(3, tmp_path / "model")
    assert "'t5' are not supported: its position bias depends on how many tokens are cached" in said


def test_an_encoder_decoder_for_images(tmp_path: Path, ends: Callable[..., str]) -> None:
    encoder = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
    )
    decoder = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    transformers.VisionEncoderDecoderModel(config).save_pretrained(tmp_path / "model")
    assert "'vision-encoder-decoder' are not supported" in ends(3, tmp_path / "model")


@pytest.mark.parametrize(
    ("head", "task", "options"),
    [
        ("ForSequenceClassification", "text-classification", []),
        ("ForQuestionAnswering", "question-answering", []),
        ("Model", "feature-extraction", []),
        ("ForConditionalGeneration", "feature-extraction", ["--task", "feature-extraction"]),
    ],
)
def test_half_of_an_encoder_decoder_is_not_exported(
    head: str, task: str, options: list[str], tmp_path: Path, ends: Callable[..., str]
) -> None:
    model = families.save_encoder_decoder(tmp_path / "model", "bart", head)
    said = ends(3, model, *options)
    assert "is an encoder-decoder, which is exported for text2text-generation" in said
    assert f"not {task}" in said


def test_another_head_than_the_weights_have(bart: Path, ends: Callable[..., str]) -> None:
    said = ends(3, bart, "--task", "text-classification")
    assert "which 'BartForSequenceClassification' needs" in said


def test_an_encoder_is_not_exported_for_generation(tmp_path: Path, ends: Callable[..., str]) -> None:
    model = families.save(tmp_path / "model", "bert")
    assert "no 'bert' model for text2text-generation" in ends(3, model, "--task", "text2text-generation")


@pytest.mark.parametrize("name", ["lm_head.weight", "model.encoder.embed_tokens.weight"])
def test_tied_tables_that_differ(name: str, bart: Path, ends: Callable[..., str]) -> None:
    def untie(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors["model.shared.weight"].clone()
        tensors[name][3, 4] = 0

    change_weights(bart, untie)
    said = ends(3, bart)
    assert name in said and "'model.shared.weight'" in said
    assert "differ, but config.json says that they are one tensor" in said


def test_tied_tables_that_are_stored_twice(bart: Path, tmp_path: Path) -> None:
    def store_again(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("lm_head", "model.encoder.embed_tokens", "model.decoder.embed_tokens"):
            tensors[f"{name}.weight"] = tensors["model.shared.weight"].clone()

    change_weights(bart, store_again)
    from compactor.checkpoint import read_checkpoint
    from compactor.encoder_decoder import load_encoder_decoder
    from compactor.tasks import GENERATION, TASKS

    load_encoder_decoder(read_checkpoint(bart), TASKS[GENERATION])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda t: t.pop("model.decoder.layers.1.encoder_attn.k_proj.weight"), "weights lack", id="lack"),
        pytest.param(lambda t: t["model.decoder.layers.0.fc1.weight"].fill_(float("nan")), "NaN", id="nan"),
        pytest.param(
            lambda t: t.update({"model.decoder.layers.0.fc1.weight": torch.ones(7, families.WIDTH)}),
            "'model.decoder.layers.0.fc1.weight' does not have the config's shape",
            id="shape",
        ),
    ],
)
def test_damaged_weights(
    change: Callable[[dict[str, torch.Tensor]], Any], message: str, bart: Path, ends: Callable[..., str]
) -> None:
    change_weights(bart, change)
    assert message in ends(3, bart)


def test_a_file_of_weights_that_ends_early(bart: Path, ends: Callable[..., str]) -> None:
    path = bart / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    ends(3, bart)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_attention_heads": 3}, "not divisible by 3 attention heads"),
        ({"decoder_layers": 3}, "states 3 layers, but the weights hold 2 under 'model.decoder.layers'"),
        ({"decoder_layers": 1}, "states 1 layers, but the weights hold 2 under 'model.decoder.layers'"),
        ({"encoder_layers": 1, "num_hidden_layers": 1}, "hold 2 under 'model.encoder.layers'"),
        ({"decoder_ffn_dim": 10**6}, "decoder's feed-forward size"),
        ({"is_encoder_decoder": "yes"}, "must be true or false"),
        ({"is_encoder_decoder": False}, "no encoder and decoder"),
        ({"activation_function": "mystery"}, "mystery"),
    ],
)
def test_damaged_configs(changes: dict[str, Any], message: str, bart: Path, ends: Callable[..., str]) -> None:
    change_json(bart / "config.json", **changes)
    assert message in ends(3, bart)


# Generation settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache_implementation": "static"}, "'cache_implementation' is \"static\""),
        ({"cache_implementation": "quantized"}, "'cache_implementation' is \"quantized\""),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, "'num_beam_groups' is 2"),
        ({"force_words_ids": [[5]], "num_beams": 2}, "'force_words_ids' is [[5]]"),
        ({"constraints": []}, "'constraints' is []"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "'penalty_alpha' is 0.6"),
        ({"dola_layers": "low"}, "'dola_layers' is \"low\""),
        ({"prompt_lookup_num_tokens": 3}, "'prompt_lookup_num_tokens' is 3"),
        ({"assistant_early_exit": 2}, "'assistant_early_exit' is 2"),
        ({"guidance_scale": 1.5}, "'guidance_scale' is 1.5"),
        ({"prefill_chunk_size": 4}, "'prefill_chunk_size' is 4"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "'output_attentions' is true"),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "'output_hidden_states' is true"),
    ],
)
def test_settings_that_the_graphs_cannot_honour(
    changes: dict[str, Any], message: str, bart: Path, ends: Callable[..., str]
) -> None:
    change_json(bart / "generation_config.json", **changes)
    said = ends(3, bart)
    assert f"{message} in generation_config.json, which the export cannot honour: " in said
    assert "or remove it" in said


def test_without_a_file_the_settings_are_those_of_the_config(bart: Path, ends: Callable[..., str]) -> None:
    (bart / "generation_config.json").unlink()
    change_json(bart / "config.json", num_beam_groups=2, num_beams=4, diversity_penalty=0.5)
    assert "'num_beam_groups' is 2 in config.json" in ends(3, bart)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forced_bos_token_id": 99}, "'forced_bos_token_id' is 99"),
        ({"eos_token_id": [2, -1]}, "'eos_token_id' is -1"),
        ({"decoder_start_token_id": "start"}, "'decoder_start_token_id' is \"start\""),
    ],
)
def test_special_tokens_that_are_none(
    changes: dict[str, Any], message: str, bart: Path, ends: Callable[..., str]
) -> None:
    change_json(bart / "generation_config.json", **changes)
    assert f"{message} in generation_config.json, which is no token of the model's 30" in ends(3, bart)


def test_a_damaged_file_of_settings(bart: Path, ends: Callable[..., str]) -> None:
    (bart / "generation_config.json").write_text('{"num_beams": ')
    assert "generation_config.json is not valid JSON" in ends(3, bart)


def test_settings_that_transformers_itself_rejects(bart: Path, ends: Callable[..., str]) -> None:
    change_json(bart / "generation_config.json", max_new_tokens=-3)
    assert "transformers rejects generation_config.json: `max_new_tokens` must be greater than 0" in ends(3, bart)


def test_what_leaves_the_text_alone_is_no_reason_to_refuse(bart: Path) -> None:
    from compactor.checkpoint import read_checkpoint
    from compactor.generation_settings import check_generation_settings

    change_json(
        bart / "generation_config.json",
        **{"use_cache": False, "num_beams": 4, "num_beam_groups": 1, "diversity_penalty": 0.0, "penalty_alpha": None},
        **{"guidance_scale": 1.0, "forced_bos_token_id": 0, "eos_token_id": [2, 3], "no_repeat_ngram_size": 3},
        **{"length_penalty": 2.0, "early_stopping": True, "suppress_tokens": [5], "cache_implementation": "dynamic"},
    )
    check_generation_settings(read_checkpoint(bart))


def test_settings_are_read_before_anything_slow_begins(bart: Path, tmp_path: Path) -> None:
    change_json(bart / "generation_config.json", cache_implementation="static")
    said: list[str] = []
    with pytest.raises(ModelDirectoryError):
        export(bart, tmp_path / "out", progress=said.append)
    assert said == ["reading the checkpoint"]
