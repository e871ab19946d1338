"""What the variants answered, judged side by side: the ``quality`` block of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compactor.benching.workload import Workload
from compactor.errors import MeasurementError
from compactor.evaluation.answers import predict, read_outputs
from compactor.evaluation.quality import difference, evaluate


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
    if labelled is None or labelled.references is None or not workload.metrics:
        return {}
    predictions = {}
    for name, files in outputs.items():
        try:
            predictions[name] = predict(workload.spec, labelled, read_outputs(files))
        except MeasurementError as error:
            if notes is not None:
                notes.append(f"The quality of {name} could not be judged: {error.what}.")
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
