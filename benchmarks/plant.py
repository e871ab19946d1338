"""Plant the sizes of a published pruned checkpoint in a random BERT.

Speed depends on which sizes are left and not on what the weights are, so a random model with the zeros of the paper's
checkpoint times like that checkpoint, without its weights:

    python benchmarks/plant.py OUT_DIR --f1 87.709 [--dense]

Weights are N(0, 0.02). Biases are never zero, also where the weights are: real checkpoints keep them, and a compiler
that drops them changes the output.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHAPES = Path(__file__).resolve().parent / "paper_shapes.json"
VOCABULARY = 30522
DENSE = "dense"
BASE_WIDTH = 768  # of BERT-base
# Dense BERT-large against dense BERT-base, from the paper's two speeds of pruned ones against dense BERT-large
# (2.9 and 3.2) and the published ones of the same checkpoints against BERT-base (0.922 and 1.028).
LARGE_GPU_SPEEDUP = 0.32
_SPREAD = 0.02  # standard deviation, as BERT is initialised

Mask = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """Sizes of one checkpoint of the paper.

    Attributes:
        task: ``squadv1``, ``squadv2`` or ``mnli``.
        method: How it was pruned, in the paper's words; ``dense`` for not at all.
        teacher: ``base`` or ``large``: whose answers it learned from.
        hidden: Width of the model.
        heads: Heads of each layer before pruning.
        head_size: Channels of a head.
        intermediate: Neurons of each feed-forward layer before pruning.
        kept_heads: Heads left, one number a layer.
        kept_ffn: Neurons left, one number a layer.
        attention_nnz: Live weights of Q, K, V and O together, one number a layer.
        attention_block: Rows and columns of a block of Q, K and V; O is cut the other way round.
        metrics: What the checkpoint scored.
        gpu_speedup: The authors' measurement against dense BERT-base.
    """

    task: str
    method: str
    teacher: str
    hidden: int
    heads: int
    head_size: int
    intermediate: int
    kept_heads: tuple[int, ...]
    kept_ffn: tuple[int, ...]
    attention_nnz: tuple[int, ...]
    attention_block: tuple[int, int] = (1, 1)
    metrics: dict[str, float] = dataclasses.field(hash=False, default_factory=dict)
    gpu_speedup: float = 1.0

    @property
    def large(self) -> bool:
        """Whether it is a BERT-large."""
        return self.hidden > BASE_WIDTH

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return len(self.kept_heads)

    @property
    def score(self) -> float:
        """F1 where there is one, else accuracy."""
        return self.metrics.get("f1", self.metrics.get("eval_accuracy", 0.0))

    @property
    def title(self) -> str:
        """For tables."""
        left = f"{sum(self.kept_heads)} heads, {sum(self.kept_ffn)} neurons"
        return f"{self.task} {self.method}, score {self.score:g}, {left}"

    @property
    def slug(self) -> str:
        """For folders."""
        if self.method == DENSE:
            return f"{self.task}-{DENSE}-{self.hidden}"
        large = "large-" if self.large else ""
        return f"{self.task}-{large}{self.method}-{self.score:g}"

    def to_json(self) -> dict[str, Any]:
        """The fields, and what derives from them."""
        derived = {"title": self.title, "score": self.score, "linear_weights": self.linear_weights}
        return {"id": self.slug, **derived, **dataclasses.asdict(self)}

    @property
    def linear_weights(self) -> int:
        """Live weights of the encoder's matrices."""
        return sum(self.attention_nnz) + 2 * self.hidden * sum(self.kept_ffn)


def read_entries(path: Path = SHAPES) -> list[Entry]:
    """The entries of ``paper_shapes.json``, in its order."""
    names = [field.name for field in dataclasses.fields(Entry) if field.name != "gpu_speedup"]
    entries = []
    for raw in json.loads(path.read_text(encoding="utf-8"))["checkpoints"]:
        fields: dict[str, Any] = {n: tuple(raw[n]) if isinstance(raw[n], list) else raw[n] for n in names}
        entries.append(Entry(**fields, gpu_speedup=raw["gpu_speedup_vs_bert_base"]))
    return entries


def find_entry(entries: Sequence[Entry], *, index: int | None = None, score: float | None = None) -> Entry:
    """The entry at ``index``, or the one whose score is ``score``.

    Raises:
        LookupError: There is none, or there is more than one.
    """
    if index is not None:
        if not 0 <= index < len(entries):
            raise LookupError(f"there is no entry {index}; there are {len(entries)}, counted from 0")
        return entries[index]
    found = [entry for entry in entries if entry.score == score]
    if len(found) != 1:
        known = ", ".join(f"{entry.score:g}" for entry in entries)
        raise LookupError(f"{len(found)} entries have the score {score}; known scores: {known}")
    return found[0]


def dense_twin(entry: Entry) -> Entry:
    """The model that ``entry`` was pruned from: the same random weights, all alive. Its score is not in the file."""
    return dataclasses.replace(
        entry,
        method=DENSE,
        teacher="base",  # one dense model, whatever taught what was pruned from it
        kept_heads=(entry.heads,) * entry.layers,
        kept_ffn=(entry.intermediate,) * entry.layers,
        attention_nnz=(4 * entry.hidden**2,) * entry.layers,
        attention_block=(1, 1),
        metrics={},
        gpu_speedup=LARGE_GPU_SPEEDUP if entry.large else 1.0,
    )


def plant(folder: Path, entry: Entry, *, task: str | None = None, seed: int = 0) -> None:
    """Write a Hugging Face folder with a random BERT that has the zeros of ``entry``.

    Args:
        folder: Where to; created.
        entry: The sizes.
        task: ``question-answering`` or ``text-classification``; None takes that of the entry.
        seed: Of the weights, and of where the zeros go.
    """
    import torch
    import transformers
    from safetensors.torch import save_file

    task = task or ("question-answering" if entry.task.startswith("squad") else "text-classification")
    answering = task == "question-answering"
    kind = transformers.BertForQuestionAnswering if answering else transformers.BertForSequenceClassification
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=entry.hidden,
        num_hidden_layers=entry.layers,
        num_attention_heads=entry.heads,
        intermediate_size=entry.intermediate,
    )
    torch.manual_seed(seed)
    model = kind(config).eval()
    tensors = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    for name, tensor in tensors.items():
        if name.endswith("bias"):
            tensor.normal_(std=_SPREAD)
    random = np.random.default_rng(seed)
    for i in range(entry.layers):
        for name, alive in layer_masks(entry, i, random).items():
            tensors[f"bert.encoder.layer.{i}.{name}.weight"].mul_(torch.from_numpy(alive))

    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    written = {**config.to_dict(), "architectures": [kind.__name__]}
    (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def layer_masks(entry: Entry, layer: int, random: np.random.Generator) -> dict[str, Mask]:
    """Which weights of layer ``layer`` are alive, as (out, in) masks by module name."""
    heads = np.sort(random.choice(entry.heads, entry.kept_heads[layer], replace=False))
    neurons = np.zeros(entry.intermediate, dtype=bool)
    neurons[random.choice(entry.intermediate, entry.kept_ffn[layer], replace=False)] = True
    up = np.repeat(neurons[:, None], entry.hidden, axis=1)
    q, k, v, o = _attention_masks(entry, heads, entry.attention_nnz[layer], random)
    return {
        "attention.self.query": q,
        "attention.self.key": k,
        "attention.self.value": v,
        "attention.output.dense": np.ascontiguousarray(o.T),
        "intermediate.dense": up,
        "output.dense": np.ascontiguousarray(up.T),
    }


def _attention_masks(entry: Entry, heads: NDArray[np.int64], live: int, random: np.random.Generator) -> Mask:
    """Masks of Q, K, V and the transposed O, (4, out, in), with about ``live`` weights in whole blocks of ``heads``.

    One block of every strip of rows stays alive, so that exactly ``heads`` survive and each at full width: which
    channels died in the published checkpoints is not known. A count beyond what ``heads`` can hold means full.
    """
    rows, columns = np.minimum(entry.attention_block, (entry.head_size, entry.hidden))
    strips, across = entry.head_size // rows, entry.hidden // columns
    alive = np.zeros((4, len(heads) * strips, across), dtype=bool)
    if live >= alive.size * rows * columns:
        alive[:] = True
    else:
        for matrix, strip in np.ndindex(alive.shape[:2]):
            alive[matrix, strip, random.integers(across)] = True
        missing = max(0, round(live / (rows * columns)) - int(alive.sum()))
        alive.reshape(-1)[random.permutation(np.flatnonzero(~alive))[:missing]] = True

    masks = np.zeros((4, entry.heads, entry.head_size, entry.hidden), dtype=bool)
    weights = alive.repeat(rows, axis=1).repeat(columns, axis=2)
    masks[:, heads] = weights.reshape(4, len(heads), entry.head_size, entry.hidden)
    return masks.reshape(4, -1, entry.hidden)


def check_sizes(entry: Entry, layers: Sequence[dict[str, Any]]) -> None:
    """Assert the workload: an artefact's layers (``compactor.json``) have the sizes of ``entry``."""
    heads = tuple(layer["heads"][1] for layer in layers if layer["kind"] == "attention")
    neurons = tuple(layer["width"][1] for layer in layers if layer["kind"] == "feed_forward")
    if heads != entry.kept_heads or neurons != entry.kept_ffn:
        raise AssertionError(
            f"expected heads {entry.kept_heads} and neurons {entry.kept_ffn}, got {heads} and {neurons}"
        )


def add_entry_options(parser: argparse.ArgumentParser) -> None:
    """Options that choose an entry."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--entry", type=int, help="index in paper_shapes.json, from 0")
    group.add_argument("--f1", type=float, default=None, help="score of the entry (default: 87.709)")


def chosen_entry(args: argparse.Namespace) -> Entry:
    """The entry that the options of ``add_entry_options`` stand for. Exits with a message where there is none."""
    try:
        return find_entry(read_entries(), index=args.entry, score=87.709 if args.f1 is None else args.f1)
    except LookupError as error:
        sys.exit(f"error: {error}")


def main(argv: Sequence[str] | None = None) -> int:
    """Plant one entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    add_entry_options(parser)
    parser.add_argument("--dense", action="store_true", help="the same random weights without the zeros")
    parser.add_argument("--task", choices=("question-answering", "text-classification"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    entry = chosen_entry(args)
    plant(args.folder, dense_twin(entry) if args.dense else entry, task=args.task, seed=args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
