from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers

from compactor.checkpoint import read_checkpoint
from compactor.checkpoint.naming import find_layers
from compactor.errors import ModelDirectoryError
from compactor.passes.graph.liveness import head_liveness, neuron_liveness
from tests.compactor.checkpoint.test_pruned_heads import PRUNED, narrow, zeroed
from tests.compactor.checkpoints import FAMILIES, config, hybrid_scores, modules, sparse_args, tensors, write


@pytest.mark.parametrize("family", FAMILIES)
def test_knows_the_layers_of_a_family(family):
    layers = find_layers(tensors(family).keys())
    assert [layer.index for layer in layers] == [0, 1]
    for layer in layers:
        assert layer.attention and layer.feed_forward
        names = (*layer.attention.inputs, layer.attention.output, *layer.feed_forward.inputs, layer.feed_forward.output)
        assert names == modules(family, layer.index)
        assert layer.attention.unknown == ()


def test_layers_are_in_numeric_order():
    names = [f"encoder.layer.{index}.{part}.dense.weight" for index in range(12) for part in ("intermediate", "output")]
    assert [layer.index for layer in find_layers(names)] == list(range(12))


def test_gated_feed_forward_blocks_are_known():
    names = [f"model.layers.0.mlp.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")]
    (layer,) = find_layers(names)
    assert layer.feed_forward and len(layer.feed_forward.inputs) == 2 and layer.attention is None


def test_what_is_added_to_the_logits_is_harmless_and_what_changes_q_is_not():
    names = set(tensors("bert"))
    prefix = modules()[0].removesuffix("query")
    (layer, _) = find_layers(names | {f"{prefix}distance_embedding.weight"})
    assert layer.attention and layer.attention.unknown == (f"{prefix}distance_embedding.weight",)
    for harmless in (f"{prefix}relative_attention_bias.weight", prefix.replace("self", "output") + "LayerNorm.gamma"):
        (layer, _) = find_layers(names | {harmless})
        assert layer.attention and layer.attention.unknown == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 31}, r"word_embeddings\.weight' is 30 x 16, but the config asks for 31 x 16"),
        ({"hidden_size": 32, "num_attention_heads": 4}, "word_embeddings"),
        ({"max_position_embeddings": 21}, "position_embeddings"),
        ({"type_vocab_size": 3}, "token_type_embeddings"),
        ({"num_hidden_layers": 3}, "states 3 layers, but the weights hold 2"),
        ({"num_hidden_layers": 1}, "states 1 layers, but the weights hold 2"),
        ({"intermediate_size": 25}, r"intermediate\.dense\.weight' is 24 x 16, but the config asks for 25 x 16"),
    ],
)
def test_a_config_of_other_sizes_than_the_weights_is_refused(tmp_path, changes, message):
    with pytest.raises(ModelDirectoryError, match=message) as error:
        read_checkpoint(write(tmp_path, tensors(), config(**changes)))
    assert str(tmp_path / "config.json") in str(error.value)


def test_a_projection_of_another_shape_is_refused(tmp_path):
    weights = tensors()
    weights[f"{modules()[3]}.weight"] = torch.ones(16, 12)
    with pytest.raises(ModelDirectoryError, match=r"output\.dense\.weight' is 16 x 12"):
        read_checkpoint(write(tmp_path, weights))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 32}, "states 32 as its hidden size, but no weight has a dimension above 30"),
        ({"intermediate_size": 31}, "states 31 as its feed-forward size"),
        ({"vocab_size": 1 << 20}, "states 1048576 as its vocabulary size"),
        ({"max_position_embeddings": 1 << 20}, "states 1048576 as its position size"),
        ({"embedding_size": 31}, "states 31 as its embedding size"),
        ({"num_hidden_layers": 4000}, "states 4000 layers, but the weights hold"),
    ],
)
def test_sizes_of_an_unknown_family_are_bounded_by_its_weights(tmp_path, changes, message):
    with pytest.raises(ModelDirectoryError, match=message):
        read_checkpoint(write(tmp_path, tensors(), config(model_type="novel", **changes)))


def test_an_unknown_family_may_narrow_matrices_by_its_own_rules(tmp_path):
    changes = {"intermediate_size": 20, "hidden_size": 20, "vocab_size": 8192, "num_hidden_layers": [1, 1]}
    assert read_checkpoint(write(tmp_path, tensors(), config(model_type="novel", **changes))).format == "plain"


def test_embeddings_may_be_narrower_than_the_model(tmp_path):
    weights = tensors("mpnet")
    weights["mpnet.embeddings.word_embeddings.weight"] = torch.ones(30, 8)
    assert read_checkpoint(write(tmp_path, weights, config("mpnet", embedding_size=8))).format == "plain"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text("x"), "is a file"),
        (lambda path: path.mkdir(), r"no config\.json"),
    ],
    ids=["absent", "file", "empty"],
)
def test_what_is_no_model_directory_is_refused(tmp_path, make, message):
    path = tmp_path / "model"
    make(path)
    with pytest.raises(ModelDirectoryError, match=message):
        read_checkpoint(path)


def test_old_sentence_transformers_folders_keep_the_model_one_level_down(tmp_path):
    inner = write(tmp_path / "0_Transformer")
    (tmp_path / "modules.json").write_text(json.dumps([{"idx": 0, "path": "0_Transformer"}, {"path": "1_Pooling"}]))
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.path == tmp_path and checkpoint.model_path == inner
    assert checkpoint.tensors.keys() == tensors().keys()


def test_new_sentence_transformers_folders_keep_it_at_the_root(tmp_path):
    write(tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps([{"idx": 0, "path": ""}, {"path": "1_Pooling"}]))
    assert read_checkpoint(str(tmp_path)).model_path == tmp_path


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        ([{"path": "../outside"}], "as the model's folder"),
        ([{"path": "a/../../outside"}], "as the model's folder"),
        ([{"path": "/outside"}], "as the model's folder"),
        ([{"path": "..\\outside"}], "as the model's folder"),
        ([{"path": ""}], r"has no config\.json"),
        ([{"path": 3}], "as the model's folder"),
        ([{}], "as the model's folder"),
        ([{"path": "absent"}], r"has no config\.json"),
        ([], "lists no modules"),
        ({}, "lists no modules"),
        (["x"], "lists no modules"),
    ],
)
def test_modules_json_may_only_point_inside(tmp_path, listing, message):
    write(tmp_path / "outside")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "modules.json").write_text(json.dumps(listing))
    with pytest.raises(ModelDirectoryError, match=message):
        read_checkpoint(folder)


def test_masks_fold_before_pruned_heads_return(tmp_path):
    """A masked checkpoint that had lost heads: the scores tile the narrow matrices."""
    scores, weights = hybrid_scores(), tensors()
    for layer, heads in PRUNED.items():
        kept = [head for head in range(4) if head not in heads]  # a head is one block of 4 rows
        *inputs, output = modules("bert", int(layer))[:4]
        for module in inputs:
            name = f"{module}.mask_module.context_modules.0.mask_scores"
            scores[name] = scores[name][kept]
        name = f"{output}.mask_module.context_modules.0.mask_scores"
        scores[name] = scores[name][:, kept]
    masks = sparse_args(bias_mask=False)  # a row's bias may hang on a block that only the full matrix has
    folder = write(tmp_path / "both", narrow(weights) | scores, config(pruned_heads=PRUNED), masks=masks)
    checkpoint = read_checkpoint(folder)
    assert checkpoint.format == "nn_pruning" and len(checkpoint.notes) == 2
    unpruned = read_checkpoint(write(tmp_path / "masks", weights | hybrid_scores(), masks=masks))
    expected = zeroed(unpruned.tensors)
    assert all(torch.equal(checkpoint.tensors[name], expected[name]) for name in expected)


def test_the_stock_class_loads_what_was_read(tmp_path):
    checkpoint = read_checkpoint(write(tmp_path, tensors() | hybrid_scores(), masks=sparse_args()))
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**checkpoint.config))
    model.load_state_dict(checkpoint.tensors)


def live_sizes(checkpoint):
    """Live heads, uniform heads among them, and live neurons of every layer."""
    sizes = []
    for layer in find_layers(checkpoint.tensors):
        weight = {name: checkpoint.tensors[f"{name}.weight"].float().T.numpy() for name in modules("bert", layer.index)}
        query, key, value, output, first, second = weight.values()
        bias = checkpoint.tensors[f"{layer.attention.query}.bias"].float().numpy()
        heads = head_liveness(query, bias, key, value, output, heads=checkpoint.config["num_attention_heads"])
        neurons = neuron_liveness([first], second)
        sizes.append((int(heads.heads.sum()), int(heads.uniform.sum()), int(neurons.sum())))
    return list(zip(*sizes, strict=True))


def test_the_example_checkpoint_has_the_live_parts_its_training_run_reported(example_checkpoint):
    checkpoint = read_checkpoint(example_checkpoint)
    assert checkpoint.format == "plain" and "pruned by compactor (hybrid, 33.0 %" in checkpoint.notes[1]
    assert live_sizes(checkpoint) == [(4, 3, 4), (1, 0, 0), (1209, 496, 83)]


def test_the_larger_checkpoint_has_the_live_parts_its_training_run_reported(shared_dir):
    checkpoint = read_checkpoint(shared_dir / "checkpoints" / "sst2-minilm-hybrid")
    assert live_sizes(checkpoint) == [
        (8, 7, 5, 2, 1, 6),
        (4, 1, 0, 0, 1, 1),
        (1495, 1420, 1066, 474, 258, 74),
    ]


def test_reading_twice_gives_the_same_hashes(tmp_path):
    first = read_checkpoint(write(tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert read_checkpoint(tmp_path / "b").files == first.files
