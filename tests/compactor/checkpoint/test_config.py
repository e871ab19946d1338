from __future__ import annotations

import json

import pytest

from compactor.checkpoint.config import (
    MAX_JSON_BYTES,
    check_config,
    read_json_object,
    sanitise,
)
from compactor.errors import ExitCode, ModelDirectoryError
from tests.compactor.checkpoints import config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[1]", "holds a list"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": "' + b"x" * MAX_JSON_BYTES + b'"}', "larger than"),
    ],
    ids=["cut", "empty", "not-utf8", "list", "deep", "huge-integer", "too-large"],
)
def test_json_that_is_no_small_object_is_refused(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ModelDirectoryError, match=message) as error:
        read_json_object(path)
    assert error.value.exit_code == ExitCode.MODEL
    assert str(error.value).count("\n") <= 2


def test_json_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ModelDirectoryError, match="cannot be read"):
        read_json_object(tmp_path / "absent.json")


def test_sanitise_drops_what_runs_code_or_picks_a_kernel_at_any_depth():
    dirty = {
        "auto_map": {"AutoModel": "code.Model"},
        "trust_remote_code": True,
        "_attn_implementation": "eager",
        "_attn_implementation_autoset": True,
        "attn_implementation": "sdpa",
        "pruned_heads": {"0": [1]},
        "hidden_size": 16,
        "text_config": {"auto_map": {}, "vocab_size": 3},
        "list": [{"auto_map": {}, "kept": 1}],
    }
    kept = sanitise(dirty)
    assert kept == {"hidden_size": 16, "text_config": {"vocab_size": 3}, "list": [{"kept": 1}]}
    assert "auto_map" in dirty, "the original is not changed"


def test_sizes_are_read_by_the_names_of_the_family():
    bert, distilbert = check_config(config(), ""), check_config(config("distilbert"), "")
    for sizes in (bert, distilbert):
        assert (sizes.hidden, sizes.heads, sizes.layers, sizes.intermediate) == (16, 4, 2, 24)
    assert bert.positions == 20 and distilbert.positions is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": None}, "no 'model_type'"),
        ({"model_type": 3}, "no 'model_type'"),
        ({"architectures": "BertModel"}, "list of class names"),
        ({"hidden_size": 0}, "'hidden_size' must be a whole number"),
        ({"hidden_size": -4}, "'hidden_size' must be a whole number"),
        ({"hidden_size": "16"}, "'hidden_size' must be a whole number"),
        ({"hidden_size": 16.0}, "'hidden_size' must be a whole number"),
        ({"num_hidden_layers": True}, "'num_hidden_layers' must be a whole number"),
        ({"vocab_size": 10**12}, "'vocab_size' must be a whole number from 1 to"),
        ({"max_position_embeddings": 10**9}, "'max_position_embeddings' must be"),
        ({"num_labels": 10**9}, "'num_labels' must be"),
        ({"num_attention_heads": 3}, "not divisible by 3"),
        ({"dim": 32}, "another name for the same size"),
        ({"quantization_config": {"bits": 4}}, "already quantized"),
        ({"layer_norm_type": "batch_norm"}, "which is not known here"),
        ({"is_encoder_decoder": True}, "encoder-decoder models of type 'bert' are not supported"),
        ({"model_type": "t5"}, "of type 't5' are not supported: its position bias"),
        ({"is_encoder_decoder": "no"}, "must be true or false"),
    ],
)
def test_configs_that_cannot_be_handled_are_refused(changes, message):
    with pytest.raises(ModelDirectoryError, match=message) as error:
        check_config(config(**changes), "folder/config.json")
    assert "folder/config.json" in str(error.value)


def test_a_size_for_each_stage_is_range_checked_but_states_no_single_size():
    assert check_config(config(num_attention_heads=[1, 2], image_size=[8, 16]), "").heads is None
    for bad in ([1, 0], [1, "2"], [10**9], []):
        with pytest.raises(ModelDirectoryError, match="'num_attention_heads' must be a whole number"):
            check_config(config(num_attention_heads=bad), "")


def test_a_free_head_size_lifts_the_divisibility_rule():
    assert check_config(config(num_attention_heads=3, head_dim=8), "").heads == 3


def test_values_in_messages_are_cut():
    with pytest.raises(ModelDirectoryError) as error:
        check_config(config(hidden_size="x" * 10_000), "")
    assert len(str(error.value)) < 300


def test_config_round_trips_through_json(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config()))
    assert read_json_object(path) == config()
