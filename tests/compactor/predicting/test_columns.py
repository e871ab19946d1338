"""Columns: by their usual names, or as the user says; kept ones beside the answer's."""

from __future__ import annotations

from pathlib import Path

import pytest

from compactor.errors import UsageError
from compactor.evaluation.texts import PAIRS, SINGLES
from compactor.predicting.columns import Columns, choose_columns
from compactor.predicting.inputs import InputFile
from compactor.tasks import GENERATION

CLASSES = "text-classification"
LABEL = ("label", "score", "scores")


def choose(
    *columns: str, task: str = CLASSES, text: str | None = None, pair: str | None = None, keep: tuple[str, ...] = ()
) -> Columns:
    source = InputFile(Path("in.tsv"), "tsv", columns, 0, 0)
    return choose_columns(source, task, LABEL, text=text, pair=pair, keep=keep)


@pytest.mark.parametrize("name", SINGLES)
def test_a_text_has_one_of_many_names(name: str) -> None:
    assert choose("id", name.upper()).texts == (name.upper(),)


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_is_for_classification_and_goes_first(pair: tuple[str, str]) -> None:
    assert choose("text", *reversed(pair)).texts == pair
    assert len(choose("text", *pair, task="feature-extraction").texts) == 1


def test_each_task_reads_its_own() -> None:
    assert choose("context", "text", "question", task="question-answering").texts == ("question", "context")
    assert choose("text", "article", task=GENERATION).texts == ("article",)
    assert choose("sentence", task=GENERATION).texts == ("sentence",)
    with pytest.raises(UsageError, match="no column of question and context"):
        choose("question", "text", task="question-answering")
    with pytest.raises(UsageError, match="no column of text: none of sentence") as found:
        choose("a", "b")
    assert "a, b" in str(found.value.todo)


def test_the_user_names_them() -> None:
    assert choose("text", "b", text="b").texts == ("b",)
    assert choose("text", "a", "b", text="b", pair="a").texts == ("b", "a")
    with pytest.raises(UsageError, match="no column 'c'"):
        choose("text", text="c")
    with pytest.raises(UsageError, match="--pair names the second"):
        choose("text", "b", pair="b")
    with pytest.raises(UsageError, match="no column 'z'"):
        choose("text", keep=("z",))


def test_a_kept_column_makes_way_for_the_answers() -> None:
    found = choose("text", "id", "label", "row", keep=("id", "label", "row", "text"))
    assert found.kept_as == ("id", "input_label", "input_row", "text")
    with pytest.raises(UsageError, match="two of the columns to keep would be called 'input_label'"):
        choose("text", "label", "input_label", keep=("label", "input_label"))


def test_what_a_model_gets() -> None:
    assert choose("text").items([["a", None]]) == ["a", None]
    assert choose("a", "b", text="a", pair="b").items([["a", "b"], ["c", None]]) == [("a", "c"), ("b", None)]
