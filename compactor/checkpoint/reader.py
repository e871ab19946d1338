"""Read a checkpoint of any supported kind as the one plain model it stands for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from compactor.checkpoint.agreement import check_agreement
from compactor.checkpoint.config import NO_NORM, NORM_TYPE, check_config, read_json_object, sanitise
from compactor.checkpoint.folder import find_model_folder
from compactor.checkpoint.foreign import refuse_adapters
from compactor.checkpoint.masks import fold_masks, has_scores, is_mask_tensor
from compactor.checkpoint.no_norm import fold_statistics, has_statistics
from compactor.checkpoint.pruned_heads import read_pruned_heads, restore_heads
from compactor.checkpoint.pruning_record import MASKS_FILE, RECORD_FILE, describe_record
from compactor.checkpoint.sparse_args import FILE_NAME as SPARSE_ARGS
from compactor.checkpoint.sparse_args import SparseArgs, read_sparse_args
from compactor.checkpoint.weights import SourceFile, Weights, hash_file, open_weights
from compactor.checkpoint.wrappers import drop_front, find_front, unwrap
from compactor.errors import ModelDirectoryError

# The embedding, and what the families here call the table that may be tied to it.
_EMBEDDING = (".word_embeddings.weight", ".tok_embeddings.weight")
_OUTPUT_EMBEDDINGS = (
    "cls.predictions.decoder.weight",
    "lm_head.decoder.weight",
    "vocab_projector.weight",
    "generator_lm_head.weight",
)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint with its masks folded in and its pruned heads put back.

    Attributes:
        path: The model directory as the user named it.
        model_path: The folder that held config and weights; differs from ``path`` for old sentence-transformers ones.
        format: ``"plain"``, ``"nn_pruning"`` or ``"head_pruned"``.
        config: ``config.json`` without the keys that run code, choose a kernel, or list pruned heads.
        tensors: Names and shapes of the stock model, stored type. Mapped privately: never written back to the files.
        files: Every file that was read.
        notes: Plain sentences for the user.
    """

    path: Path
    model_path: Path
    format: str
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    files: tuple[SourceFile, ...]
    notes: tuple[str, ...]


def read_checkpoint(path: str | Path, *, allow_pickle: bool = False) -> Checkpoint:
    """Read a model directory: plain, raw nn_pruning, or head-pruned.

    Runs no code from the directory, and allocates nothing for the model before the sizes in ``config.json`` agree
    with the headers of the weights.

    Args:
        path: The model directory.
        allow_pickle: Also accept ``pytorch_model.bin`` (opened with ``weights_only``).

    Raises:
        ModelDirectoryError: The directory is incomplete, damaged, unsafe or not supported.
    """
    root = Path(path)
    folder = find_model_folder(root)
    config_path = folder / "config.json"
    raw = read_json_object(config_path)
    sizes = check_config(raw, str(config_path))
    pruned = read_pruned_heads(raw, sizes, str(config_path))
    refuse_adapters(folder)
    weights, name_notes = _unwrap(open_weights(folder, allow_pickle=allow_pickle), str(folder))
    raw_training = has_scores(weights.shapes) or has_statistics(weights.shapes)
    sparse_args = _read_masking(root, folder) if raw_training else None
    check_agreement(raw["model_type"], sizes, weights.shapes, pruned, str(config_path))

    config = sanitise(raw)
    weights, front_notes = _drop_front(weights, config)
    tensors = weights.load()
    files = [config_path, *weights.paths]
    kind, notes = "plain", [*name_notes, *front_notes, *_type_notes(weights)]
    if raw.get("auto_map"):
        notes.append(
            f"the code that 'auto_map' names is not run: the model is transformers' own '{raw['model_type']}', as "
            "without trust_remote_code"
        )
    if sparse_args:  # before the heads return: the scores have the shapes that are stored
        args_path, args = sparse_args
        kind = "nn_pruning"
        files.append(args_path)
        notes.extend(fold_masks(tensors, args))
        if args.relu:
            config["hidden_act"] = "relu"
            notes.append("hidden_act set to relu: sparse_args.json says that training replaced GELU")
        if args.no_norm:
            notes.append(fold_statistics(tensors, raw.get("layer_norm_eps"), str(folder)))
            config[NORM_TYPE] = NO_NORM
    elif (folder / SPARSE_ARGS).is_file():
        notes.append(f"{SPARSE_ARGS} ignored: the weights hold no mask scores")
    if (tied := _tie_note(raw, tensors)) is not None:
        notes.append(tied)
    if (record := describe_record(folder, tensors)) is not None:
        files += [folder / RECORD_FILE, folder / MASKS_FILE]
        notes.append(record)
    if pruned:
        kind = kind if sparse_args else "head_pruned"
        notes.append(restore_heads(tensors, pruned, sizes))
    return Checkpoint(root, folder, kind, config, tensors, tuple(map(hash_file, files)), tuple(notes))


def _unwrap(weights: Weights, where: str) -> tuple[Weights, list[str]]:
    """The weights under names without what training tools left in them, and what that was."""
    names, notes = unwrap(weights.shapes, where)
    names, parallel = drop_front(names, "module.")  # DDP's; no family's own names begin so
    return weights.renamed(names), notes + parallel


def _drop_front(weights: Weights, config: dict[str, Any]) -> tuple[Weights, list[str]]:
    """The weights without a front that all names share and the stock model's have not.

    Sizes have been compared with the shapes by now, and a config that asks for more layers than there are tensors is
    refused: the stock model that names them is small enough to be built on paper.
    """
    names, notes = drop_front({name: name for name in weights.shapes}, find_front(weights.shapes, config))
    return weights.renamed(names), notes


def _tie_note(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str | None:
    """Say which of two tables counts where the config ties them and they differ: it depends on transformers."""
    if config.get("tie_word_embeddings") is False:
        return None
    table = next((name for name in sorted(tensors) if name.endswith(_EMBEDDING)), None)
    head = next((name for name in sorted(tensors) if name.endswith(_OUTPUT_EMBEDDINGS)), None)
    if table is None or head is None:
        return None
    if tensors[table].shape != tensors[head].shape or torch.equal(tensors[table], tensors[head]):
        return None
    return (
        f"'{head}' is not '{table}', though 'tie_word_embeddings' says so: transformers 5 uses both, transformers 4 "
        "the embedding for both, and the graph is as the version here does it"
    )


def _read_masking(root: Path, folder: Path) -> tuple[Path, SparseArgs]:
    """Where ``sparse_args.json`` is, and what it says."""
    for path in (folder / SPARSE_ARGS, root / SPARSE_ARGS):
        if path.is_file():
            return path, read_sparse_args(path)
    raise ModelDirectoryError(
        f"the weights hold mask scores or statistics of norms, but {SPARSE_ARGS} is missing",
        where=str(folder),
        todo="copy it from nn_pruning's output folder: without it they mean nothing",
    )


def _type_notes(weights: Weights) -> list[str]:
    """Say which type the weights are stored in where that is not the type they are computed in."""
    types = sorted({weights.dtypes[name] for name in weights.dtypes if not is_mask_tensor(name)} - {"integer"})
    return [f"weights stored in {' and '.join(types)}, computed in float32"] if types != ["float32"] else []
