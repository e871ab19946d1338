"""Which class loads a folder, and that what is traced of it gives transformers' own numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import transformers
from numpy.typing import NDArray

from compactor.checkpoint import read_checkpoint
from compactor.errors import ModelDirectoryError
from compactor.importing.classes import stock_class
from compactor.importing.encoder import load_model
from compactor.runtime.verification import Case
from compactor.tasks import find_task
from tests.compactor.stock import align, change_config, change_weights
from tests.slow import slow_unless

WIDTH, VOCABULARY = 16, 60
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
TOWER = {
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
WIDE = {**TOWER, "image_size": (16, 24)}
CLIP_TEXT = {**TEXT, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": VOCABULARY - 1, "projection_dim": 12}
T5 = {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
XLNET = {"vocab_size": VOCABULARY, "d_model": WIDTH, "n_layer": 2, "n_head": 4, "d_inner": 24}
GEMMA = {**TEXT, "head_dim": 4, "num_key_value_heads": 2, "sliding_window": 8}
# Others of FAMILIES compute as one of these does, and are not traced: that takes most of the time.
TRACED = {
    "CLIPVisionModelWithProjection",
    "ViTModel",
    "Dinov2WithRegistersModel",
    "CLIPTextModelWithProjection",
    "SiglipTextModel",
    "T5EncoderModel",
    "UMT5EncoderModel",
    "XLNetForSequenceClassification",
}
QUICK = {"CLIPVisionModelWithProjection", "UMT5EncoderModel", "XLNetForSequenceClassification"}  # exported here alone
STATES, POOLED = ("last_hidden_state",), ("last_hidden_state", "pooler_output")

# The class, its config's class, what the config says, and the outputs of its graph.
FAMILIES = [
    ("CLIPVisionModel", "CLIPVisionConfig", TOWER, POOLED),
    ("CLIPVisionModelWithProjection", "CLIPVisionConfig", TOWER, (*STATES, "image_embeds")),
    ("SiglipVisionModel", "SiglipVisionConfig", TOWER, POOLED),
    ("ViTModel", "ViTConfig", WIDE, POOLED),
    ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {**TOWER, "num_register_tokens": 3}, POOLED),
    ("CLIPTextModel", "CLIPTextConfig", CLIP_TEXT, POOLED),
    ("CLIPTextModelWithProjection", "CLIPTextConfig", CLIP_TEXT, (*STATES, "text_embeds")),
    ("SiglipTextModel", "SiglipTextConfig", TEXT, POOLED),
    ("T5EncoderModel", "T5Config", T5, STATES),
    ("UMT5EncoderModel", "UMT5Config", T5, STATES),
    ("T5ForTokenClassification", "T5Config", T5, ("logits",)),
    ("DPRContextEncoder", "DPRConfig", TEXT, ("pooler_output",)),
    ("XLNetForSequenceClassification", "XLNetConfig", XLNET, ("logits",)),
    ("XLNetModel", "XLNetConfig", {**XLNET, "use_mems_eval": True}, STATES),
    ("UltrabertForSequenceClassification", "UltrabertConfig", TEXT, ("logits",)),
    ("UltrabertModel", "UltrabertConfig", TEXT, STATES),
    ("DeiTForImageClassificationWithTeacher", "DeiTConfig", TOWER, ("logits",)),
]


def build(class_name: str, config_name: str, config: dict[str, Any], folder: Path, **options: Any) -> Any:
    """A random model whose biases are not zero, saved by transformers; skips where it has no such family."""
    if not hasattr(transformers, class_name):
        pytest.skip(f"this version of transformers has no {class_name}")
    torch.manual_seed(0)
    made = getattr(transformers, config_name)(**config)
    model = getattr(transformers, class_name)(made, **options).eval().requires_grad_(False)
    for name, tensor in model.named_parameters():
        if name.endswith("bias"):
            tensor.normal_(0, 0.1)
    model.save_pretrained(folder)
    return model


def run(graph: ir.Model, case: Case, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    session = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    assert tuple(output.name for output in session.get_outputs()) == names
    return dict(zip(names, session.run(None, case.feeds), strict=True))


def assert_real_tokens_agree(case: Case, found: NDArray[Any], expected: NDArray[Any]) -> None:
    """At padded positions a graph may hold anything."""
    assert found.shape == expected.shape
    if case.valid is not None and expected.shape[:2] == case.valid.shape:
        found, expected = found[case.valid], expected[case.valid]
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "config_name", "config", "outputs"),
    slow_unless(lambda family: family[0] not in TRACED or family[0] in QUICK, FAMILIES),
    ids=[each[0] for each in FAMILIES],
)
def test_a_graph_gives_the_numbers_of_the_class_that_is_named(
    name: str, config_name: str, config: dict[str, Any], outputs: tuple[str, ...], tmp_path: Path
) -> None:
    model = build(name, config_name, config, tmp_path / "model")
    loaded = load_model(read_checkpoint(tmp_path / "model"))
    align(loaded.module), align(model)
    assert type(loaded.module).__name__ == name
    assert loaded.task.outputs == outputs
    references = [(case, loaded.run(case)) for case in loaded.cases]
    graph = loaded.trace() if name in TRACED else None
    for case, reference in references:
        expected = model(**{key: torch.from_numpy(array) for key, array in case.feeds.items()}, return_dict=True)
        found = reference if graph is None else run(graph, case, outputs)
        for output in outputs:
            assert np.abs(reference[output]).max() > 0.01
            np.testing.assert_array_equal(reference[output], expected[output].numpy())
            assert_real_tokens_agree(case, found[output], reference[output])


def test_an_encoder_whose_config_calls_itself_an_encoder_decoder(tmp_path: Path) -> None:
    """As sentence-t5's does: the config is that of the whole model."""
    model = build("T5EncoderModel", "T5Config", T5, tmp_path / "model")
    change_config(tmp_path / "model", is_encoder_decoder=True)
    loaded = load_model(read_checkpoint(tmp_path / "model"))
    align(loaded.module), align(model)
    ids = torch.arange(1, 9)[None]
    assert torch.equal(loaded.module(input_ids=ids).last_hidden_state, model(input_ids=ids).last_hidden_state)


@pytest.mark.parametrize("name", ["T5Model", "T5ForConditionalGeneration", "T5ForSequenceClassification"])
def test_the_whole_of_t5_stays_refused(name: str, tmp_path: Path) -> None:
    build(name, "T5Config", T5, tmp_path / "model")
    with pytest.raises(ModelDirectoryError, match="models of type 't5' are not supported: its position"):
        load_model(read_checkpoint(tmp_path / "model"))


def test_a_pooler_is_given_only_where_its_weights_are(tmp_path: Path) -> None:
    build("BertModel", "BertConfig", TEXT, tmp_path / "trained")
    build("BertModel", "BertConfig", TEXT, tmp_path / "none", add_pooling_layer=False)
    build("BertForMaskedLM", "BertConfig", TEXT, tmp_path / "head")
    build("BertForSequenceClassification", "BertConfig", TEXT, tmp_path / "classifier")
    for folder, outputs in (("trained", POOLED), ("none", STATES), ("head", STATES), ("classifier", POOLED)):
        checkpoint = read_checkpoint(tmp_path / folder)
        task = find_task("feature-extraction", checkpoint.config, where=folder)
        assert load_model(checkpoint, task).task.outputs == outputs, folder


@pytest.mark.parametrize(("family", "text"), [("CLIP", CLIP_TEXT), ("Siglip", TEXT)])
def test_a_pair_of_towers_is_exported_by_halves(family: str, text: dict[str, Any], tmp_path: Path) -> None:
    halves = {"text_config": text, "vision_config": TOWER}
    whole = build(f"{family}Model", f"{family}Config", {**halves, "projection_dim": 12}, tmp_path / "model")
    checkpoint = read_checkpoint(tmp_path / "model")
    with pytest.raises(ModelDirectoryError, match="compares texts with images") as caught:
        load_model(checkpoint)
    assert "--task image-feature-extraction" in str(caught.value)
    embed: dict[str, Callable[..., Any]] = {
        "feature-extraction": whole.get_text_features,
        "image-feature-extraction": whole.get_image_features,
    }
    for name, features in embed.items():
        task = find_task(name, checkpoint.config, where="model")
        loaded = load_model(read_checkpoint(tmp_path / "model"), task)
        for case in loaded.cases:
            expected = features(**{key: torch.from_numpy(array) for key, array in case.feeds.items()})
            expected = expected if isinstance(expected, torch.Tensor) else expected.pooler_output
            found = list(loaded.run(case).values())[-1]
            np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_images_of_any_shape_are_refused(tmp_path: Path) -> None:
    config = {key: value for key, value in TOWER.items() if key != "image_size"} | {"num_patches": 4}
    build("Siglip2VisionModel", "Siglip2VisionConfig", config, tmp_path / "model")
    with pytest.raises(ModelDirectoryError, match="takes patches of images of any shape"):
        load_model(read_checkpoint(tmp_path / "model"))


def test_a_decoder_that_looks_both_ways_is_an_encoder(tmp_path: Path) -> None:
    config = {**GEMMA, "use_bidirectional_attention": True}
    build("Gemma3TextModel", "Gemma3TextConfig", config, tmp_path / "model")
    # Version 4 halves the window that it saved when it reads it again.
    model = transformers.Gemma3TextModel.from_pretrained(tmp_path / "model").eval().requires_grad_(False)
    loaded = load_model(read_checkpoint(tmp_path / "model"))
    align(loaded.module), align(model)
    assert loaded.task.name == "feature-extraction"
    for case in loaded.cases:
        expected = model(**{key: torch.from_numpy(array) for key, array in case.feeds.items()}).last_hidden_state
        np.testing.assert_array_equal(loaded.run(case)["last_hidden_state"], expected.numpy())


@pytest.mark.parametrize("name", ["Gemma3TextModel", "LlamaModel", "GPT2ForSequenceClassification"])
def test_a_decoder_stays_refused(name: str, tmp_path: Path) -> None:
    config = {**GEMMA, "use_bidirectional_attention": False} if name != "GPT2ForSequenceClassification" else {}
    small = {"n_embd": WIDTH, "n_layer": 1, "n_head": 4, "vocab_size": VOCABULARY} if not config else config
    config_name = name.replace("ForSequenceClassification", "Model").removesuffix("Model") + "Config"
    build(name, config_name, small, tmp_path / "model")
    with pytest.raises(ModelDirectoryError, match="decoder-only models are not supported"):
        load_model(read_checkpoint(tmp_path / "model"))


@pytest.mark.skipif(not hasattr(transformers, "Gemma4Config"), reason="transformers 4 refuses by its config alone")
def test_a_decoder_that_does_not_do_what_its_config_says(tmp_path: Path) -> None:
    """Gemma 2 hands 'use_bidirectional_attention' to its kernel, and masks as ever."""
    config = {**GEMMA, "use_bidirectional_attention": True}
    build("Gemma2Model", "Gemma2Config", config, tmp_path / "model")
    with pytest.raises(ModelDirectoryError, match="does not follow it in every batch"):
        load_model(read_checkpoint(tmp_path / "model"))


def test_dynamic_angles_are_those_of_the_beginning(tmp_path: Path) -> None:
    """Up to 'max_position_embeddings', which is the longest text of an artefact; and no graph asks for the length."""
    config = {**TEXT, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}
    model = build("NomicBertModel", "NomicBertConfig", config, tmp_path / "model")
    loaded = load_model(read_checkpoint(tmp_path / "model"))
    align(loaded.module), align(model)
    assert max(case.feeds["input_ids"].shape[1] for case in loaded.cases) == loaded.max_tokens == 40
    for case in loaded.cases:
        expected = model(**{key: torch.from_numpy(array) for key, array in case.feeds.items()}).last_hidden_state
        np.testing.assert_array_equal(loaded.run(case)["last_hidden_state"], expected.numpy())
    assert loaded.trace().graph.outputs[0].name == "last_hidden_state"


def test_the_table_of_a_quantized_class_limits_a_text(tmp_path: Path) -> None:
    """I-BERT's table of positions is a class of its own, and begins behind the padding token's as RoBERTa's does."""
    build("IBertModel", "IBertConfig", {**TEXT, "pad_token_id": 1}, tmp_path / "model")
    assert load_model(read_checkpoint(tmp_path / "model")).max_tokens == TEXT["max_position_embeddings"] - 2


def test_a_model_that_raises_what_it_likes_is_told_with_the_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise KeyError("sliding")

    build("BertModel", "BertConfig", TEXT, tmp_path / "model")
    monkeypatch.setattr(transformers.BertModel, "forward", lambda self, input_ids: fail())
    with pytest.raises(ModelDirectoryError, match="fails on two examples: KeyError") as caught:
        load_model(read_checkpoint(tmp_path / "model"))
    assert f"transformers {transformers.__version__}" in caught.value.what


def test_a_pooler_of_another_model_is_a_stray_no_more(tmp_path: Path) -> None:
    """A trunk without a pooler beside the weights of one: they are dropped, and nothing random is given."""
    build(
        "DistilBertModel",
        "DistilBertConfig",
        {"vocab_size": VOCABULARY, "dim": 16, "n_layers": 1, "n_heads": 4, "hidden_dim": 24},
        tmp_path / "model",
    )
    change_weights(tmp_path / "model", lambda tensors: {**tensors, "pooler.dense.weight": torch.ones(16, 16)})
    assert load_model(read_checkpoint(tmp_path / "model")).task.outputs == STATES


@pytest.mark.parametrize("name", ["", "no name", "__init__", "torch", "BertConfig", "AutoModel", "NoSuchModel"])
def test_a_name_that_is_no_model_class(name: str) -> None:
    assert stock_class(name) is None
