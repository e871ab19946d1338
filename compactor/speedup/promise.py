"""Whether a promised speed is kept: every model exported, and measured against the whole one by ``compactor bench``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compactor.benching.bench import bench
from compactor.errors import MeasurementError
from compactor.evaluation.datafiles import read_lengths
from compactor.speedup.costs import Load

WHOLE, FP32 = "whole", "whole, fp32"  # the names of the model as it was, in the precision that is served and in fp32
TOLERANCE = 0.05  # of the promise
_ROUNDS = 6
_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Measured:
    """The speed of one model.

    Attributes:
        speedup: Time of the whole model over this one's.
        low: Lower end of the 95 % interval; None with too few rounds.
        high: Its upper end.
        latency_ms: Of one call.
        valid: Whether the whole measurement was found to be.
    """

    speedup: float
    low: float | None
    high: float | None
    latency_ms: float
    valid: bool

    def keeps(self, target: float) -> bool:
        """Whether it is within ``TOLERANCE`` of ``target``."""
        return abs(self.speedup / target - 1) <= TOLERANCE

    def breaks(self, target: float) -> bool:
        """Whether it is not, beyond what noise explains: on a busy machine a correction would follow the noise."""
        within = self.low is not None and self.high is not None and self.low <= target <= self.high
        return not self.keeps(target) and not within


def measure(
    graphs: Mapping[str, Path], load: Load, say: Callable[[str], None]
) -> tuple[dict[str, Measured], dict[str, Any]]:
    """Time the graphs beside each other; the first is the whole model.

    Returns:
        The speed of each, and the report.

    Raises:
        MeasurementError: One of them failed.
    """
    shape: dict[str, Any] = {"batch": [load.batch], "seq": None if load.seq is None else [load.seq]}
    if load.lengths is not None:
        shape = {"batch": [load.batch], **_file(load.lengths)}
    paths = list(graphs.values())
    report = bench(paths, baseline=paths[0], rounds=_ROUNDS, duration_s=_SECONDS, progress=say, **shape)
    if report["interrupted"]:
        raise KeyboardInterrupt  # bench keeps what it has; half a measurement is no promise
    valid = report["verdict"]["valid"]
    found = {}
    for name, path in graphs.items():
        variant = next(item for item in report["variants"] if Path(item["target"]) == path)
        if variant["status"] != "measured":
            raise MeasurementError(f"the graph of {name} could not be measured", where=str(path))
        result = variant["results"][0]
        ratio = result["ratio"] or {"value": 1.0, "low": 1.0, "high": 1.0}
        found[name] = Measured(ratio["value"], ratio["low"], ratio["high"], result["summary"]["median"], valid)
    return found, report


def judge(
    graphs: Mapping[str, Path], evaluation: Path, say: Callable[[str], None]
) -> tuple[str | None, dict[str, dict[str, Any]]]:
    """The metrics of each graph on labelled data, paired with those of the first.

    Returns:
        The metric that models are compared by, and all of each graph's.
    """
    paths = list(graphs.values())
    report = bench(paths, baseline=paths[0], data=evaluation, batch=[32], quick=True, rounds=1, progress=say)
    if report["interrupted"]:
        raise KeyboardInterrupt
    found = {}
    for name, path in graphs.items():
        variant = next(item for item in report["variants"] if Path(item["target"]) == path)
        quality = variant["quality"] or {"metrics": {}}
        found[name] = dict(quality["metrics"])
    return next(iter(found[next(iter(graphs))]), None), found


def _file(path: Path) -> dict[str, Any]:
    return {"lengths": path} if read_lengths(path) is not None else {"data": path}
