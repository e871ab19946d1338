"""Every pass, in the order a pipeline meets them. ``compactor passes`` and the tests of the house walk this list."""

from __future__ import annotations

from compactor.passes._base import RewritePass
from compactor.passes.align_widths import AlignWidthsPass
from compactor.passes.attach_caches import AttachCachesPass
from compactor.passes.convert_to_float16 import ConvertToFloat16Pass
from compactor.passes.decompose_attention import DecomposeAttentionPass
from compactor.passes.fold_transposed_weights import FoldTransposedWeightsPass
from compactor.passes.fold_value_biases import FoldValueBiasesPass
from compactor.passes.fuse_bias_gelu import FuseBiasGeluPass
from compactor.passes.fuse_cuda_attention import FuseCudaAttentionPass
from compactor.passes.fuse_skip_layer_norm import FuseSkipLayerNormPass
from compactor.passes.label_layers import LabelLayersPass
from compactor.passes.lower_opset import LowerOpsetPass
from compactor.passes.name_nodes import NameNodesPass
from compactor.passes.normalize_attention import NormalizeAttentionPass
from compactor.passes.pack_tokens import PackTokensPass
from compactor.passes.quantize_embeddings import QuantizeEmbeddingsPass
from compactor.passes.quantize_linears import QuantizeLinearsPass
from compactor.passes.raise_attention import RaiseAttentionPass
from compactor.passes.remove_dead_heads import RemoveDeadHeadsPass
from compactor.passes.remove_dead_neurons import RemoveDeadNeuronsPass
from compactor.passes.remove_empty_sublayers import RemoveEmptySublayersPass
from compactor.passes.share_transposed_weights import ShareTransposedWeightsPass
from compactor.passes.simplify_masks import SimplifyMasksPass
from compactor.passes.trim_head_channels import TrimHeadChannelsPass
from compactor.passes.write_masks_as_floats import WriteMasksAsFloatsPass
from compactor.passes.write_residuals_as_sum import WriteResidualsAsSumPass

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
