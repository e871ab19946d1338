"""The model that is made faster, on the texts it is judged by: what it answers, and how far another answer is off.

The loss asks for no label: it holds the answers against those of the model as it was. Of labels and of answers to
questions it is the divergence of their distributions, KL(before || now); of words' labels and of masked words the same,
a mean over tokens; of vectors one minus their cosine. All are means over the examples.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, kl_div, log_softmax

from compactor.checkpoint.config import read_json_object
from compactor.checkpoint.folder import find_model_folder
from compactor.errors import ModelDirectoryError, UsageError
from compactor.evaluation.datafiles import read_table
from compactor.evaluation.inputs import InputSpec
from compactor.evaluation.texts import tokenize
from compactor.importing.sentence_vectors import vector_steps
from compactor.runtime.bucketing import by_length
from compactor.runtime.errors import ArtefactError
from compactor.runtime.folder import MODULES
from compactor.runtime.sentences.features import SENTENCE, TOKENS
from compactor.tasks import FEATURES, Task, find_task

LEAST_TEXTS = 32
_BATCH = 32
_SEARCH_TOKENS, _REPAIR_TOKENS, _STATISTICS_TOKENS = 3_000, 16_000, 40_000  # of a model as large as MiniLM
_USUAL_WEIGHTS = 11_000_000  # of its layers; a larger one is searched and repaired on fewer tokens

Batch = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model and its texts.

    Attributes:
        folder: The model directory, as it was given.
        home: The folder in it that holds the transformer.
        task: What it does.
        spec: What it takes.
        model: In float32, in evaluation mode; surgery changes it in place.
        statistics: Padded batches that the inputs of layers are counted on.
        repair: Fewer, for what runs once for every block.
        search: Fewer still, for what runs once for every trial.
        steps: What makes a vector of the tokens' states; empty takes their mean.
        texts: How many the file has.
    """

    folder: Path
    home: Path
    task: Task
    spec: InputSpec
    model: Any
    statistics: Sequence[Batch]
    repair: Sequence[Batch]
    search: Sequence[Batch]
    steps: Sequence[torch.nn.Module]
    texts: int

    @classmethod
    def open(cls, folder: Path, data: Path, seed: int) -> Subject:
        """The model in ``folder`` and the texts in ``data``; labels are not looked at.

        Args:
            folder: A Hugging Face or sentence-transformers model directory of an encoder of texts.
            data: A file of texts that ``compactor bench --data`` reads.
            seed: Of the choice of texts where there are more than are looked at.

        Raises:
            ModelDirectoryError: The model cannot be opened, or is of a kind that this is not built for.
            UsageError: The texts cannot be used.
        """
        home = find_model_folder(folder)
        config = read_json_object(home / "config.json")
        task = find_task(None, config, where=str(folder))
        if task.generates or task.image:
            raise ModelDirectoryError(
                f"--speedup is built for encoders of texts, and this is a model for {task.name}",
                where=str(folder),
                todo="prune it by training: leave out --speedup",
            )
        model = _open_model(home, task)
        spec = InputSpec.from_config(config, task=task.name, folder=home)
        table = read_table(data)
        found = tokenize(table, spec, labelled=task.name == FEATURES)
        examples = found.examples
        if len(examples) < LEAST_TEXTS:
            raise UsageError(
                f"{len(examples)} texts are too few to tell what a model can do without",
                where=str(data),
                todo=f"give {LEAST_TEXTS} or more; 2,000 are plenty",
            )
        takes = inspect.signature(model.forward).parameters
        layers = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
        share = min(1.0, _USUAL_WEIGHTS / max(layers, 1))
        order = np.random.default_rng(seed).permutation(len(examples))

        def batches(tokens: int) -> list[Batch]:
            within = np.cumsum(examples.lengths[order]) <= max(tokens, int(examples.lengths[order[0]]))
            rows = order[within]
            return [
                {
                    name: torch.from_numpy(np.ascontiguousarray(array))
                    for name, array in examples.batch(rows[part]).items()
                    if name in takes
                }
                for part in by_length(examples.lengths[rows], _BATCH)
            ]

        return cls(
            folder,
            home,
            task,
            spec,
            model,
            batches(int(_STATISTICS_TOKENS * max(share, 0.5))),
            batches(int(_REPAIR_TOKENS * max(share, 0.5))),
            batches(int(_SEARCH_TOKENS * max(share, 0.5))),
            _vector_steps(folder) if task.name == FEATURES else (),
            len(examples),
        )

    @property
    def example(self) -> Batch:
        """One text as the model takes it."""
        return {name: tensor[:1] for name, tensor in self.search[-1].items()}

    @torch.no_grad()
    def answers(self, batches: Sequence[Batch]) -> list[Tensor]:
        """What the model gives now: log-probabilities (..., C) of real tokens or of examples, or vectors (B, D)."""
        return [self._read(self.model(**batch), batch) for batch in batches]

    def loss(self, before: Sequence[Tensor], batches: Sequence[Batch]) -> float:
        """How far the answers of now are from those of ``before``, which are of the same batches."""
        total, count = 0.0, 0
        for right, own in zip(before, self.answers(batches), strict=True):
            if self.task.name == FEATURES:
                apart = (1 - cosine_similarity(right, own, dim=-1)).sum()
            else:
                apart = kl_div(own, right, reduction="sum", log_target=True)
            total += float(apart)
            count += right.shape[:-1].numel()
        return total / max(count, 1)

    def _read(self, outputs: Any, batch: Batch) -> Tensor:
        mask = batch["attention_mask"].bool()
        if self.task.name == "question-answering":
            ends = torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=1)  # (B, 2, S)
            lowest = torch.finfo(ends.dtype).min / 4
            return log_softmax(ends.masked_fill(~mask[:, None, :], lowest), dim=-1).double()
        if self.task.name == FEATURES:
            states: Tensor = outputs["last_hidden_state"]
            features = {TOKENS: states}
            for step in self.steps:
                step(features, batch["attention_mask"])
            if SENTENCE in features:
                return features[SENTENCE].double()
            weight = mask[:, :, None].to(states.dtype)
            return ((states * weight).sum(1) / weight.sum(1)).double()
        logits: Tensor = outputs["logits"]
        if logits.ndim == 3:
            logits = logits[mask]
        if logits.shape[-1] == 1 or self._independent:  # numbers or labels of their own: two sides each, of a sigmoid
            logits = torch.stack([logits, torch.zeros_like(logits)], dim=-1)
        return log_softmax(logits, dim=-1).double()

    @property
    def _independent(self) -> bool:
        return getattr(self.model.config, "problem_type", None) == "multi_label_classification"


def real_rows(states: Tensor, batch: Batch) -> Tensor:
    """(T, N) the rows of ``states`` that stand for real tokens, in float32; all where it is not (B, S, N)."""
    mask = batch.get("attention_mask")
    if mask is not None and states.ndim == 3 and states.shape[:2] == mask.shape:
        return states[mask.bool()]
    return states.reshape(-1, states.shape[-1])


def _open_model(home: Path, task: Task) -> Any:
    import transformers

    try:
        model = getattr(transformers, task.auto_class).from_pretrained(
            str(home), local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
    except Exception as error:  # transformers raises what it likes, bare Exception included
        reason = next((line for line in str(error).strip().splitlines() if line.strip()), repr(error))
        raise ModelDirectoryError(
            f"there is no {task.name} model in it: {reason}", where=str(home), todo="repair or convert its files"
        ) from error
    return model.eval().requires_grad_(False)


def _vector_steps(folder: Path) -> list[torch.nn.Module]:
    """The modules of a sentence-transformers folder; none where there are none, or no mask tells what they count."""
    if not (folder / MODULES).is_file():
        return []
    try:
        return vector_steps(folder)
    except (UsageError, ModelDirectoryError, ArtefactError):  # its mean stands for what cannot be told
        return []
