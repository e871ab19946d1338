"""Tracing is most of the time of a small export: tests that export one model in many ways trace it once."""

from __future__ import annotations

import onnx_ir as ir
import pytest

import compactor.exporting
from compactor.importer import LoadedModel, trace

_kept: dict[tuple[str, str], ir.Model] = {}


def trace_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``export`` trace each model directory once for a task; its folder must not change meanwhile."""

    def traced(loaded: LoadedModel) -> ir.Model:
        key = (loaded.where, loaded.task.name)
        if key not in _kept:
            _kept[key] = trace(loaded)
        return _kept[key].clone()

    monkeypatch.setattr(compactor.exporting, "trace", traced)
