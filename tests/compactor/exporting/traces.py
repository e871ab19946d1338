"""What makes small models fit for tests of an export: one trace for many exports, and what is done to large weights."""

from __future__ import annotations

import functools

import onnx_ir as ir
import pytest

import compactor.exporting.building
import compactor.exporting.building_decoders
import compactor.exporting.serialization
import compactor.passes.pipeline
from compactor.importing.encoder import LoadedModel, trace
from compactor.importing.encoder_decoder import LoadedEncoderDecoder, trace_decoder, trace_encoder
from compactor.passes.finishing.share_transposed_weights import ShareTransposedWeightsPass
from compactor.passes.precision.quantize_embeddings import QuantizeEmbeddingsPass
from compactor.passes.precision.quantize_linears import QuantizeLinearsPass

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

    def encoder_traced(loaded: LoadedEncoderDecoder) -> ir.Model:
        key = (loaded.where, "encoder")
        if key not in _kept:  # both at once: tracing a half empties what is left of the other
            encoder = trace_encoder(loaded)
            _kept[loaded.where, "decoder"] = trace_decoder(loaded, encoder)
            _kept[key] = encoder
        return _kept[key].clone()

    def decoder_traced(loaded: LoadedEncoderDecoder, encoder: ir.Model) -> ir.Model:
        return _kept[loaded.where, "decoder"].clone()

    monkeypatch.setattr(compactor.exporting.building, "trace", traced)
    monkeypatch.setattr(compactor.exporting.building_decoders, "trace_encoder", encoder_traced)
    monkeypatch.setattr(compactor.exporting.building_decoders, "trace_decoder", decoder_traced)


def quantize_small_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make int8 take every linear layer, where an export of a real model leaves the smallest in float32."""
    everything = functools.partial(QuantizeLinearsPass, min_elements=0)
    monkeypatch.setattr(compactor.passes.pipeline, "QuantizeLinearsPass", everything)


def treat_small_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make int8 take every linear layer and table, let tied tables be kept once, and matrices be shared by graphs."""
    quantize_small_weights(monkeypatch)
    for pass_class in (QuantizeEmbeddingsPass, ShareTransposedWeightsPass):
        monkeypatch.setattr(
            compactor.passes.pipeline, pass_class.__name__, functools.partial(pass_class, min_elements=0)
        )
    monkeypatch.setattr(compactor.exporting.serialization, "_SMALLEST_EXTERNAL", 100)
