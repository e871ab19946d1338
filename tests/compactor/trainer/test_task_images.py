"""Images with a label: folders of classes, tables of paths, what is refused, and a whole run of a ViT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from safetensors.torch import load_file

import compactor
from compactor.checkpoint.pruning_record import read_record_file
from compactor.errors import ModelDirectoryError, UsageError
from compactor.evaluation.datafiles import read_table
from compactor.evaluation.images import ImageReader
from compactor.runtime.model import load
from compactor.trainer.config import PruneConfig
from compactor.trainer.pruning import prune
from compactor.trainer.tasks import guess_task, open_task
from compactor.trainer.tasks.reading import read_examples
from tests.compactor import encoders
from tests.compactor.encoders import HEADS, IMAGE

BRIGHT = {"dark": 60, "light": 190}


def write_model(folder: Path, family: str = "vit", *, side: int = IMAGE, **changes: Any) -> Path:
    encoders.build(family, "ForImageClassification", **changes).save_pretrained(folder)
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": side, "width": side}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def picture(label: str, seed: int) -> PIL.Image.Image:
    random = np.random.default_rng(seed)
    noise = random.integers(-50, 50, (20 + seed % 3, 17, 3))
    return PIL.Image.fromarray((noise + BRIGHT[label]).astype(np.uint8))


def write_folder(folder: Path, count: int, seed: int = 0) -> Path:
    for number in range(count):
        label = list(BRIGHT)[number % 2]
        (folder / label).mkdir(parents=True, exist_ok=True)
        picture(label, 100 * seed + number).save(folder / label / f"{number:03}.{('png', 'jpg')[number % 3 == 0]}")
    return folder


def write_paths(path: Path, folder: Path) -> Path:
    rows = [{"path": str(f.relative_to(path.parent)), "label": f.parent.name} for f in sorted(folder.rglob("*.*"))]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_a_folder_for_each_label_is_a_table(tmp_path):
    folder = write_folder(tmp_path / "images", 6)
    (folder / "light" / "notes.txt").write_text("not an image")
    (folder / "light" / "more").mkdir()
    picture("light", 9).save(folder / "light" / "more" / "deep.png")
    (folder / ".cache").mkdir()
    picture("dark", 8).save(folder / ".cache" / "hidden.png")

    table = read_examples(folder)

    assert [row["label"] for row in table.rows] == ["dark"] * 3 + ["light"] * 4
    assert table.places[0] == "dark/000.jpg" and "light/more/deep.png" in table.places
    assert guess_task(table) == "image-classification"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="nor one of images in a folder for each label"):
        read_examples(tmp_path / "empty")


def test_batches_are_what_the_processor_of_transformers_makes(tmp_path):
    model = write_model(tmp_path / "model")
    folder = write_folder(tmp_path / "images", 6)
    table = read_table(write_paths(tmp_path / "train.jsonl", folder))
    data = open_task("image-classification", table, table, ImageReader.open(model), labels=None, max_length=8)

    batch = data.collate([data.train[number] for number in range(6)])

    reference = transformers.AutoImageProcessor.from_pretrained(model, use_fast=False)
    images = [PIL.Image.open(tmp_path / row["path"]).convert("RGB") for row in table.rows]
    torch.testing.assert_close(
        batch["pixel_values"], reference(images, return_tensors="pt")["pixel_values"], atol=1e-6, rtol=0
    )
    assert data.label_names == ("dark", "light") and batch["labels"].tolist() == [0, 0, 0, 1, 1, 1]
    assert len(data.train) == 6 and [each["labels"] for each in data.train[1:3]] == [0, 0]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.unlink(), "there is no such file"),
        (lambda path: path.write_text("GIF"), "it is no image"),
    ],
)
def test_files_are_looked_at_before_anything_is_trained(spoil, reason, tmp_path):
    reader = ImageReader.open(write_model(tmp_path / "model"))
    folder = write_folder(tmp_path / "images", 6)
    table = read_table(write_paths(tmp_path / "train.jsonl", folder))
    spoil(sorted(folder.rglob("*.*"))[3])
    with pytest.raises(UsageError, match=f"the image of line 4 cannot be read: {reason}"):
        open_task("image-classification", table, table, reader, labels=None, max_length=8)


def test_an_image_that_is_cut_off_is_named_when_it_is_needed(tmp_path):
    reader = ImageReader.open(write_model(tmp_path / "model"))
    folder = write_folder(tmp_path / "images", 6)
    damaged = sorted(folder.rglob("*.png"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-200])
    table = read_examples(folder)
    data = open_task("image-classification", table, table, reader, labels=None, max_length=8)
    number = [row["image"] for row in table.rows].index(str(damaged))
    with pytest.raises(UsageError, match=r"the image of dark/002\.png cannot be read"):
        data.train[number]


def test_models_without_a_processor_or_with_one_of_another_size_are_refused(tmp_path):
    data = write_folder(tmp_path / "images", 6)
    model = write_model(tmp_path / "model", side=IMAGE * 2)
    with pytest.raises(ModelDirectoryError, match="makes images of 32 x 32, and the model takes 16 x 16"):
        prune(model, data, data, tmp_path / "out")
    (model / "preprocessor_config.json").unlink()
    with pytest.raises(ModelDirectoryError, match=r"there is no preprocessor_config\.json"):
        prune(model, data, data, tmp_path / "out")


def test_a_teacher_looks_at_the_same_pixels(tmp_path):
    data = write_folder(tmp_path / "images", 6)
    labels = {"id2label": {0: "dark", 1: "light"}}
    model = write_model(tmp_path / "model", **labels)
    teacher = write_model(tmp_path / "teacher", side=8, image_size=8, **labels)
    with pytest.raises(UsageError, match="the teacher takes images of 8 x 8, MODEL of 16 x 16"):
        prune(model, data, data, tmp_path / "out", teacher=teacher, config=PruneConfig(steps=4))


def test_a_vision_transformer_learns_is_pruned_and_exported(tmp_path):
    model = write_model(tmp_path / "model", id2label={0: "dark", 1: "light"})
    train, dev = write_folder(tmp_path / "train", 60), write_folder(tmp_path / "dev", 20, seed=1)
    config = PruneConfig(
        method="struct",
        attention_lambda=1.0,
        target_density=0.4,
        alpha_ce=1.0,
        alpha_teacher=0.0,
        steps=40,
        batch_size=16,
        learning_rate=3e-3,
        score_learning_rate=0.3,
        eval_steps=20,
    )
    result = prune(model, train, write_paths(tmp_path / "dev.jsonl", dev), tmp_path / "out", config=config)

    record, final = result.record, result.record["final"]
    assert record["task"] == "image-classification" and set(final["metrics"]) == {"accuracy", "f1", "matthews"}
    assert final["metrics"]["accuracy"]["value"] > 0.9 and final["metrics"]["accuracy"]["n"] == 20
    tensors, masks = load_file(result.path / "model.safetensors"), read_record_file(result.path)
    for matrix in masks.matrices:  # by the names of the file, which are not those of the modules
        weight = matrix.part(tensors[f"{matrix.module}.weight"])
        assert torch.equal(weight != 0, matrix.expand(masks.live[matrix.group], tuple(weight.shape)))
    transformers.AutoModelForImageClassification.from_pretrained(result.path)
    assert transformers.AutoImageProcessor.from_pretrained(result.path, use_fast=False).size["height"] == IMAGE

    exported = compactor.export(result.path, tmp_path / "artefact", precision=("fp32",))
    left = [layer["heads"] for layer in exported.manifest["layers"] if layer["kind"] == "attention"]
    assert left == [[HEADS, sum(layer["heads"])] for layer in final["layers"] if layer["heads"]]
    answers = [load(exported.path, threads=1)(path) for path in sorted(dev.rglob("*.png"))]
    right = [answer.label == path.parent.name for answer, path in zip(answers, sorted(dev.rglob("*.png")), strict=True)]
    assert sum(right) / len(right) > 0.8
