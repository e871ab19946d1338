"""The pipeline: which passes run, in which order, for which target.

``structure``, ``lowering`` and ``precision_passes`` are the design in short: exact removal on the canonical graph,
operators that are fast on the target, then the number format. Between the first two, ``equalisation`` prepares int8,
and ``caching`` makes two graphs of a decoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import onnx_ir as ir
from onnx_ir.passes import common

from compactor.passes.base import RewritePass
from compactor.passes.caching.attach_caches import AttachCachesPass, Step
from compactor.passes.canonical.fold_transposed_weights import FoldTransposedWeightsPass
from compactor.passes.canonical.label_layers import LabelLayersPass
from compactor.passes.canonical.normalize_attention import NormalizeAttentionPass
from compactor.passes.canonical.raise_attention import RaiseAttentionPass
from compactor.passes.canonical.raise_normalization import RaiseNormalizationPass
from compactor.passes.canonical.raise_relative_logits import RaiseRelativeLogitsPass
from compactor.passes.canonical.raise_rotary import RaiseRotaryPass
from compactor.passes.canonical.simplify_masks import SimplifyMasksPass
from compactor.passes.canonical.split_merged_heads import SplitMergedHeadsPass
from compactor.passes.canonical.split_projections import SplitProjectionsPass
from compactor.passes.canonical.tabulate_rotary import TabulateRotaryPass
from compactor.passes.equalisation.scale_gated_neurons import ScaleGatedNeuronsPass
from compactor.passes.equalisation.scale_norms import ScaleNormsPass
from compactor.passes.equalisation.scale_relu_neurons import ScaleReluNeuronsPass
from compactor.passes.equalisation.scale_values import ScaleValuesPass
from compactor.passes.finishing.name_nodes import NameNodesPass
from compactor.passes.finishing.share_transposed_weights import ShareTransposedWeightsPass
from compactor.passes.lowering.align_widths import AlignWidthsPass
from compactor.passes.lowering.decompose_attention import DecomposeAttentionPass
from compactor.passes.lowering.decompose_rotary import DecomposeRotaryPass
from compactor.passes.lowering.fuse_bias_gelu import FuseBiasGeluPass
from compactor.passes.lowering.fuse_cuda_attention import FuseCudaAttentionPass
from compactor.passes.lowering.fuse_cuda_rotary import FuseCudaRotaryPass
from compactor.passes.lowering.fuse_skip_layer_norm import FuseSkipLayerNormPass
from compactor.passes.lowering.lower_opset import LowerOpsetPass
from compactor.passes.lowering.pack_tokens import PackTokensPass
from compactor.passes.lowering.repeat_shared_heads import RepeatSharedHeadsPass
from compactor.passes.lowering.write_head_norms import WriteHeadNormsPass
from compactor.passes.lowering.write_masks_as_floats import WriteMasksAsFloatsPass
from compactor.passes.lowering.write_relative_logits import WriteRelativeLogitsPass
from compactor.passes.lowering.write_residuals_as_sum import WriteResidualsAsSumPass
from compactor.passes.precision.carry_biases import CarryBiasesPass
from compactor.passes.precision.convert_to_float16 import ConvertToFloat16Pass
from compactor.passes.precision.merge_projections import MergeProjectionsPass
from compactor.passes.precision.quantize_embeddings import QuantizeEmbeddingsPass
from compactor.passes.precision.quantize_linears import QuantizeLinearsPass
from compactor.passes.precision.quantize_linears_by_token import QuantizeLinearsByTokenPass
from compactor.passes.structure.absorb_norms import AbsorbNormsPass
from compactor.passes.structure.fold_value_biases import FoldValueBiasesPass
from compactor.passes.structure.remove_dead_heads import RemoveDeadHeadsPass
from compactor.passes.structure.remove_dead_neurons import RemoveDeadNeuronsPass
from compactor.passes.structure.remove_empty_sublayers import RemoveEmptySublayersPass
from compactor.passes.structure.trim_head_channels import TrimHeadChannelsPass

AnyPass = ir.passes.PassBase

PASSES: tuple[type[RewritePass], ...] = (
    FoldTransposedWeightsPass,
    RaiseNormalizationPass,
    SplitProjectionsPass,
    SplitMergedHeadsPass,
    RaiseRelativeLogitsPass,
    RaiseAttentionPass,
    RaiseRotaryPass,
    TabulateRotaryPass,
    NormalizeAttentionPass,
    LabelLayersPass,
    SimplifyMasksPass,
    AbsorbNormsPass,
    FoldValueBiasesPass,
    RemoveDeadHeadsPass,
    TrimHeadChannelsPass,
    RemoveDeadNeuronsPass,
    RemoveEmptySublayersPass,
    ScaleNormsPass,
    ScaleValuesPass,
    ScaleReluNeuronsPass,
    ScaleGatedNeuronsPass,
    AttachCachesPass,
    RepeatSharedHeadsPass,
    AlignWidthsPass,
    PackTokensPass,
    WriteRelativeLogitsPass,
    WriteHeadNormsPass,
    WriteResidualsAsSumPass,
    WriteMasksAsFloatsPass,
    FuseCudaAttentionPass,
    FuseCudaRotaryPass,
    FuseSkipLayerNormPass,
    FuseBiasGeluPass,
    DecomposeAttentionPass,
    DecomposeRotaryPass,
    LowerOpsetPass,
    MergeProjectionsPass,
    CarryBiasesPass,
    QuantizeEmbeddingsPass,
    QuantizeLinearsPass,
    QuantizeLinearsByTokenPass,
    ConvertToFloat16Pass,
    ShareTransposedWeightsPass,
    NameNodesPass,
)
"""Every pass, in the order in which a pipeline meets them; ``compactor passes`` shows them."""


def canonicalisation(stack: str = "", positions: int | None = None) -> list[AnyPass]:
    """From what the exporter wrote to the canonical dialect.

    Args:
        stack: What the layers' names begin with.
        positions: How many tokens the model takes; None where nothing limits them.
    """
    return [
        common.LiftConstantsToInitializersPass(),
        FoldTransposedWeightsPass(),  # of tied embeddings, which exporters leave transposed
        RaiseNormalizationPass(),
        SplitProjectionsPass(),  # one matrix for queries, keys and values, or for gate and value
        SplitMergedHeadsPass(),  # products of (B*H, S, d) on (B, H, S, d), before anything looks for heads
        RaiseRelativeLogitsPass(),  # before attention, whose mask they become a part of
        RaiseAttentionPass(),  # MatMul and Softmax into Attention, where a position bias kept them apart
        RaiseRotaryPass(positions=positions),  # of 4-D attentions, raised or as exported
        TabulateRotaryPass(positions=positions),  # before the 3-D form, which takes tables alone
        NormalizeAttentionPass(),  # 3-D form: the head count becomes an attribute, the scale is pinned
        LabelLayersPass(stack=stack),  # from here on every node knows its sublayer
        SimplifyMasksPass(),  # one spelling of the padding mask; packing needs it proven
    ]


def structure() -> list[AnyPass]:
    """Exact removal of all that cannot change the output."""
    return [
        AbsorbNormsPass(),  # first: scales and shifts go into weights, where what is zero stays zero
        common.RemoveUnusedNodesPass(),  # the weights from before
        FoldValueBiasesPass(),  # before what removes: afterwards a value channel without weights is exactly zero
        RemoveDeadHeadsPass(),  # before trimming, so that a dead head does not keep its layer wide
        TrimHeadChannelsPass(),
        RemoveDeadNeuronsPass(),
        RemoveEmptySublayersPass(),  # after all that can empty a sublayer
        common.RemoveUnusedNodesPass(),
        common.ShapeInferencePass(),  # widths changed; the lowering reads shapes
    ]


def equalisation() -> list[AnyPass]:
    """Changes of scale that leave fp32 its bits, and int8 less to round."""
    return [
        ScaleNormsPass(),  # first: how large values and neurons are follows from their columns, which it changes
        common.RemoveUnusedNodesPass(),  # of the weights from before, here and below: never two of all in memory
        ScaleValuesPass(),
        ScaleReluNeuronsPass(),
        ScaleGatedNeuronsPass(),
        common.RemoveUnusedNodesPass(),
    ]


def caching(step: Step, target: str) -> list[AnyPass]:
    """From a compact decoder without a cache to the graph of one step of generation."""
    aligned: list[AnyPass] = []
    if target == "cuda":  # before the caches get their shapes; MultiHeadAttention wants those of keys and values equal
        aligned = [AlignWidthsPass(head=8, neurons=8, same=True), common.ShapeInferencePass()]
    return [*aligned, AttachCachesPass(step=step, explicit=target == "portable"), common.ShapeInferencePass()]


def lowering(target: str, *, pack: Mapping[str, float] | None) -> list[AnyPass]:
    """From the compact canonical graph to operators that are fast on the target, in fp32.

    Args:
        target: ``cpu``, ``cuda`` or ``portable``.
        pack: What packing puts at padded places of each output; None leaves the padding in.
    """
    passes: list[AnyPass] = []
    if target == "cpu":  # whole cache lines, for at most a twentieth more neurons
        passes += [AlignWidthsPass(neurons=64, waste=0.05), common.ShapeInferencePass()]
    else:  # no kernel there shares keys and values between heads
        passes += [RepeatSharedHeadsPass(), common.ShapeInferencePass()]
    if pack is not None:
        passes.append(PackTokensPass(fill=dict(pack)))
    passes += [WriteRelativeLogitsPass(), WriteHeadNormsPass()]  # behind packing, which knows these operators
    if target == "cpu":
        # ORT fuses (B, S, D) residuals into a kernel that is slow on CPU; packed (T, D) ones, where packing was not
        # refused, it does not.
        passes.append(WriteResidualsAsSumPass(packed=pack is not None))
        passes.append(WriteMasksAsFloatsPass())
    elif target == "cuda":
        passes += [
            AlignWidthsPass(head=8, neurons=8),  # what fp16 tensor cores and the memory-efficient attention ask for
            common.ShapeInferencePass(),
            FuseCudaAttentionPass(),
            FuseCudaRotaryPass(),
            FuseSkipLayerNormPass(),
            FuseBiasGeluPass(),
            LowerOpsetPass(opset=20),  # CUDA kernels are registered by operator version: not newer than need be
        ]
    elif target == "portable":
        passes += [DecomposeAttentionPass(), DecomposeRotaryPass(), LowerOpsetPass()]
    return [*passes, *clean_up()]


def precision_passes(
    name: str, target: str, *, scales: str = "tensor", keep: Sequence[str] = (), switched: bool = False
) -> list[AnyPass]:
    """From the lowered fp32 graph to the number format ``name``.

    Args:
        name: ``fp32``, ``int8`` or ``fp16``.
        target: ``cpu``, ``cuda`` or ``portable``.
        scales: Of int8 activations: one for each ``token``, or for the whole ``tensor``.
        keep: Units (``graph/int8_layers.py``) and tables that int8 leaves in float32.
        switched: Leave all of float32 beside int8, and let an input of the graph choose, unit by unit.
    """
    if name == "fp32":
        return []
    if name == "int8":
        choice: dict[str, Any] = {"keep": tuple(keep), "switched": switched}
        if scales == "tensor":
            operators: Literal["contrib", "standard"] = "standard" if target == "portable" else "contrib"
            return [
                QuantizeEmbeddingsPass(**choice),
                QuantizeLinearsPass(operators=operators, **choice),
                *clean_up(),
            ]
        return [
            *int8_preparation(scales),
            QuantizeEmbeddingsPass(**choice),
            QuantizeLinearsByTokenPass(**choice),
            *clean_up(),
        ]
    if name == "fp16":
        return [common.ShapeInferencePass(), ConvertToFloat16Pass(), *clean_up()]
    raise AssertionError(f"compactor developer: no passes for precision '{name}'")


def int8_preparation(scales: str) -> list[AnyPass]:
    """What makes the lowered graph fit for ``scales`` of int8, and is still fp32."""
    if scales == "tensor":
        return []
    return [
        MergeProjectionsPass(),  # one scaling behind the product, not three
        CarryBiasesPass(),  # which cannot be added in the product, because they are not scaled
        common.ShapeInferencePass(),
    ]


def clean_up() -> list[AnyPass]:
    """Merge what became equal and drop what nothing reads."""
    return [
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.DeduplicateInitializersPass(),
    ]


def finishing() -> list[AnyPass]:
    """The last steps before a graph is saved."""
    return [ShareTransposedWeightsPass(), NameNodesPass(), common.TopologicalSortPass()]
