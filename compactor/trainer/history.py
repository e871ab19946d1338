"""What a run said of itself: log lines and evaluations, for its page, and a line each for who waits."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compactor.console import Progress
from compactor.trainer.pruner import Pruner

HISTORY_FILE = "history.json"


class History:
    """What a run said of itself: log lines and evaluations, for the page; and a line for who waits.

    Args:
        steps: Optimizer steps in all.
        metric: The one to tell.
        progress: Told a line at each log and each evaluation.
        detailed: Whether that line says what is left of each layer.
    """

    def __init__(self, steps: int, metric: str, progress: Progress, *, detailed: bool = False) -> None:
        self.steps, self.metric, self.progress, self.detailed = steps, metric, progress, detailed
        self.log: list[dict[str, float | None]] = []
        self.evaluations: list[dict[str, Any]] = []
        self._start = time.monotonic()
        self._first: int | None = None
        self._before = 0.0  # seconds of the runs that this one resumes

    @property
    def seconds(self) -> float:
        """How long training has taken, with the runs that were resumed."""
        return self._before + time.monotonic() - self._start

    def logged(self, step: int, logs: Mapping[str, float]) -> None:
        """Note a training line and tell it."""
        self.log.append({"step": step, "seconds": self.seconds, **{name: logs.get(name) for name in _LOGGED}})
        if self._first is None:
            self._first = step
            self._since = time.monotonic()
        parts = [f"step {step} of {self.steps}", f"loss {logs['loss']:.3f}"]
        if "density" in logs:
            parts += [
                f"{100 * logs['density']:.1f} % of the weights, {logs['heads']:.0f} heads",
                f"threshold {logs['threshold']:.3f}, λ {logs['lambda']:.3g}",
            ]
        done = step - self._first
        if done > 0:
            parts.append(f"{_minutes((self.steps - step) * (time.monotonic() - self._since) / done)} left")
        self.progress("; ".join(parts))

    def evaluated(self, step: int, pruner: Pruner | None, metrics: Mapping[str, float]) -> None:
        """Note an evaluation and tell it."""
        plain = {
            name.removeprefix("eval_"): value
            for name, value in metrics.items()
            if isinstance(value, float) and not name.endswith(("_per_second", "_runtime", "epoch"))
        }
        loss = plain.pop("loss", None)
        density = 1.0 if pruner is None else pruner.density()
        self.evaluations.append({"step": step, "density": density, "metrics": plain, "loss": loss})
        told = f"evaluated at step {step}: {self.metric} {100 * plain.get(self.metric, 0.0):.2f} %"
        self.progress(f"{told} with {100 * density:.1f} % of the weights")
        if self.detailed and pruner is not None:
            for layer in pruner.layers():
                what = (
                    f"{sum(layer.heads)} of {len(layer.heads)} heads"
                    if layer.heads is not None
                    else "{} of {} neurons".format(*(layer.neurons or (0, 0)))
                )
                self.progress(f"  {layer.stack} {layer.name}: {what}, {100 * layer.density:.1f} %")

    def write(self, path: Path) -> None:
        """For who resumes."""
        content = {"log": self.log, "evaluations": self.evaluations, "seconds": self.seconds}
        path.write_text(json.dumps(content), encoding="utf-8")

    def read(self, path: Path) -> None:
        """Go on from what ``write`` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        self.log, self.evaluations, self._before = content["log"], content["evaluations"], content["seconds"]


_LOGGED = (
    "loss",
    "task_loss",
    "distillation_loss",
    "hidden_loss",
    "regularization",
    "threshold",
    "lambda",
    "density",
    "density_attention",
    "density_feed_forward",
    "heads",
    "learning_rate",
)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
