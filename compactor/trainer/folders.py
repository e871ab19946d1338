"""What a run writes: a stock model with its zeros in place, the masks beside it, and what resuming needs.

``save_model`` writes a folder that stock transformers open. The masks go beside the weights (``pruning.json`` and
``pruning.safetensors``, see ``compactor.checkpoint.pruning_record``); in a checkpoint of an unfinished run, so do the
weights that the masks hide (``training_state.safetensors``): they still change, and may come back.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compactor.checkpoint.pruning_record import PruningRecord, read_record_file, write_record
from compactor.errors import ModelDirectoryError
from compactor.trainer.masks import live_elements, live_rows
from compactor.trainer.placing import place
from compactor.trainer.pruner import SUBMODULE, Pruner
from compactor.trainer.simplifying import FadingNorm

STATE_FILE = "training_state.safetensors"
_ORIGINAL = re.compile(r"(?P<module>.+)\.parametrizations\.(?P<kind>weight|bias)\.original")


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors under their usual names, masks and statistics folded in, without the scores."""
    pruner = find_pruner(model)
    masks = {} if pruner is None else pruner.masks()
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith(f"{SUBMODULE}."):
            continue
        found = _ORIGINAL.fullmatch(name)
        if found is not None:
            own = masks[found["module"]]
            name = f"{found['module']}.{found['kind']}"
            tensor = torch.where(live_elements(own) if found["kind"] == "weight" else live_rows(own), tensor, 0)
        state[name] = tensor
    for name, module in model.named_modules():
        if isinstance(module, FadingNorm):
            del state[f"{name}.sums"]
            state[f"{name}.weight"], state[f"{name}.bias"] = module.folded()
    return state


def find_pruner(model: nn.Module) -> Pruner | None:
    """The model's pruner, if it has one."""
    pruner = getattr(model, SUBMODULE, None)
    return pruner if isinstance(pruner, Pruner) else None


def stock_copy(model: Any) -> Any:
    """A stock model of the same class and configuration with the masked weights; it shares what no mask covers."""
    with torch.device("meta"):
        stock = type(model)(model.config)
    missing, unexpected = stock.load_state_dict(plain_state(model), strict=False, assign=True)
    stock.tie_weights()
    hollow = {name for name, buffer in stock.named_buffers() if buffer.is_meta}
    for name, buffer in model.named_buffers():  # those that no file holds, such as the positions' numbers
        parent, _, own = name.rpartition(".")
        if name in hollow:
            stock.get_submodule(parent).register_buffer(own, buffer.clone(), persistent=False)
    left = [name for name, parameter in stock.named_parameters() if parameter.is_meta]
    assert not unexpected and not left, f"state does not fit the stock model: {missing}, {unexpected}, {left}"
    if getattr(model, "generation_config", None) is not None:
        stock.generation_config = model.generation_config
    return stock


def save_model(model: Any, folder: Path, *, tokenizer: Any, facts: Mapping[str, Any]) -> None:
    """Write ``folder``: the stock model, its tokenizer, and its masks with ``facts`` about the run.

    Args:
        model: With or without a pruner.
        folder: Made where it does not exist.
        tokenizer: Written beside the model; of a model of images, its ``ImageReader``.
        facts: JSON: method, settings and the like; nothing is written of a model without a pruner.
    """
    stock = stock_copy(model)
    stock.save_pretrained(folder)
    _state_labels(folder / "config.json", model.config)
    save_inputs(tokenizer, folder)
    pruner = find_pruner(model)
    if pruner is not None:
        record = make_record(pruner, facts)
        saved: dict[str, Tensor] = {}
        for path in sorted(folder.glob("model*.safetensors")):
            saved |= load_file(path)
        placed = place(record.matrices, stock.state_dict(), saved)
        write_record(folder, dataclasses.replace(record, matrices=placed))


def save_inputs(tokenizer: Any, folder: Path) -> None:
    """Write ``tokenizer``; one of no model's own class under the name that both versions of transformers know."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    if not path.is_file():  # it was an image processor
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("tokenizer_class") == "TokenizersBackend":  # what transformers 5 calls it
        content["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _state_labels(path: Path, config: Any) -> None:
    """State a classifier's labels, also where transformers 5 leaves them out: it takes two for any family's default."""
    content = json.loads(path.read_text(encoding="utf-8"))
    architecture = str((content.get("architectures") or [""])[0])
    if architecture.endswith(("ForSequenceClassification", "ForImageClassification")) and "id2label" not in content:
        content["id2label"] = {str(number): name for number, name in config.id2label.items()}
        content["label2id"] = dict(config.label2id)
        path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def make_record(pruner: Pruner, facts: Mapping[str, Any]) -> PruningRecord:
    """Scores and masks by group, and how they lie on the matrices, by the names of modules."""
    groups = {group.name: group for group in pruner.all_groups}
    return PruningRecord(
        facts={**facts, **pruner.state(), "density": pruner.density()},
        matrices=tuple(member.layout for _, member in pruner.members()),
        scores={name: group.scores.detach().cpu() for name, group in groups.items()},
        live={name: group.live.cpu() for name, group in groups.items()},
    )


def save_training_state(model: nn.Module, folder: Path) -> None:
    """Write all tensors as they are trained, under the names that the masked model gives them."""
    state, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in seen and tensor.numel():  # tied: the file format holds each once
            continue
        seen.add(tensor.data_ptr())
        state[name] = tensor.detach().cpu().contiguous()
    save_file(state, folder / STATE_FILE, metadata={"format": "pt"})


def load_training_state(model: nn.Module, folder: Path) -> None:
    """Read into ``model`` what ``save_training_state`` wrote, and its pruner's state.

    Raises:
        ModelDirectoryError: The folder is no checkpoint of this model and these masks.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise ModelDirectoryError(
            "no state of an unfinished run in it", where=str(folder), todo="start without --resume"
        )
    state = load_file(path)
    missing, unexpected = model.load_state_dict(state, strict=False)
    now = model.state_dict()
    read = {now[name].data_ptr() for name in state if name in now}
    if unexpected or any(now[name].data_ptr() not in read for name in missing):  # what is tied was written once
        raise ModelDirectoryError(
            "the checkpoint is of another model or of other masks",
            where=str(path),
            todo="resume with the options of the first start",
        )
    pruner = find_pruner(model)
    if pruner is not None:
        record = read_record_file(folder)
        pruner.load_state(record.facts, record.live)
