"""Folders of stock models whose weights were changed on the way, and how the stock model itself reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from compactor.checkpoint import read_checkpoint
from compactor.importing.encoder import load_model
from compactor.runtime.verification import text_cases
from compactor.tasks import TASKS
from tests.compactor import families

Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors], Mapping[str, torch.Tensor]]


def change_weights(folder: Path, change: Change) -> Path:
    """Write the folder's weights again, as ``change`` makes them."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file({name: tensor.contiguous() for name, tensor in change(tensors).items()}, path, {"format": "pt"})
    return folder


def change_config(folder: Path, **changes: Any) -> Path:
    """Write ``config.json`` again with other values; a change to None drops the key."""
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return folder


def rename(names: Callable[[str], str]) -> Change:
    """A change of every name."""
    return lambda tensors: {names(name): tensor for name, tensor in tensors.items()}


def stock(auto_class: str, folder: Path) -> Any:
    """The model that transformers itself loads from an untouched folder, every tensor in place."""
    model, info = getattr(transformers, auto_class).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"], info
    return model.eval()


def align(module: torch.nn.Module) -> torch.nn.Module:
    """Its weights at addresses that torch chose: products may differ in the last bit by how a file's bytes lie."""
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
    return module


@torch.no_grad()
def assert_same_answers(folder: Path, reference: Any, task: str | None = None) -> tuple[str, ...]:
    """Our model of ``folder`` gives the reference's numbers, to the bit; returns the notes."""
    checkpoint = read_checkpoint(folder)
    loaded = load_model(checkpoint, None if task is None else TASKS[task])
    align(loaded.module), align(reference)
    vocabulary, length = int(reference.config.vocab_size), 12
    padding = reference.config.pad_token_id
    for case in text_cases(
        loaded.input_names, vocab_size=vocabulary, max_length=length, pad_token_id=padding, lengths=(5, 12)
    ):
        got = loaded.run(case)
        expected = reference(**{name: torch.from_numpy(array) for name, array in case.feeds.items()})
        for name in loaded.task.outputs:
            assert expected[name].abs().max() > 0.01
            assert torch.equal(torch.from_numpy(got[name]), expected[name]), name
    return checkpoint.notes


def saved(tmp_path: Path, family: str = "bert", head: str = "ForSequenceClassification", name: str = "model") -> Path:
    """A folder as transformers saves it."""
    return families.save(tmp_path / name, family, head, planted=None)
