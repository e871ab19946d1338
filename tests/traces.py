"""A model is traced once in a test process, whichever tests export it: tracing is most of what a small export costs."""

from __future__ import annotations

import functools
import gc
import hashlib
import io
import json
import pickle
import types
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry
from transformers import PretrainedConfig

from compactor.importing import encoder, encoder_decoder
from compactor.importing.tracing import trace_module

_EXPORT = torch.onnx.export
_WHERE_IT_CAME_FROM = ("_name_or_path", "transformers_version")


def trace_once(patch: pytest.MonkeyPatch) -> None:
    """Give the graph of before to a model that is the same to the last bit: its code, weights and settings.

    What fails is tried again, and whoever replaces the exporter gets the replacement. The exporter's own table of
    operators, for which it parses the source of five hundred functions in each trace, is made once.
    """
    patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
    kept: dict[str, tuple[ir.Model, list[str]]] = {}

    def traced(
        module: Any,
        example: Mapping[str, torch.Tensor],
        axes: Mapping[str, Any],
        *,
        beside: Sequence[ir.Model] = (),
        **told: Any,
    ) -> tuple[ir.Model, list[str]]:
        if torch.onnx.export is not _EXPORT:
            return trace_module(module, example, axes, beside=beside, **told)
        key = _fingerprint(module, example, axes)
        if key is None:
            return trace_module(module, example, axes, beside=beside, **told)
        if key not in kept:
            others = [model for model, _ in kept.values()]  # which keep their weights
            kept[key] = trace_module(module, example, axes, beside=[*beside, *others], **told)
            gc.collect()
            gc.freeze()  # what the exporter keeps for good, which each later export would look at again
        model, produced = kept[key]
        return model.clone(), [*produced]

    for wing in (encoder, encoder_decoder):
        patch.setattr(wing, "trace_module", traced)


def _fingerprint(module: Any, example: Mapping[str, torch.Tensor], axes: Mapping[str, Any]) -> str | None:
    """A hash of all that a trace depends on; None of what cannot be written out."""
    stream = io.BytesIO()
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in example.items()}
    try:
        _Pickler(stream).dump((module, repr(shapes), repr(axes)))
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
    return hashlib.sha256(stream.getbuffer()).hexdigest()


class _Pickler(pickle.Pickler):
    """Writes weights by their bytes, code by its place, and configs without the folder that they were read from."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, torch.Tensor):
            content = obj.detach().cpu().contiguous().view(torch.uint8) if obj.ndim else obj.detach().reshape(1)
            return repr, ((obj.shape, obj.dtype, hashlib.sha256(content.numpy().tobytes()).digest()),)
        if isinstance(obj, PretrainedConfig):
            settings = {key: value for key, value in obj.to_dict().items() if key not in _WHERE_IT_CAME_FROM}
            return json.loads, (json.dumps(settings, sort_keys=True, default=repr),)
        if isinstance(obj, types.FunctionType):
            return repr, (_place(obj),)
        if isinstance(obj, type) and issubclass(obj, torch.nn.Module):
            return repr, ((obj.__module__, obj.__qualname__, _place(obj.forward)),)
        return NotImplemented


def _place(function: Any) -> str:
    """Where a function is written: two that a test made of one name differ in it."""
    code = getattr(function, "__code__", None)
    return f"{function!r}" if code is None else f"{code.co_filename}:{code.co_firstlineno}"
