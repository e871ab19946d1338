from __future__ import annotations

import importlib.machinery
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from compactor.errors import UsageError
from compactor.trainer.tasks.reading import read_examples

ROWS = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]


@pytest.fixture
def saved(tmp_path):
    """A folder that looks like one of the library's, with two splits."""
    folder = tmp_path / "data"
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        (folder / split / "state.json").write_text("{}")
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    return folder


@pytest.fixture
def fake_library(monkeypatch):
    """Replaces what the library loads by any function of the folder."""

    def replace(load):
        module = ModuleType("datasets")
        module.__spec__ = importlib.machinery.ModuleSpec("datasets", None)
        module.load_from_disk = lambda folder: SimpleNamespace(to_list=lambda: load(Path(folder)))
        monkeypatch.setitem(sys.modules, "datasets", module)

    return replace


def test_files_are_read_as_bench_reads_them(tmp_path):
    path = tmp_path / "data.tsv"
    path.write_text("text\tlabel\na\t1\n")
    table = read_examples(path)
    assert table.rows == [{"text": "a", "label": "1"}]
    assert table.places == ["line 2"]


def test_a_file_with_a_colon_in_its_name_is_a_file(tmp_path):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data:train.jsonl"
    path.write_text(json.dumps(ROWS[0]))
    assert read_examples(path).rows == [ROWS[0]]


def test_a_missing_file_is_an_error_of_the_path(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_examples(tmp_path / "no.tsv")
    with pytest.raises(UsageError, match="cannot be read"):
        read_examples(tmp_path / "no:train")


def test_a_split_of_a_folder(saved, fake_library):
    fake_library(lambda folder: [{"text": folder.name}] * 2)
    table = read_examples(Path(f"{saved}:test"))
    assert table.rows == [{"text": "test"}] * 2
    assert table.places == ["entry 1", "entry 2"]
    assert table.path == Path(f"{saved}:test")
    assert read_examples(saved / "train").rows == [{"text": "train"}] * 2  # a split is a folder too


def test_several_splits_are_named(saved):
    with pytest.raises(UsageError, match="the folder has several splits") as caught:
        read_examples(saved)
    assert caught.value.todo == f"give one of: {saved}:train, {saved}:test"


def test_an_unknown_split_is_refused(saved):
    with pytest.raises(UsageError, match="there is no split 'dev'") as caught:
        read_examples(Path(f"{saved}:dev"))
    assert f"{saved}:train" in caught.value.todo
    with pytest.raises(UsageError, match="there is no split 'dev': it is one data set"):
        read_examples(Path(f"{saved / 'train'}:dev"))


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_folder_that_does_not_say_its_splits_is_refused(saved, content):
    (saved / "dataset_dict.json").write_text(content)
    with pytest.raises(UsageError, match=r"dataset_dict\.json does not name the splits"):
        read_examples(Path(f"{saved}:train"))


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="not one that the datasets library saved"):
        read_examples(tmp_path)


def test_the_library_must_be_there(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match="takes that library") as caught:
        read_examples(Path(f"{saved}:train"))
    assert "pip install 'compactor[train]'" in caught.value.todo


def test_a_damaged_folder_is_refused_in_one_line(saved, fake_library):
    def fail(folder):
        raise OSError("not an Arrow file\nat all")

    fake_library(fail)
    with pytest.raises(UsageError) as caught:
        read_examples(Path(f"{saved}:train"))
    assert caught.value.what == "the data set cannot be read: not an Arrow file"


def test_a_folder_without_rows_is_refused(saved, fake_library):
    fake_library(lambda folder: [])
    with pytest.raises(UsageError, match="there are no examples"):
        read_examples(Path(f"{saved}:train"))


def test_folders_of_the_library_itself(tmp_path):
    datasets = pytest.importorskip("datasets")

    def dataset(*rows):
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        # With a fingerprint of its own, for to hash a table some versions of the library pickle more than they can.
        return datasets.Dataset(datasets.table.InMemoryTable.from_pydict(columns), fingerprint="0")

    answers = {"text": ["b"], "answer_start": [2]}
    dataset(*ROWS).save_to_disk(str(tmp_path / "one"))
    two = datasets.DatasetDict(
        train=dataset(*ROWS), squad=dataset({"question": "q", "context": "a b", "answers": answers})
    )
    two.save_to_disk(str(tmp_path / "two"))
    assert read_examples(tmp_path / "one").rows == ROWS
    assert read_examples(Path(f"{tmp_path / 'two'}:train")).rows == ROWS
    assert read_examples(Path(f"{tmp_path / 'two'}:squad")).rows[0]["answers"] == answers
    with pytest.raises(UsageError, match="several splits"):
        read_examples(tmp_path / "two")
    (tmp_path / "one" / "state.json").write_text("{}")
    with pytest.raises(UsageError, match="the data set cannot be read"):
        read_examples(tmp_path / "one")
