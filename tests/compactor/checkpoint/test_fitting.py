"""What a stock class drops or lacks: known to change nothing, or refused by name; ties as transformers makes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from compactor.checkpoint import read_checkpoint
from compactor.errors import ModelDirectoryError
from compactor.importing.encoder import load_model
from compactor.tasks import TASKS
from tests.compactor.families import CLASSES
from tests.compactor.stock import assert_same_answers, change_config, change_weights, saved, stock

HEADS = {
    "text-classification": ("ForSequenceClassification", "AutoModelForSequenceClassification"),
    "token-classification": ("ForTokenClassification", "AutoModelForTokenClassification"),
    "question-answering": ("ForQuestionAnswering", "AutoModelForQuestionAnswering"),
    "fill-mask": ("ForMaskedLM", "AutoModelForMaskedLM"),
    "feature-extraction": ("Model", "AutoModel"),
}
LAST = "bert.encoder.layer.1."


def refused(folder: Path, message: str, task: str | None = None) -> str:
    with pytest.raises(ModelDirectoryError, match=message) as error:
        load_model(read_checkpoint(folder), None if task is None else TASKS[task])
    assert error.value.todo
    assert str(folder) in str(error.value)
    return str(error.value)


# Tensors that are dropped


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "electra", "mpnet"])
@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForMaskedLM", "ForQuestionAnswering"])
def test_the_heads_of_stock_classes_are_dropped_for_vectors(family: str, head: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, family, head)
    reference = stock(next(auto for name, auto in HEADS.values() if name == head), folder)
    assert_same_answers(folder, getattr(reference, reference.base_model_prefix), "feature-extraction")


def test_what_pretraining_has_beside_is_dropped_to_fill_masks(tmp_path: Path) -> None:
    folder = saved(tmp_path, "bert", "ForPreTraining")
    assert_same_answers(folder, stock("AutoModelForMaskedLM", folder), "fill-mask")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("bert.embeddings.position_ids", torch.arange(40).unsqueeze(0)),
        ("bert.embeddings.token_type_ids", torch.zeros(1, 40, dtype=torch.long)),
        ("qa_outputs.weight", torch.ones(2, 16)),
        ("cls.seq_relationship.weight", torch.ones(2, 16)),
    ],
)
def test_what_changes_nothing_is_dropped(name: str, tensor: torch.Tensor, tmp_path: Path) -> None:
    folder = saved(tmp_path)
    reference = stock("AutoModelForSequenceClassification", folder)
    assert_same_answers(change_weights(folder, lambda tensors: {**tensors, name: tensor}), reference)


@pytest.mark.parametrize("task", [None, "feature-extraction"])
@pytest.mark.parametrize(
    "name",
    [
        "bert.embeddings_project.weight",
        "bert.embeddings.char_embeddings.weight",
        f"{LAST}attention.gate.weight",
        "bert.encoder.layer.2.scale.weight",
        "bert.encoder.norm.weight",
    ],
)
def test_a_module_of_the_trunk_that_no_stock_class_has_is_refused(name: str, task: str | None, tmp_path: Path) -> None:
    folder = change_weights(saved(tmp_path), lambda tensors: {**tensors, name: torch.ones(3, 3)})
    said = refused(folder, "no stock 'bert' model of this config has", task)
    assert name.removeprefix("bert.") in said


@pytest.mark.parametrize("name", ["dense.weight", "classifier.2.weight", "crf.transitions", "teacher.bert.pool.weight"])
def test_a_head_of_ones_own_is_refused_and_left_out_for_vectors(name: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, "bert", "ForTokenClassification")
    reference = stock("AutoModelForTokenClassification", folder)
    change_weights(folder, lambda tensors: {**tensors, name: torch.ones(3, 3)})
    assert name in refused(folder, "a CRF decides" if "crf" in name else "no stock 'bert' model")
    assert_same_answers(folder, reference.bert, "feature-extraction")


def test_a_class_of_ones_own_may_not_lose_its_head_because_of_its_name(tmp_path: Path) -> None:
    """Its name ends as those without a head do, so the task is inferred: nobody asked for vectors."""
    folder = saved(tmp_path, "bert", "ForTokenClassification")
    change_weights(folder, lambda tensors: {**tensors, "crf.transitions": torch.ones(3, 3)})
    change_config(folder, architectures=["BertCrfModel"])
    refused(folder, r"a CRF decides over the labels \('crf\.transitions'\)")


def test_layers_beyond_the_config_are_refused(tmp_path: Path) -> None:
    """Of BERT by the number of its layers, of a family whose sizes are not compared by the names that are left."""
    folder = change_config(saved(tmp_path), num_hidden_layers=1)
    with pytest.raises(ModelDirectoryError, match="states 1 layers, but the weights hold 3"):
        read_checkpoint(folder)
    folder = tmp_path / "modernbert"
    ids = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.ModernBertConfig(num_hidden_layers=2, **sizes, **ids)
    transformers.ModernBertModel(config).save_pretrained(folder)
    load_model(read_checkpoint(folder))
    change_config(folder, num_hidden_layers=1, layer_types=None)
    refused(folder, r"no stock 'modernbert' model .*layers\.1\.")


# Heads that are missing


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "electra", "mpnet"])
@pytest.mark.parametrize("task", [task for task in HEADS if task != "feature-extraction"])
def test_a_base_model_has_no_head(family: str, task: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, family, "Model")
    if task == "question-answering":
        change_config(folder, id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1})
    said = refused(folder, f"the folder has no head for {task}", task)
    assert f"which '{CLASSES[family]}{HEADS[task][0]}' needs" in said
    assert f"trained for {task}, or another --task: feature-extraction" in said


def test_an_image_model_without_a_head(tmp_path: Path) -> None:
    folder = saved(tmp_path, "vit", "Model")
    assert "'classifier.bias'" in refused(folder, "no head for image-classification", "image-classification")


def test_a_trunk_that_lacks_a_tensor_is_no_missing_head(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    change_weights(folder, lambda tensors: {n: t for n, t in tensors.items() if n != f"{LAST}output.LayerNorm.bias"})
    said = refused(folder, rf"the weights lack '{LAST}output\.LayerNorm\.bias', which")
    assert "no head" not in said


def test_a_table_that_both_tied_names_lack_is_missing(tmp_path: Path) -> None:
    folder = saved(tmp_path, "distilbert", "ForMaskedLM")
    table, head = TABLES["distilbert"]
    change_weights(folder, lambda tensors: {name: each for name, each in tensors.items() if name not in (table, head)})
    assert f"'{table}'" in refused(folder, "the weights lack ")


# Shapes


@pytest.mark.parametrize("labels", [2, 5])
def test_labels_of_another_number_than_the_heads(labels: int, tmp_path: Path) -> None:
    folder = saved(tmp_path)
    names = {str(index): f"l{index}" for index in range(labels)}
    change_config(folder, id2label=names, label2id={name: int(index) for index, name in names.items()})
    said = refused(folder, "'classifier.bias' does not have the config's shape and 1 more")
    assert f"3 are stored, the config makes it {labels}" in said
    assert "'id2label'" in said


# Ties


TABLES = {
    "bert": ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    "distilbert": ("distilbert.embeddings.word_embeddings.weight", "vocab_projector.weight"),
    "roberta": ("roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
}


@pytest.mark.parametrize("family", TABLES)
@pytest.mark.parametrize("stored", ["neither", "same", "other"])
def test_tied_tables_are_as_transformers_ties_them(family: str, stored: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, family, "ForMaskedLM")
    table, head = TABLES[family]
    scale = {"same": 1.0, "other": 1.5}
    if stored != "neither":
        change_weights(folder, lambda tensors: {**tensors, head: tensors[table] * scale[stored]})
    notes = assert_same_answers(folder, stock("AutoModelForMaskedLM", folder))
    assert bool(notes) == (stored == "other")
    assert all(head in note and "'tie_word_embeddings'" in note for note in notes)


def test_a_head_that_is_not_tied_and_not_saved_is_refused(tmp_path: Path) -> None:
    folder = change_config(saved(tmp_path, "distilbert", "ForMaskedLM"), tie_word_embeddings=False)
    assert "set 'tie_word_embeddings' to true" in refused(folder, "the weights lack 'vocab_projector.weight'")


def test_a_head_that_is_not_tied_counts(tmp_path: Path) -> None:
    folder = change_config(saved(tmp_path, "distilbert", "ForMaskedLM"), tie_word_embeddings=False)
    table, head = TABLES["distilbert"]
    change_weights(folder, lambda tensors: {**tensors, head: tensors[table] * 1.5})
    reference = stock("AutoModelForMaskedLM", folder)
    assert not torch.equal(reference.vocab_projector.weight, reference.distilbert.embeddings.word_embeddings.weight)
    assert assert_same_answers(folder, reference) == ()
