"""Loading a checkpoint into its stock model: what runs, what is traced, what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from compactor.checkpoint import read_checkpoint
from compactor.errors import ModelDirectoryError
from compactor.importing.encoder import load_model
from compactor.tasks import TASKS
from tests.compactor import checkpoints, families
from tests.compactor.families import OUTPUTS


@pytest.mark.parametrize(
    ("family", "head", "names"),
    [
        ("bert", "ForQuestionAnswering", ("input_ids", "attention_mask", "token_type_ids")),
        ("roberta", "ForMaskedLM", ("input_ids", "attention_mask")),
        ("distilbert", "ForTokenClassification", ("input_ids", "attention_mask")),
        ("mpnet", "Model", ("input_ids", "attention_mask")),
        ("electra", "ForSequenceClassification", ("input_ids", "attention_mask", "token_type_ids")),
        ("vit", "ForImageClassification", ("pixel_values",)),
    ],
)
def test_the_loaded_model_is_the_saved_one(family: str, head: str, names: tuple[str, ...], tmp_path: Path) -> None:
    model = families.build(family, head)
    model.save_pretrained(tmp_path / "model")
    loaded = load_model(read_checkpoint(tmp_path / "model"))
    assert loaded.input_names == names
    assert not loaded.module.training
    for case in loaded.cases[::3]:
        for name, array in loaded.run(case).items():
            np.testing.assert_allclose(array, families.run_masked(model, head, case)[name], rtol=1e-5, atol=1e-6)
    assert tuple(loaded.run(loaded.cases[0])) == OUTPUTS[head]


def test_half_weights_are_computed_in_float32(tmp_path: Path) -> None:
    families.build("bert").half().save_pretrained(tmp_path / "model")
    loaded = load_model(read_checkpoint(tmp_path / "model"))
    assert {parameter.dtype for parameter in loaded.module.parameters()} == {torch.float32}


def test_cases_fit_the_positions(tmp_path: Path) -> None:
    """RoBERTa's positions start behind the padding token: 40 of them hold 38 tokens."""
    folder = families.save(tmp_path / "model", "roberta")
    loaded = load_model(read_checkpoint(folder))
    assert max(case.feeds["input_ids"].shape[1] for case in loaded.cases) == families.POSITIONS - 2
    for case in loaded.cases:
        loaded.run(case)


def test_what_the_head_lacks_is_named(tmp_path: Path) -> None:
    tensors = checkpoints.tensors()
    del tensors["classifier.weight"]
    folder = checkpoints.write(tmp_path / "model", tensors)
    with pytest.raises(ModelDirectoryError, match=r"lack 'classifier.weight', which 'BertForSequenceClassification'"):
        load_model(read_checkpoint(folder))


def test_more_that_is_missing_is_counted(tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "model")
    with pytest.raises(ModelDirectoryError, match=r"lack '.*' and \d+ more, which 'BertForMaskedLM' needs"):
        load_model(read_checkpoint(folder), TASKS["fill-mask"])


def test_a_head_of_another_size(tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "model", model_config=checkpoints.config(num_labels=5))
    with pytest.raises(ModelDirectoryError, match="classifier"):
        load_model(read_checkpoint(folder))


def test_a_text_task_for_a_model_of_images(tmp_path: Path) -> None:
    folder = families.save(tmp_path / "model", "vit", "ForImageClassification")
    with pytest.raises(ModelDirectoryError, match="takes no 'input_ids'"):
        load_model(read_checkpoint(folder), TASKS["feature-extraction"])


def test_a_base_model_without_its_pooler(tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in checkpoints.tensors().items() if "pooler" not in name}
    folder = checkpoints.write(tmp_path / "model", tensors)
    loaded = load_model(read_checkpoint(folder), TASKS["feature-extraction"])
    assert loaded.module.pooler is None


def test_a_model_that_overflows_by_itself(tmp_path: Path) -> None:
    tensors = checkpoints.tensors()
    tensors["classifier.weight"] *= 3e38
    loaded = load_model(read_checkpoint(checkpoints.write(tmp_path / "model", tensors)))
    with pytest.raises(ModelDirectoryError, match="own 'logits' is not finite on case"):
        loaded.run(loaded.cases[0])


def test_a_model_that_fails_by_itself(tmp_path: Path) -> None:
    tensors = checkpoints.tensors()
    tensors["qa_outputs.weight"], tensors["qa_outputs.bias"] = torch.ones(3, checkpoints.WIDTH), torch.ones(3)
    folder = checkpoints.write(tmp_path / "model", tensors, checkpoints.config(num_labels=3))
    loaded = load_model(read_checkpoint(folder), TASKS["question-answering"])
    with pytest.raises(ModelDirectoryError, match="'BertForQuestionAnswering' fails on case"):
        loaded.run(loaded.cases[0])


@pytest.mark.parametrize("padding", [None, -1])
def test_a_padding_id_that_is_no_token(padding: int | None, tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "model", model_config=checkpoints.config() | {"pad_token_id": padding})
    loaded = load_model(read_checkpoint(folder))
    assert all(case.feeds["input_ids"].min() >= 0 for case in loaded.cases)
