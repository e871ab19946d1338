"""What makes small models fit for tests of an export: one trace for many exports, and int8 for small weights too."""

from __future__ import annotations

import functools

import onnx_ir as ir
import pytest

import compactor.building
import compactor.pipeline
from compactor.importer import LoadedModel, trace
from compactor.passes.quantize_linears import QuantizeLinearsPass

_kept: dict[tuple[str, str], ir.Model] = {}


def trace_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``export`` trace each model directory once for a task; its folder must not change meanwhile.

    Tracing is most of the time of a small export.
    """

    def traced(loaded: LoadedModel) -> ir.Model:
        key = (loaded.where, loaded.task.name)
        if key not in _kept:
            _kept[key] = trace(loaded)
        return _kept[key].clone()

    monkeypatch.setattr(compactor.building, "trace", traced)


def quantize_small_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make int8 take every linear layer, where an export of a real model leaves the smallest in float32."""
    everything = functools.partial(QuantizeLinearsPass, min_elements=0)
    monkeypatch.setattr(compactor.pipeline, "QuantizeLinearsPass", everything)
