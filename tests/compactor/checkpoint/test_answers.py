"""Weights as people have them, from the folder to the answers: the artefact says what transformers' pipeline says."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import transformers

import compactor
import compactor.runtime
from tests.compactor import stock

TEXTS = ["A gripping film", "what a bore", "it is what it is, and no more than that"]


def _ddp(tensors: stock.Tensors) -> Mapping[str, torch.Tensor]:
    return {f"_orig_mod.module.{name}": tensor for name, tensor in tensors.items()}


def _lightning(tensors: stock.Tensors) -> Mapping[str, torch.Tensor]:
    wrapped = {name.replace("layer.1.", "layer.1._checkpoint_wrapped_module."): each for name, each in tensors.items()}
    return {f"net.{name}": tensor for name, tensor in wrapped.items()}


def _bare(tensors: stock.Tensors) -> Mapping[str, torch.Tensor]:
    return {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("change", [_ddp, _lightning, _bare], ids=["ddp", "lightning", "bare"])
def test_the_answers_are_those_of_the_untouched_folder(
    change: stock.Change, example_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(example_checkpoint, folder)
    exported = compactor.export(stock.change_weights(folder, change), tmp_path / "out", precision=["fp32"])
    answer = compactor.runtime.load(exported.path)
    options = {"dtype": torch.float32, "device": "cpu"}  # the example is stored in fp16, and computed in fp32 here
    pipeline = transformers.pipeline("text-classification", model=str(example_checkpoint), **options)
    for got, expected in zip(answer(TEXTS), pipeline(TEXTS), strict=True):
        assert got.label == expected["label"]
        assert got.score == pytest.approx(expected["score"], abs=1e-5)
