"""What the variants answered: do those of an encoder-decoder compute the same, and how good are the answers of each.

Tokens are the same or not; a text that differs in one token may differ in all that follow, so texts are counted, not
tokens. States and logits have a largest difference. A baseline that is another model, or int8, differs for a reason,
so nothing of that is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from compactor.benching.engines.feeding import read_feeds
from compactor.benching.plan import Case
from compactor.benching.workload import Workload
from compactor.errors import MeasurementError
from compactor.evaluation.answers import Outputs, predict, read_outputs
from compactor.evaluation.quality import difference, evaluate
from compactor.evaluation.texts import VectorTexts
from compactor.evaluation.vectors import BESIDE_BASELINE, predict_vectors, read_vectors

T = TypeVar("T")
Agreements = dict[str, dict[str, dict[str, Any]]]


def find_agreements(kept: Path, cases: Sequence[Case], baseline: str | None) -> Agreements:
    """The report's ``agreement`` blocks, by variant and case.

    Args:
        kept: What the processes left: ``<variant>/<case>.<batch>.npz``.
        cases: Those of which to look at what was left.
        baseline: Id of the variant that the others are compared with; None compares nothing.
    """
    if baseline is None or not kept.is_dir():
        return {}
    return {
        folder.name: {case.id: found for case in cases if (found := _agreement(folder, kept / baseline, case))}
        for folder in sorted(kept.iterdir())
        if folder.name != baseline
    }


def _agreement(mine: Path, base: Path, case: Case) -> dict[str, Any] | None:
    """None where one of the two left nothing."""
    names = [f"{case.id}.{index}.npz" for index in range(len(case.files))]
    if not all((folder / name).is_file() for folder in (mine, base) for name in names):
        return None
    found: dict[str, Any] = {"texts": None, "same_texts": None, "max_abs_diff": None, "max_abs": None}
    for name in names:
        own, other = read_feeds(mine / name), read_feeds(base / name)
        if own.keys() != other.keys() or any(own[key].ndim != other[key].ndim for key in own):
            return None
        for key in own:
            _compare(found, key, own[key], other[key])
    return found


def _compare(found: dict[str, Any], key: str, own: NDArray[Any], other: NDArray[Any]) -> None:
    """Take one output into account."""
    alike = own.shape == other.shape
    if key == "sequences":
        same = (own == other).all(axis=1).sum() if alike else 0
        found["texts"] = (found["texts"] or 0) + len(own)
        found["same_texts"] = (found["same_texts"] or 0) + int(same)
    elif alike and np.isfinite(own).all() and np.isfinite(other).all():
        difference = np.abs(own.astype(np.float64) - other)
        for name, values in (("max_abs_diff", difference), ("max_abs", np.abs(other))):
            found[name] = max(found[name] or 0.0, float(values.max()))


def describe_agreements(names: Mapping[str, str], agreements: Agreements, baseline: str) -> list[str]:
    """A sentence for each variant that wrote texts.

    Args:
        names: Of the variants, by id.
        agreements: What ``find_agreements`` found.
        baseline: Name of the variant that they are compared with.
    """
    sentences = []
    for variant, cases in agreements.items():
        texts = sum(found["texts"] or 0 for found in cases.values())
        same = sum(found["same_texts"] or 0 for found in cases.values())
        if texts:
            said = "the same tokens as" if same == texts else "other tokens than"
            count = f"in all {texts} texts" if same == texts else f"in {texts - same} of {texts} texts"
            sentences.append(f"{names[variant]} wrote {said} {baseline} {count} that were generated for the clock.")
    return sentences


def judge_quality(
    workload: Workload,
    outputs: Mapping[str, Sequence[Path]],
    *,
    baseline: str | None = None,
    notes: list[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """The report's ``quality`` block of each variant.

    Args:
        workload: The examples, their labels and the metrics.
        outputs: What each variant gave on ``workload.scoring``: a file for each of its batches, in order.
        baseline: The variant that the others are compared with; None compares nothing.
        notes: Told of variants whose outputs answer nothing; those have no block.
    """
    labelled = workload.labelled
    if labelled is not None and labelled.vectors is not None and workload.metrics:
        return _judge_vectors(workload, labelled.vectors, outputs, baseline, notes)
    if labelled is None or labelled.references is None or not workload.metrics:
        return {}
    predictions = _read_each(outputs, lambda batches: predict(workload.spec, labelled, batches), notes)
    blocks: dict[str, dict[str, Any]] = {}
    for name, found in predictions.items():
        base = predictions.get(baseline) if baseline is not None and name != baseline else None
        blocks[name] = {
            "metrics": {
                metric: {
                    **evaluate(metric, found, labelled.references, labels=workload.spec.label_count),
                    "difference": None
                    if base is None
                    else difference(metric, found, base, labelled.references, labels=workload.spec.label_count),
                }
                for metric in workload.metrics
            }
        }
    return blocks


def _read_each(
    outputs: Mapping[str, Sequence[Path]], read: Callable[[Iterable[Outputs]], T], notes: list[str] | None
) -> dict[str, T]:
    """What each variant answered; without those whose outputs answer nothing, of which the notes tell."""
    found = {}
    for name, files in outputs.items():
        try:
            found[name] = read(read_outputs(files))
        except MeasurementError as error:
            if notes is not None:
                notes.append(f"The quality of {name} could not be judged: {error.what}.")
    return found


def _judge_vectors(
    workload: Workload,
    texts: VectorTexts,
    outputs: Mapping[str, Sequence[Path]],
    baseline: str | None,
    notes: list[str] | None,
) -> dict[str, dict[str, Any]]:
    """The same of vectors, which are compared with what the file says, and with the baseline's."""
    vectors = _read_each(outputs, lambda batches: read_vectors(workload.spec, texts, batches), notes)
    base = vectors.get(baseline) if baseline is not None else None
    blocks: dict[str, dict[str, Any]] = {}
    for name, own in vectors.items():
        metrics: dict[str, Any] = {}
        for metric in workload.metrics:
            found = predict_vectors(metric, own, texts, base)
            if found is None:
                continue
            other = None if base is None or name == baseline else predict_vectors(metric, base, texts, base)
            compared = None
            if other is not None and metric not in BESIDE_BASELINE:
                compared = difference(metric, found[0], other[0], found[1])
            metrics[metric] = {**evaluate(metric, *found), "difference": compared}
        if metrics:
            blocks[name] = {"metrics": metrics}
    return blocks
