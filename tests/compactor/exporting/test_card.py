"""The card of an artefact: what model pages read, nothing private, and the licence carried over."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from compactor.exporting.card import CARD, write_card
from compactor.exporting.export import export
from compactor.exporting.recipe import Recipe

THEIRS = """---
license: apache-2.0
language:
- en
datasets: [sst2]
base_model: someone/else
---
# A model
"""


def parts(text: str) -> tuple[dict[str, object], str]:
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


@pytest.fixture
def written(token_artefact, example_checkpoint, tmp_path):
    """The card of the example, whose source has a card of its own; made again for each test."""
    source = tmp_path / "source" / "a-model"
    shutil.copytree(example_checkpoint, source)
    artefact = tmp_path / "artefact"
    shutil.copytree(token_artefact, artefact)
    manifest = json.loads((artefact / "compactor.json").read_text())

    def write(theirs: str | None = THEIRS, recipe: Recipe | None = None, **config: object):
        (source / CARD).unlink(missing_ok=True)
        if theirs is not None:
            (source / CARD).write_text(theirs)
        stated = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps(stated | config))
        write_card(artefact, manifest, recipe or Recipe(int8="token"), source, name="compact")
        return parts((artefact / CARD).read_text())

    return write


def test_the_front_matter(written):
    head, _ = written()
    assert head == {
        "library_name": "onnx",
        "pipeline_tag": "text-classification",
        "base_model": "someone/else",
        "license": "apache-2.0",
        "language": ["en"],
        "datasets": ["sst2"],
        "tags": ["onnx", "onnxruntime", "fp32", "int8", "compactor"],
    }
    head, _ = written(_name_or_path="an-org/a-model")
    assert head["base_model"] == "an-org/a-model", "the model itself, and not what it was made of"
    head, _ = written(_name_or_path="/home/somebody/a-model")
    assert head["base_model"] == "someone/else", "no path"


@pytest.mark.parametrize("theirs", [None, "# no front matter\n", "---\n{: broken\n---\n", "---\n- a list\n---\n"])
def test_what_the_source_does_not_say_is_not_said(written, theirs):
    head, _ = written(theirs)
    assert "license" not in head and "base_model" not in head
    assert head["pipeline_tag"] == "text-classification"


def test_the_page(written, tmp_path):
    _, body = written(recipe=Recipe(int8="token", pack=False, keep=99.5, calibrate=tmp_path / "texts.tsv"))
    assert "compactor export sst2-small compact --no-pack --int8 token --calibrate texts.tsv --keep 99.5" in body
    assert "removed 25 of 36 heads, 2820 of 4608 neurons" in body
    assert "| layers.0 | 12 -> 4 | 32 | 32 | 1536 -> 1209 |" in body
    assert "## Verification against the masked model: passed" in body
    assert "`compactor.runtime.load('compact')`" in body
    assert "`InferenceSession('compact/onnx/model_quantized.onnx')`" in body
    assert str(tmp_path) not in body, "where files lay is nobody's business"


def test_it_is_written_unless_it_is_not_wanted(token_artefact, example_checkpoint, tmp_path):
    assert (token_artefact / CARD).is_file()
    export(example_checkpoint, tmp_path / "out", precision=["fp32"], card=False)
    assert not (tmp_path / "out" / CARD).exists()
