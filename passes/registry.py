"""Every pass, in the order a pipeline meets them. ``compactor passes`` and the tests of the house walk this list."""

from __future__ import annotations

from compactor.passes.base import RewritePass
from compactor.passes.caching.attach_caches import AttachCachesPass
from compactor.passes.canonical.fold_transposed_weights import FoldTransposedWeightsPass
from compactor.passes.canonical.label_layers import LabelLayersPass
from compactor.passes.canonical.normalize_attention import NormalizeAttentionPass
from compactor.passes.canonical.raise_attention import RaiseAttentionPass
from compactor.passes.canonical.simplify_masks import SimplifyMasksPass
from compactor.passes.finishing.name_nodes import NameNodesPass
from compactor.passes.finishing.share_transposed_weights import ShareTransposedWeightsPass
from compactor.passes.lowering.align_widths import AlignWidthsPass
from compactor.passes.lowering.decompose_attention import DecomposeAttentionPass
from compactor.passes.lowering.fuse_bias_gelu import FuseBiasGeluPass
from compactor.passes.lowering.fuse_cuda_attention import FuseCudaAttentionPass
from compactor.passes.lowering.fuse_skip_layer_norm import FuseSkipLayerNormPass
from compactor.passes.lowering.lower_opset import LowerOpsetPass
from compactor.passes.lowering.pack_tokens import PackTokensPass
from compactor.passes.lowering.write_masks_as_floats import WriteMasksAsFloatsPass
from compactor.passes.lowering.write_residuals_as_sum import WriteResidualsAsSumPass
from compactor.passes.precision.convert_to_float16 import ConvertToFloat16Pass
from compactor.passes.precision.quantize_embeddings import QuantizeEmbeddingsPass
from compactor.passes.precision.quantize_linears import QuantizeLinearsPass
from compactor.passes.structure.fold_value_biases import FoldValueBiasesPass
from compactor.passes.structure.remove_dead_heads import RemoveDeadHeadsPass
from compactor.passes.structure.remove_dead_neurons import RemoveDeadNeuronsPass
from compactor.passes.structure.remove_empty_sublayers import RemoveEmptySublayersPass
from compactor.passes.structure.trim_head_channels import TrimHeadChannelsPass

PASSES: tuple[type[RewritePass], ...] = (
    FoldTransposedWeightsPass,
    RaiseAttentionPass,
    NormalizeAttentionPass,
    LabelLayersPass,
    SimplifyMasksPass,
    FoldValueBiasesPass,
    RemoveDeadHeadsPass,
    TrimHeadChannelsPass,
    RemoveDeadNeuronsPass,
    RemoveEmptySublayersPass,
    AttachCachesPass,
    AlignWidthsPass,
    PackTokensPass,
    WriteResidualsAsSumPass,
    WriteMasksAsFloatsPass,
    FuseCudaAttentionPass,
    FuseSkipLayerNormPass,
    FuseBiasGeluPass,
    DecomposeAttentionPass,
    LowerOpsetPass,
    QuantizeEmbeddingsPass,
    QuantizeLinearsPass,
    ConvertToFloat16Pass,
    ShareTransposedWeightsPass,
    NameNodesPass,
)
