"""What of a sentence-transformers folder is not built is refused when exporting, by name."""

from __future__ import annotations

import json

import pytest
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
)

import compactor
import compactor.runtime
from compactor.errors import ModelDirectoryError
from tests.answers.sentences import WIDTH, edit, save


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("sentence_bert_config.json", {"transformer_task": "text-generation"}, "transformer_task"),
        ("sentence_bert_config.json", {"module_output_name": "sentence_embedding"}, "module_output_name"),
        (
            "sentence_bert_config.json",
            {"modality_config": {"text": {"method": "get_text_features"}}},
            "modality_config",
        ),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"max_length": 4}}}, "processing_kwargs"),
        (
            "sentence_bert_config.json",
            {"model_args": {"dtype": "float32", "num_hidden_layers": 1}},
            "num_hidden_layers",
        ),
        ("sentence_bert_config.json", {"tokenizer_args": {"do_lower_case": False}}, "do_lower_case"),
        ("sentence_bert_config.json", {"config_args": {"hidden_act": "relu"}}, "hidden_act"),
        ("sentence_bert_config.json", {"tokenizer_name_or_path": "elsewhere"}, "tokenizer_name_or_path"),
        ("sentence_bert_config.json", {"query_expansion": {"strategy": "fixed", "length": 9}}, "query_expansion"),
        ("sentence_bert_config.json", {"new_setting": 1}, "new_setting"),
        ("config_sentence_transformers.json", {"truncate_dim": "half"}, "truncate_dim"),
        ("config_sentence_transformers.json", {"default_prompt_name": "none such"}, "default_prompt_name"),
        ("config_sentence_transformers.json", {"model_type": "BirdEncoder"}, "BirdEncoder"),
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "pooling_mode"),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", 3]}, "pooling_mode"),
        ("1_Pooling/config.json", {"new_setting": 1}, "new_setting"),
        ("2_Dense/config.json", {"activation_function": "mine.Activation"}, "activation_function"),
        ("2_Dense/config.json", {"activation_function": None}, "activation_function"),
        ("2_Dense/config.json", {"module_output_name": "scores"}, "module_output_name"),
        ("2_Dense/config.json", {"out_features": 13}, "linear.weight"),
        ("2_Dense/config.json", {"in_features": "many"}, "in_features"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_not_built_is_refused_by_name(base, tmp_path, file, changes, says):
    save(tmp_path / "masked", base("BertModel"), Pooling(WIDTH, pooling_mode="mean"), Dense(WIDTH, 12))
    edit(tmp_path / "masked" / file, **changes)
    with pytest.raises(ModelDirectoryError, match=says) as caught:
        compactor.export(tmp_path / "masked", tmp_path / "out")
    assert caught.value.todo and str(tmp_path / "masked") in str(caught.value.where)
    assert not (tmp_path / "out").exists()


def test_texts_that_would_become_messages_are_refused(base, tmp_path):
    """A tokenizer with a chat template, where no ``modality_config`` says that texts are texts."""
    save(tmp_path / "masked", base("BertModel"), Pooling(WIDTH, pooling_mode="mean"))
    edit(tmp_path / "masked/tokenizer_config.json", chat_template="{{ messages }}")
    edit(tmp_path / "masked/sentence_bert_config.json", modality_config=None)
    with pytest.raises(ModelDirectoryError, match="chat template"):
        compactor.export(tmp_path / "masked", tmp_path / "out")


@pytest.mark.parametrize(
    "module",
    [
        "sentence_transformers.models.WordWeights",
        "sentence_transformers.sentence_transformer.modules.cnn.CNN",
        "sentence_transformers.models.LSTM",
        "mine.Pooling",
        "sentence_transformers.multi_vector_encoder.modules.HierarchicalTokenPooling",
        "sentence_transformers.models.Transformer",
    ],
)
def test_modules_that_are_not_built_are_refused_by_name(base, tmp_path, module):
    save(tmp_path / "masked", base("BertModel"), Pooling(WIDTH, pooling_mode="mean"), Normalize())
    path = tmp_path / "masked/modules.json"
    modules = json.loads(path.read_text())
    modules[2]["type"] = module
    path.write_text(json.dumps(modules))
    with pytest.raises(ModelDirectoryError, match=module.rpartition(".")[2]):
        compactor.export(tmp_path / "masked", tmp_path / "out")


def test_a_folder_keeps_to_its_task(base, tmp_path):
    save(tmp_path / "masked", base("BertModel"), Pooling(WIDTH, pooling_mode="mean"))
    with pytest.raises(ModelDirectoryError, match="whose task is feature-extraction, not fill-mask"):
        compactor.export(tmp_path / "masked", tmp_path / "out", task="fill-mask")
