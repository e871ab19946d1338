"""A column of paths: each image beside the file gets its answer, and what is no image its reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from compactor.errors import UsageError
from compactor.predicting.predict import predict
from compactor.runtime.answers import Classified
from compactor.runtime.model import load
from tests.compactor.predicting.files import read, write
from tests.runtime.pictures import image_artefact, picture


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_artefact(tmp_path_factory.mktemp("vit"))


@pytest.mark.parametrize("suffix", ["tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("name", ["image", "Path", "file", "photo"])
def test_paths_count_from_the_file(
    artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, name: str
) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    (data / "pets").mkdir(parents=True)
    elsewhere.mkdir()
    picture(33, 50).save(data / "pets" / "a.png")
    picture(20, 9, seed=1).save(elsewhere / "b.jpg")
    (data / "c.png").write_bytes(b"none")
    paths = ["pets/a.png", str(elsewhere / "b.jpg"), "c.png", "missing.png", "https://example.org/d.png"]
    source = write(data / f"in.{suffix}", {name: paths, "id": list("abcde")})
    monkeypatch.chdir(elsewhere)

    column = "photo" if name == "photo" else None
    result = predict(artefact, source, tmp_path / "out.parquet", keep=["id"], text=column, threads=1)

    rows = read(tmp_path / "out.parquet")
    assert list(rows[0]) == ["row", "id", "label", "score", "scores", "error"]
    assert (result.rows, result.refused) == (5, 3)
    model = load(artefact, threads=1)
    for row, path in zip(rows, (data / "pets" / "a.png", elsewhere / "b.jpg"), strict=False):
        answer = model(path)
        assert isinstance(answer, Classified)
        assert (row["label"], row["score"]) == (answer.label, pytest.approx(answer.score))
        assert row["scores"] == pytest.approx(answer.scores.tolist())
    words = ("no image", "no file", "not fetched")
    assert [word in row["error"] for word, row in zip(words, rows[2:], strict=True)] == [True] * 3


def test_a_file_without_a_column_of_paths_is_refused(artefact: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", {"sentence": ["a.png"]})
    with pytest.raises(UsageError, match="no column of paths of images"):
        predict(artefact, source, tmp_path / "out.jsonl")
    with pytest.raises(UsageError, match="takes images"):
        predict(artefact, source, tmp_path / "out.jsonl", text="sentence", pair="sentence")


def test_what_is_no_path_is_refused(artefact: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", {"image": [None, ""]})
    predict(artefact, source, tmp_path / "out.parquet", threads=1)
    assert ["nothing" in row["error"] or "empty" in row["error"] for row in read(tmp_path / "out.parquet")] == [
        True,
        True,
    ]
