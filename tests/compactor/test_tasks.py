"""Which task a config stands for."""

from __future__ import annotations

import pytest

from compactor.errors import ModelDirectoryError, UsageError
from compactor.tasks import TASKS, find_task


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertForSequenceClassification", "text-classification"),
        ("XLMRobertaForTokenClassification", "token-classification"),
        ("DistilBertForQuestionAnswering", "question-answering"),
        ("MPNetForMaskedLM", "fill-mask"),
        ("ViTForImageClassification", "image-classification"),
        ("ElectraModel", "feature-extraction"),
        ("FlaubertWithLMHeadModel", "fill-mask"),
        ("XLNetForQuestionAnsweringSimple", "question-answering"),
        ("DeiTForImageClassificationWithTeacher", "image-classification"),
        ("CLIPTextModelWithProjection", "feature-extraction"),
        ("DPRQuestionEncoder", "feature-extraction"),
    ],
)
def test_the_architecture_stands_for_a_task(architecture: str, task: str) -> None:
    assert find_task(None, {"architectures": [architecture]}, where="x").name == task


def test_what_is_asked_for_goes_before_what_is_written() -> None:
    config = {"architectures": ["BertForMaskedLM"]}
    assert find_task("feature-extraction", config, where="x").name == "feature-extraction"
    assert find_task("fill-mask", {}, where="x").name == "fill-mask"


@pytest.mark.parametrize("config", [{}, {"architectures": []}, {"architectures": None}])
def test_without_architectures_the_tasks_are_listed(config: dict[str, object]) -> None:
    with pytest.raises(ModelDirectoryError, match="names no class") as caught:
        find_task(None, config, where="x")
    assert all(name in str(caught.value.todo) for name in TASKS)


@pytest.mark.parametrize("name", ["BertForNextSentencePrediction", "BertForPreTraining", "BertForMultipleChoice"])
def test_a_class_of_no_task_is_named(name: str) -> None:
    with pytest.raises(ModelDirectoryError, match=f"'{name}' stands for no task"):
        find_task(None, {"architectures": [name]}, where="x")


@pytest.mark.parametrize("name", [None, "feature-extraction", "image-feature-extraction"])
def test_a_model_of_images_gives_features_of_images(name: str | None) -> None:
    for config in ({"architectures": ["Dinov2Model"]}, {"architectures": ["BeitModel"], "vocab_size": 8192}):
        sizes = {"image_size": 518, "patch_size": 14}
        assert find_task(name, {**config, **sizes}, where="x").name == "image-feature-extraction"


def test_a_pair_of_towers_asks_for_one() -> None:
    config = {"architectures": ["CLIPModel"], "text_config": {}, "vision_config": {}}
    with pytest.raises(ModelDirectoryError, match="compares texts with images"):
        find_task(None, config, where="x")
    for name in ("feature-extraction", "image-feature-extraction"):
        assert find_task(name, config, where="x").name == name
    classifier = {**config, "architectures": ["CLIPForImageClassification"]}
    assert find_task(None, classifier, where="x").name == "image-classification"


def test_multiple_choice_says_what_to_train_instead() -> None:
    with pytest.raises(ModelDirectoryError, match="several choices at once") as caught:
        find_task(None, {"architectures": ["BertForMultipleChoice"]}, where="x")
    assert "num_labels=1" in str(caught.value.todo)


def test_an_unknown_task() -> None:
    with pytest.raises(UsageError, match="no task 'poetry'"):
        find_task("poetry", {}, where="x")
