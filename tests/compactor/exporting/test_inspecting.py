from __future__ import annotations

import json

import pytest
import torch

from compactor.errors import ModelDirectoryError
from compactor.exporting.inspecting import AttentionSummary, FeedForwardSummary, inspect
from tests.compactor.checkpoint.test_pruned_heads import PRUNED, narrow, zeroed
from tests.compactor.checkpoints import (
    FAMILIES,
    HEADS,
    LAYERS,
    NEURONS,
    WIDTH,
    config,
    hybrid_scores,
    modules,
    scores_name,
    sparse_args,
    tensors,
    write,
)

ATTENTION, FEED_FORWARD = 4 * WIDTH * WIDTH, 2 * WIDTH * NEURONS


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dense_model_loses_nothing(tmp_path, family):
    weights = tensors(family)
    found = inspect(write(tmp_path, weights, config(family)))
    assert [layer.path for layer in found.layers] == [
        f"layers.{index}.{kind}" for index in range(LAYERS) for kind in ("attention", "feed_forward")
    ]
    parameters = sum(tensor.numel() for tensor in weights.values())
    assert found.parameters == (parameters, parameters) and found.fp32_bytes == (4 * parameters, 4 * parameters)
    assert found.macs_per_token == (LAYERS * (ATTENTION + FEED_FORWARD),) * 2
    assert found.notes == ("the model is dense: nothing to remove",)
    assert (found.removed.heads, found.removed.channels, found.removed.neurons, found.removed.sublayers) == (0, 0, 0, 0)
    assert all(layer.density == 1 for layer in found.layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_heads_channels_and_neurons(tmp_path, family):
    weights = tensors(family)
    query, key, value, output, first, second = modules(family, 0)
    weights[f"{value}.weight"][:4] = 0  # head 0: V is the constant of its bias, so dead
    weights[f"{output}.weight"][:, 4:8] = 0  # head 1: never read, so dead
    weights[f"{key}.weight"][8:12] = 0  # head 2: no Q.K, but a live V: uniform, stays
    weights[f"{query}.weight"][12:15] = 0  # head 3: three channels of Q are zero, one of them has a bias
    weights[f"{query}.bias"][12:14] = 0
    weights[f"{first}.weight"][:5] = 0  # constant neurons
    weights[f"{second}.weight"][:, 3:9] = 0  # unread neurons
    found = inspect(write(tmp_path, weights, config(family)))

    attention, feed_forward, *_ = found.layers
    assert isinstance(attention, AttentionSummary) and isinstance(feed_forward, FeedForwardSummary)
    assert attention.heads == (HEADS, 2) and attention.uniform_heads == 1
    assert attention.qk_width == (4, 2) and attention.v_width == (4, 4)
    assert attention.weights == (ATTENTION, 2 * (2 + 2 + 4 + 4) * WIDTH)
    zeros = 3 * 4 * WIDTH + 3 * WIDTH
    assert attention.density == pytest.approx(1 - zeros / ATTENTION)
    assert feed_forward.width == (NEURONS, NEURONS - 9)
    assert feed_forward.weights == (FEED_FORWARD, 2 * WIDTH * (NEURONS - 9))
    assert found.removed.heads == 2 and found.removed.channels == 4 and found.removed.neurons == 9
    assert found.removed.sublayers == 0
    saved = attention.weights[0] - attention.weights[1] + feed_forward.weights[0] - feed_forward.weights[1]
    assert found.macs_per_token[0] - found.macs_per_token[1] == saved
    assert found.parameters[0] - found.parameters[1] == saved
    assert found.fp32_bytes[0] - found.fp32_bytes[1] == 4 * saved


def test_counts_sublayers_of_which_only_a_bias_is_left(tmp_path):
    weights = tensors()
    weights[f"{modules('bert', 0)[3]}.weight"].zero_()
    weights[f"{modules('bert', 1)[5]}.weight"].zero_()
    found = inspect(write(tmp_path, weights))
    assert found.removed.sublayers == 2
    attention, _, _, feed_forward = found.layers
    assert attention.heads == (HEADS, 0) and attention.qk_width == (4, 0) and attention.weights[1] == 0
    assert feed_forward.width == (NEURONS, 0) and feed_forward.weights[1] == 0


def test_a_layer_of_uniform_heads_alone_keeps_one_channel(tmp_path):
    weights = tensors()
    weights[f"{modules()[1]}.weight"].zero_()
    attention, *_ = inspect(write(tmp_path, weights)).layers
    assert attention.heads == (HEADS, HEADS) and attention.uniform_heads == HEADS and attention.qk_width == (4, 1)


def test_zeros_without_structure_remove_nothing_and_say_so(tmp_path):
    weights = tensors()
    weights[f"{modules()[0]}.weight"][0, 0] = 0
    found = inspect(write(tmp_path, weights))
    assert found.notes == ("the zeros fill no whole head, channel or neuron: nothing to remove",)
    assert found.macs_per_token[0] == found.macs_per_token[1]


def test_the_three_kinds_of_one_checkpoint_look_the_same(tmp_path):
    zeros = inspect(write(tmp_path / "zeros", zeroed(tensors())))
    pruned = inspect(write(tmp_path / "pruned", narrow(tensors()), config(pruned_heads=PRUNED)))
    assert (zeros.format, pruned.format) == ("plain", "head_pruned")
    assert zeros.layers == pruned.layers and zeros.removed == pruned.removed
    assert zeros.parameters == pruned.parameters and zeros.removed.heads == 3

    raw = inspect(write(tmp_path / "raw", tensors() | hybrid_scores(), masks=sparse_args()))
    assert raw.format == "nn_pruning"
    assert raw.parameters[0] == sum(tensor.numel() for tensor in tensors().values()), "scores are no parameters"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_changes_no_count(tmp_path, dtype):
    half = inspect(write(tmp_path / "half", zeroed(tensors(dtype=dtype))))
    assert half.layers == inspect(write(tmp_path / "full", zeroed(tensors()))).layers


def test_an_unknown_family_is_said_plainly(tmp_path):
    weights = {name.replace(".attention.", ".mixer."): tensor for name, tensor in tensors().items()}
    weights = {name.replace("intermediate", "up"): tensor for name, tensor in weights.items()}
    found = inspect(write(tmp_path, weights, config(model_type="novel")))
    assert found.layers == () and found.skipped == ()
    assert found.notes == ("no layer of 'novel' has names known here; the export finds its blocks in the graph",)
    assert found.macs_per_token == (0, 0)


@pytest.mark.parametrize(
    ("changes", "extra", "reason"),
    [
        ({"num_attention_heads": None}, {}, "no number of heads"),
        ({"position_embedding_type": "relative_key"}, {}, "its positions enter Q and K"),
        ({"rope_theta": 1e4}, {}, "its positions enter Q and K"),
        ({"model_type": "nystromformer"}, {}, "replaces softmax attention"),
        ({}, {"bert.encoder.layer.0.attention.self.q_layernorm.weight": (16,)}, "not part of plain attention"),
        ({}, {"bert.encoder.layer.0.attention.self.distance_embedding.weight": (9, 4)}, "not part of plain attention"),
    ],
)
def test_attention_it_cannot_judge_is_skipped_with_the_reason(tmp_path, changes, extra, reason):
    weights = tensors() | {name: torch.ones(shape) for name, shape in extra.items()}
    found = inspect(write(tmp_path, weights, config(**changes)))
    assert reason in found.skipped[0].reason
    assert found.skipped[0].path == "layers.0.attention"
    assert "layers.0.feed_forward" in [layer.path for layer in found.layers]
    assert found.notes == (), "no claim that the model is dense"


def test_a_feed_forward_block_it_cannot_judge_is_skipped(tmp_path):
    weights = tensors("vit5") | {"vit.layers.0.mlp.norm.weight": torch.ones(NEURONS)}
    found = inspect(write(tmp_path, weights, config("vit5")))
    assert [(skip.path, "vit.layers.0.mlp.norm.weight" in skip.reason) for skip in found.skipped] == [
        ("layers.0.feed_forward", True)
    ]
    assert [layer.path for layer in found.layers] == [
        *("layers.0.attention", "layers.1.attention", "layers.1.feed_forward"),
    ]


def test_layers_without_known_attention_keep_their_numbers(tmp_path):
    weights = {name.replace("self.query.", "self.query_proj."): tensor for name, tensor in tensors().items()}
    found = inspect(write(tmp_path, weights, config(model_type="deberta")))
    assert [skip.path for skip in found.skipped] == ["layers.0.attention", "layers.1.attention"]
    assert [layer.path for layer in found.layers] == ["layers.0.feed_forward", "layers.1.feed_forward"]


def test_several_feed_forward_blocks_in_a_layer_are_numbered_as_in_the_graph(tmp_path):
    weights = tensors()
    for part in ("weight", "bias"):
        for block in ("intermediate", "output"):
            source = f"bert.encoder.layer.0.{block}.dense.{part}"
            weights[f"bert.encoder.layer.0.ffn.0.{block}.dense.{part}"] = weights[source].clone()
    found = inspect(write(tmp_path, weights, config(model_type="mobilebert")))
    assert found.skipped == ()
    assert [layer.path for layer in found.layers] == [
        *("layers.0.attention", "layers.0.feed_forward", "layers.0.feed_forward_2"),
        *("layers.1.attention", "layers.1.feed_forward"),
    ]


# Encoder-decoders


def bart_tensors():
    """Two layers in each half, of which the decoder's look at the encoder's states as well."""
    weights = {}
    for half in ("encoder", "decoder"):
        for name, tensor in tensors("other").items():
            weights[name.replace("model.layers", f"model.{half}.layers")] = tensor
            if half == "decoder" and "self_attn" in name:
                crossing = name.replace("model.layers", "model.decoder.layers").replace("self_attn", "encoder_attn")
                weights[crossing] = tensor.clone()
    return weights


def bart_config(**changes):
    sizes = {"hidden_size": None, "num_attention_heads": None, "num_hidden_layers": None, "intermediate_size": None}
    halves = {
        f"{half}_{name}": size
        for half in ("encoder", "decoder")
        for name, size in (("layers", LAYERS), ("attention_heads", HEADS), ("ffn_dim", NEURONS))
    }
    return config("bart", **{**sizes, **halves, "d_model": WIDTH, "is_encoder_decoder": True, **changes})


BART = [
    *(f"encoder.layers.{layer}.{kind}" for layer in range(LAYERS) for kind in ("attention", "feed_forward")),
    *(
        f"decoder.layers.{layer}.{kind}"
        for layer in range(LAYERS)
        for kind in ("attention", "cross_attention", "feed_forward")
    ),
]


def test_both_halves_of_an_encoder_decoder_by_the_names_of_its_export(tmp_path):
    weights = bart_tensors()
    for number, name in enumerate(("model.decoder.layers.1.self_attn", "model.decoder.layers.0.encoder_attn")):
        weights[f"{name}.out_proj.weight"][:, : 4 * (number + 1)] = 0
    weights["model.encoder.layers.1.fc1.weight"][:7] = 0
    found = inspect(write(tmp_path, weights, bart_config()))
    assert [layer.path for layer in found.layers] == BART
    assert found.skipped == ()
    left = {layer.path: layer.heads[1] if layer.kind == "attention" else layer.width[1] for layer in found.layers}
    assert left.pop("decoder.layers.1.attention") == HEADS - 1
    assert left.pop("decoder.layers.0.cross_attention") == HEADS - 2
    assert left.pop("encoder.layers.1.feed_forward") == NEURONS - 7
    assert set(left.values()) == {HEADS, NEURONS}
    assert found.macs_per_token[0] == LAYERS * (3 * ATTENTION + 2 * FEED_FORWARD)
    assert (found.removed.heads, found.removed.neurons) == (3, 7)


def test_the_halves_may_have_other_numbers_of_heads(tmp_path):
    found = inspect(write(tmp_path, bart_tensors(), bart_config(decoder_attention_heads=2)))
    heads = {layer.path: layer.heads for layer in found.layers if layer.kind == "attention"}
    assert {shape for path, shape in heads.items() if path.startswith("encoder")} == {(HEADS, HEADS)}
    assert {shape for path, shape in heads.items() if path.startswith("decoder")} == {(2, 2)}


def test_a_decoder_whose_number_of_heads_is_not_stated(tmp_path):
    found = inspect(write(tmp_path, bart_tensors(), bart_config(decoder_attention_heads=None)))
    assert [(skip.path, skip.reason) for skip in found.skipped] == [
        (path, "the config states no number of heads")
        for path in BART
        if path.startswith("decoder") and not path.endswith("feed_forward")
    ]


def test_raw_masks_of_cross_attention_are_folded(tmp_path):
    weights = bart_tensors()
    for name in [name for name in weights if name.endswith(".weight") and "_attn." in name]:
        weights[scores_name(name.removesuffix(".weight"))] = torch.ones(WIDTH // 4, WIDTH // 4)
    crossing = "model.decoder.layers.0.encoder_attn"
    weights[scores_name(f"{crossing}.v_proj")][:2] = -9
    args = sparse_args(dense_pruning_method="disabled")
    found = inspect(write(tmp_path, weights, bart_config(), masks=args))
    assert found.format == "nn_pruning"
    heads = {layer.path: layer.heads for layer in found.layers if layer.kind == "attention"}
    assert heads.pop("decoder.layers.0.cross_attention") == (HEADS, HEADS - 2)
    assert set(heads.values()) == {(HEADS, HEADS)}


def test_shared_key_heads_are_skipped(tmp_path):
    weights = tensors("other")
    for layer in range(LAYERS):
        for module in modules("other", layer)[1:3]:
            for part in ("weight", "bias"):
                weights[f"{module}.{part}"] = weights[f"{module}.{part}"][:8]
    found = inspect(write(tmp_path, weights, config("other", hidden_size=None)))
    assert len(found.skipped) == LAYERS and "which 4 heads do not share evenly" in found.skipped[0].reason


def test_to_json_is_plain_and_complete(tmp_path):
    found = inspect(write(tmp_path, zeroed(tensors())))
    document = found.to_json()
    assert json.loads(json.dumps(document)) == document
    assert document["layers"][0]["heads"] == [HEADS, HEADS - 2]
    assert document["layers"][0]["kind"] == "attention" and document["layers"][1]["kind"] == "feed_forward"
    assert document["removed"] == {"heads": 3, "channels": 0, "neurons": 0, "sublayers": 0}
    assert [file["name"] for file in document["files"]] == ["config.json", "model.safetensors"]
    assert document["architectures"] == ["BertForSequenceClassification"]


def test_the_example_checkpoint(example_checkpoint):
    found = inspect(example_checkpoint)
    assert [layer.heads[1] for layer in found.layers[::2]] == [4, 3, 4]
    assert [layer.width[1] for layer in found.layers[1::2]] == [1209, 496, 83]
    assert found.removed.heads == 25 and found.removed.neurons == 3 * 1536 - 1209 - 496 - 83


def test_a_damaged_directory_is_refused(tmp_path):
    with pytest.raises(ModelDirectoryError):
        inspect(tmp_path)


def test_pickles_need_leave(tmp_path):
    write(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelDirectoryError):
        inspect(tmp_path)
    assert inspect(tmp_path, allow_pickle=True).format == "plain"
