"""Prunes transformers by training, and compiles them into small, fast, verified ONNX graphs.

The Python API is what this module names; the modules behind it load when they are first used.

    >>> import compactor
    >>> result = compactor.export("pruned-model", "compact-model")
    >>> result.path, result.manifest["verification"]["max_abs_diff"]
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if not Path(__file__).with_name("runtime").is_dir():
    # This is the source tree, found before the installed package, as by ``python`` in a clone: there ``passes`` and
    # ``runtime`` stand beside this folder.
    __path__.append(str(Path(__file__).parents[1]))

if TYPE_CHECKING:
    from compactor.benching.bench import bench
    from compactor.benching.comparing import compare
    from compactor.benching.report import load_report
    from compactor.errors import (
        CompactorError,
        MeasurementError,
        ModelDirectoryError,
        OutputError,
        TrainingError,
        UsageError,
        VerificationError,
    )
    from compactor.exporting.export import ExportResult, export
    from compactor.exporting.inspecting import Inspection, inspect
    from compactor.exporting.verifying import verify
    from compactor.manifest import load_manifest
    from compactor.predicting.on_ray import RayOptions
    from compactor.predicting.predict import Prediction, predict
    from compactor.speedup.costs import Load
    from compactor.speedup.family import FamilyResult, prune_to_speed
    from compactor.speedup.settings import SpeedSettings
    from compactor.trainer.config import PruneConfig
    from compactor.trainer.pruning import PruneResult, prune

    __version__: str

__all__ = [
    "CompactorError",
    "ExportResult",
    "FamilyResult",
    "Inspection",
    "Load",
    "MeasurementError",
    "ModelDirectoryError",
    "OutputError",
    "Prediction",
    "PruneConfig",
    "PruneResult",
    "RayOptions",
    "SpeedSettings",
    "TrainingError",
    "UsageError",
    "VerificationError",
    "__version__",
    "bench",
    "compare",
    "export",
    "inspect",
    "load_manifest",
    "load_report",
    "predict",
    "prune",
    "prune_to_speed",
    "verify",
]

COMPILER = ("torch", "transformers", "onnxscript")  # what the extra ``export`` brings
_HOMES = {
    "CompactorError": "errors",
    "ExportResult": "exporting.export",
    "FamilyResult": "speedup.family",
    "Inspection": "exporting.inspecting",
    "Load": "speedup.costs",
    "MeasurementError": "errors",
    "ModelDirectoryError": "errors",
    "OutputError": "errors",
    "Prediction": "predicting.predict",
    "PruneConfig": "trainer.config",
    "PruneResult": "trainer.pruning",
    "RayOptions": "predicting.on_ray",
    "SpeedSettings": "speedup.settings",
    "TrainingError": "errors",
    "UsageError": "errors",
    "VerificationError": "errors",
    "bench": "benching.bench",
    "compare": "benching.comparing",
    "export": "exporting.export",
    "inspect": "exporting.inspecting",
    "load_manifest": "manifest",
    "load_report": "benching.report",
    "predict": "predicting.predict",
    "prune": "trainer.pruning",
    "prune_to_speed": "speedup.family",
    "verify": "exporting.verifying",
}


def __getattr__(name: str) -> Any:
    """Import ``name`` on first use: the command line must start without torch."""
    import importlib

    if name == "__version__":
        value: Any = importlib.import_module("importlib.metadata").version("compactor")
    elif name in _HOMES:
        try:
            value = getattr(importlib.import_module(f"compactor.{_HOMES[name]}"), name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] not in COMPILER:
                raise
            raise ImportError(
                f"compactor.{name} needs '{error.name}': pip install 'compactor[export]', or [train] to prune",
                name=error.name,
            ) from error
    else:
        raise AttributeError(f"module 'compactor' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
