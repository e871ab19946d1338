"""``runtime.load`` of a folder of modules gives the vectors that sentence-transformers itself gives."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import onnxruntime
import pytest
import sentence_transformers
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Dropout,
    LayerNorm,
    Normalize,
    Pooling,
    Router,
    Transformer,
    WeightedLayerPooling,
)
from torch import nn

import compactor
import compactor.runtime
from compactor.errors import ModelDirectoryError, UsageError
from compactor.runtime.answers import Embedded
from tests.answers.sentences import SIX, TEXTS, WIDTH, edit, load, save
from tests.slow import slow_after_first


def check(model: compactor.runtime.Model, reference: SentenceTransformer, texts: list[str] = TEXTS, **options: Any):
    answers = model(texts, **options)
    assert all(isinstance(answer, Embedded) for answer in answers)
    expected = reference.encode(texts, **options)
    np.testing.assert_allclose([answer.vector for answer in answers], expected, atol=2e-4)


MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


@pytest.mark.parametrize(
    "mode", [*MODES, ("mean", "max"), ("cls", "lasttoken", "weightedmean")], ids=lambda mode: "+".join([*mode][:30])
)
def test_poolings(base, tmp_path, mode):
    reference = save(tmp_path / "masked", base("BertModel"), Pooling(WIDTH, pooling_mode=mode))
    check(load(tmp_path / "masked", tmp_path / "out"), reference)


@pytest.mark.parametrize("mode", MODES)
def test_poolings_that_leave_out_the_prompt(base, tmp_path, mode):
    pooling = Pooling(WIDTH, pooling_mode=mode, include_prompt=False)
    prompts = {"ask": "what is said of : ", "empty": ""}
    reference = save(tmp_path / "masked", base("BertModel"), pooling, prompts=prompts)
    model = load(tmp_path / "masked", tmp_path / "out")
    for options in ({}, {"prompt_name": "ask"}, {"prompt_name": "empty"}, {"prompt": "Look ! "}):
        check(model, reference, **options)


def test_flags_of_old_folders(base, tmp_path):
    """Before version 5 a flag stood for each mode; all of them may be false."""
    reference = save(tmp_path / "masked", base("BertModel"), Pooling(WIDTH, pooling_mode="cls"))
    path = next((tmp_path / "masked").glob("*_Pooling")) / "config.json"
    for number, flags in enumerate(
        (
            {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True},
            {"pooling_mode_cls_token": True, "pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False},
            {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False},
        )
    ):
        path.write_text(json.dumps({"word_embedding_dimension": WIDTH, **flags}))
        reference = SentenceTransformer(str(tmp_path / "masked"), device="cpu")
        check(load(tmp_path / "masked", tmp_path / f"out{number}"), reference)


DENSE = [
    Dense(WIDTH, 12),
    Dense(WIDTH, 12, bias=False, activation_function=nn.Identity()),
    Dense(WIDTH, 12, activation_function=nn.ReLU()),
    Dense(WIDTH, 12, activation_function=nn.GELU()),
    Dense(WIDTH, 12, activation_function=nn.SiLU()),
    Dense(WIDTH, 12, activation_function=nn.Sigmoid()),
]


@pytest.mark.parametrize("dense", DENSE, ids=lambda dense: type(dense.activation_function).__name__)
def test_projections(base, tmp_path, dense):
    reference = save(tmp_path / "masked", base("BertModel"), Pooling(WIDTH, pooling_mode="mean"), dense)
    check(load(tmp_path / "masked", tmp_path / "out"), reference)


@SIX
@pytest.mark.parametrize("width", [WIDTH, 10])
def test_residual_projections(base, tmp_path, width):
    dense = Dense(WIDTH, width, use_residual=True)
    reference = save(tmp_path / "masked", base("BertModel"), Pooling(WIDTH, pooling_mode="mean"), dense)
    check(load(tmp_path / "masked", tmp_path / "out"), reference)


def test_a_projection_of_tokens(base, tmp_path):
    dense = Dense(WIDTH, 12, module_input_name="token_embeddings")
    reference = save(tmp_path / "masked", base("BertModel"), dense, Pooling(12, pooling_mode="max"))
    check(load(tmp_path / "masked", tmp_path / "out"), reference)


def test_norms_and_what_does_nothing(base, tmp_path):
    reference = save(
        tmp_path / "masked",
        base("BertModel"),
        WeightedLayerPooling(WIDTH, num_hidden_layers=2, layer_start=1),
        Pooling(WIDTH, pooling_mode="mean"),
        Dropout(0.5),
        LayerNorm(WIDTH),
        Dense(WIDTH, 12),
        Normalize(),
    )
    check(load(tmp_path / "masked", tmp_path / "out"), reference)


def test_a_weighted_layer_pooling_over_all_layers_is_refused(base, tmp_path):
    pooling = WeightedLayerPooling(WIDTH, num_hidden_layers=2, layer_start=1)
    save(tmp_path / "masked", base("BertModel"), pooling, Pooling(WIDTH, pooling_mode="mean"))
    edit(tmp_path / "masked/config.json", output_hidden_states=True)
    with pytest.raises(ModelDirectoryError, match="WeightedLayerPooling"):
        compactor.export(tmp_path / "masked", tmp_path / "out")


def test_pickled_weights_of_a_module(base, tmp_path):
    """Refused, or read with leave; the artefact holds safetensors."""
    reference = save(tmp_path / "masked", base("BertModel"), Pooling(WIDTH, pooling_mode="mean"), Dense(WIDTH, 12))
    folder = next((tmp_path / "masked").glob("*_Dense"))
    (folder / "model.safetensors").unlink()
    torch.save(reference[2].state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelDirectoryError, match="pickled"):
        compactor.export(tmp_path / "masked", tmp_path / "out")
    model = load(tmp_path / "masked", tmp_path / "out", allow_pickle=True)
    assert not list((tmp_path / "out").rglob("*.bin"))
    check(model, reference)


def test_prompts_and_dimensions(base, tmp_path):
    """By name, by role, by default, one's own; and the numbers that are kept."""
    prompts = {"query": "search : ", "document": "text : ", "other": "it says that "}
    reference = save(
        tmp_path / "masked",
        base("BertModel"),
        Pooling(WIDTH, pooling_mode="mean"),
        Normalize(),
        prompts=prompts,
        default_prompt_name="other",
        truncate_dim=8,
    )
    assert reference.truncate_dim == 8 and reference.default_prompt_name == "other"
    model = load(tmp_path / "masked", tmp_path / "out")
    for options in ({}, {"prompt_name": "query"}, {"prompt": "mine "}, {"prompt": ""}):
        check(model, reference, **options)
    for role, encode in (("query", reference.encode_query), ("document", reference.encode_document)):
        found = [answer.vector for answer in model(TEXTS, role=role)]
        np.testing.assert_allclose(found, encode(TEXTS), atol=2e-4)
    with pytest.raises(ValueError, match="no prompt 'nothing'"):
        model(TEXTS, prompt_name="nothing")
    with pytest.raises(ValueError, match="no role 'reader'"):
        model(TEXTS, role="reader")


def test_routes(base, tmp_path):
    """One artefact for queries, one for documents; without a word which, the routes are named."""
    encoder = str(base("BertModel"))
    router = Router.for_query_document(
        [Transformer(encoder), Pooling(WIDTH, pooling_mode="mean")],
        [Transformer(encoder), Pooling(WIDTH, pooling_mode="cls"), Dense(WIDTH, WIDTH)],
    )
    nn.init.normal_(router.sub_modules["document"][2].linear.bias)
    made = SentenceTransformer(modules=[router, Normalize()], device="cpu", prompts={"query": "ask : "})
    made.save(str(tmp_path / "masked"))
    reference = SentenceTransformer(str(tmp_path / "masked"), device="cpu")
    for route, encode in (("query", reference.encode_query), ("document", reference.encode_document)):
        model = load(tmp_path / "masked", tmp_path / route, route=route)
        assert json.loads((tmp_path / route / "compactor.json").read_text())["source"]["path_name"] == "masked"
        found = [answer.vector for answer in model(TEXTS, role=route)]
        np.testing.assert_allclose(found, encode(TEXTS), atol=2e-4)
    config = json.loads((tmp_path / "masked/router_config.json").read_text())
    for changes, says in (
        ({"parameters": {"route_mappings": {"('query', None)": "document"}}}, "route_mappings"),
        ({"types": dict.fromkeys(config["types"], "sentence_transformers.models.StaticEmbedding")}, "StaticEmbedding"),
    ):
        edit(tmp_path / "masked/router_config.json", **changes)
        with pytest.raises(ModelDirectoryError, match=says):
            compactor.export(tmp_path / "masked", tmp_path / "out", route="query")
        edit(tmp_path / "masked/router_config.json", **config)
    for route, says in ((None, "query, document"), ("none", "no 'none'")):
        with pytest.raises(UsageError, match=says):
            compactor.export(tmp_path / "masked", tmp_path / "out", route=route)
    with pytest.raises(UsageError, match="no routes"):
        compactor.export(base("BertModel"), tmp_path / "out", route="query")


INSIDE = {
    "all": [
        Dense(WIDTH, 16, module_input_name="token_embeddings", activation_function=nn.GELU()),
        Pooling(16, pooling_mode=("cls", "max", "lasttoken")),
        Dropout(0.5),
        LayerNorm(48),
        Dense(48, 12, activation_function=nn.SiLU()),
        Normalize(),
    ],
    **{mode: [Pooling(WIDTH, pooling_mode=mode)] for mode in MODES},
}


@pytest.mark.parametrize("name", slow_after_first(INSIDE))
def test_vectors_inside_of_the_graph(base, tmp_path, name):
    """``--embed``: the graph's own second output is the vector, on batches padded on either side."""
    reference = save(tmp_path / "masked", base("BertModel"), *INSIDE[name], truncate_dim=10)
    compactor.export(tmp_path / "masked", tmp_path / "out", embed=True)
    manifest = json.loads((tmp_path / "out/compactor.json").read_text())
    assert manifest["recipe"]["pack"] and manifest["recipe"]["embed"]
    session = onnxruntime.InferenceSession(tmp_path / "out/onnx/model.onnx")
    assert [output.name for output in session.get_outputs()] == ["last_hidden_state", "sentence_embedding"]
    # Before version 6 the library weighted a text's tokens by the padding on their left, too.
    sides = ("right",) if name == "weightedmean" and sentence_transformers.__version__ < "6" else ("right", "left")
    for side in sides:  # BERT's positions count from the left, so each has its own answers
        options = {"padding_side": side}
        expected = SentenceTransformer(str(tmp_path / "masked"), device="cpu", tokenizer_kwargs=options).encode(TEXTS)
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "masked", **options)
        feeds = dict(tokenizer(TEXTS, padding=True, return_tensors="np"))
        names = [entry.name for entry in session.get_inputs()]
        (found,) = session.run(["sentence_embedding"], {name: feeds[name] for name in names})
        np.testing.assert_allclose(found, expected, atol=2e-4)
    check(compactor.runtime.load(tmp_path / "out", precision="fp32", threads=1), reference)
    int8 = compactor.runtime.load(tmp_path / "out", precision="int8", threads=1)(TEXTS)
    assert all(answer.vector.shape == found[0].shape for answer in int8)
    assert "sentence_embedding" in json.dumps(compactor.verify(tmp_path / "out", tmp_path / "masked"))


def test_what_cannot_be_embedded_is_refused(base, tmp_path):
    with pytest.raises(UsageError, match="--embed is for"):
        compactor.export(base("BertForSequenceClassification"), tmp_path / "out", embed=True)
    save(tmp_path / "masked", base("BertModel"), Pooling(WIDTH, pooling_mode="mean", include_prompt=False))
    with pytest.raises(UsageError, match="include_prompt"):
        compactor.export(tmp_path / "masked", tmp_path / "out", embed=True)


def test_the_folder_that_modules_json_names_is_the_model(base, tmp_path):
    """An old layout, with another whole model in the root."""
    reference = save(tmp_path / "masked", base("BertModel"), Pooling(WIDTH, pooling_mode="mean"))
    inner = tmp_path / "masked/0_Transformer"
    inner.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.move(tmp_path / "masked" / name, inner / name)
    shutil.move(tmp_path / "masked/sentence_bert_config.json", inner / "sentence_bert_config.json")
    modules = json.loads((tmp_path / "masked/modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (tmp_path / "masked/modules.json").write_text(json.dumps(modules))
    shutil.copytree(base("BertForSequenceClassification"), tmp_path / "masked", dirs_exist_ok=True)
    check(load(tmp_path / "masked", tmp_path / "out"), reference)


def test_only_the_librarys_own_files_limit_a_text(base, tmp_path):
    """The first of them; none without ``modules.json``, and none of another name."""
    reference = save(tmp_path / "masked", base("BertModel"), Pooling(WIDTH, pooling_mode="mean"))
    edit(tmp_path / "masked/sentence_mine_config.json", max_seq_length=3)
    edit(tmp_path / "masked/sentence_roberta_config.json", max_seq_length=3)
    check(load(tmp_path / "masked", tmp_path / "out"), reference)
    plain = tmp_path / "plain"
    shutil.copytree(base("BertModel"), plain)
    edit(plain / "sentence_bert_config.json", max_seq_length=3)
    check(load(plain, tmp_path / "plain-out"), reference)


def test_what_a_folder_says_it_is_counts_for_more_than_a_mark_it_kept(base, tmp_path):
    """A SentenceTransformer trained from a CrossEncoder."""
    reference = save(tmp_path / "masked", base("BertModel"), Pooling(WIDTH, pooling_mode="mean"))
    edit(tmp_path / "masked/config.json", sbert_ce_default_activation_function="torch.nn.modules.linear.Identity")
    check(load(tmp_path / "masked", tmp_path / "out"), reference)


def test_a_prompt_that_ends_in_a_special_token(base, tmp_path):
    """That token stands behind the text where nothing is excluded, and so is not counted: as the library counts."""
    pooling = Pooling(WIDTH, pooling_mode="mean", include_prompt=False)
    save(tmp_path / "masked", base("BertModel"), pooling)
    content = json.loads((tmp_path / "masked/tokenizer.json").read_text())
    edit(tmp_path / "masked/tokenizer.json", **{**content, "post_processor": None})
    edit(tmp_path / "masked/tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    reference = SentenceTransformer(str(tmp_path / "masked"), device="cpu")
    model = load(tmp_path / "masked", tmp_path / "out")
    for prompt in ("say ", "say [MASK]", "say it [SEP]"):
        check(model, reference, prompt=prompt)


def test_lengths_beyond_the_models_are_refused(base, tmp_path):
    save(tmp_path / "masked", base("BertModel"), Pooling(WIDTH, pooling_mode="mean"))
    edit(tmp_path / "masked/sentence_bert_config.json", max_seq_length=6, query_length=9)
    with pytest.raises(ModelDirectoryError, match="query_length"):
        compactor.export(tmp_path / "masked", tmp_path / "out")
