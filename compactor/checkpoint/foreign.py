"""Refuse, by name, what changes a model's answers and is neither a plain weight nor a mask that is read here.

An adapter beside the weights, LoRA matrices among them, a norm of a weight kept as two tensors, quantized matrices: a
stock class drops what it does not know, and the model that is left gives other answers.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from compactor.checkpoint.wrappers import describe
from compactor.errors import ModelDirectoryError

_MERGE = "merge it first: PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)"
_MERGE_ADAPTERS = (
    "export a model without adapters: load it with the adapters library, merge_adapter() where it can be merged, "
    "then save_pretrained"
)
_UNQUANTIZE = "start from its fp32, fp16 or bf16 weights; compactor quantizes by itself"
_PARAMETRIZED = (
    "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight') (or remove_weight_norm, "
    "remove_spectral_norm) for each module, then save_pretrained"
)

# A file of the folder -> what it is, what to do.
_FILES = {
    "adapter_config.json": ("a PEFT adapter lies beside the weights", _MERGE),
    "adapter_model.safetensors": ("a PEFT adapter lies beside the weights", _MERGE),
    "adapter_model.bin": ("a PEFT adapter lies beside the weights", _MERGE),
    "pytorch_adapter.bin": ("an adapter of the adapters library lies beside the weights", _MERGE_ADAPTERS),
    "adapter.safetensors": ("an adapter of the adapters library lies beside the weights", _MERGE_ADAPTERS),
    "adapter_fusion_config.json": ("an adapter fusion lies beside the weights", _MERGE_ADAPTERS),
    "head_config.json": ("a prediction head of the adapters library lies beside the weights", _MERGE_ADAPTERS),
}
# The file of other frameworks and tools -> what to do, where the folder has no weights that are read here.
_ELSEWHERE = {
    "tf_model.h5": (
        "TensorFlow",
        "load it with from_tf=True of transformers 4 (pip install 'transformers<5' tensorflow), then save_pretrained",
    ),
    "flax_model.msgpack": (
        "Flax",
        "load it with from_flax=True of transformers 4 (pip install 'transformers<5' flax), then save_pretrained",
    ),
    "model.ckpt.index": (
        "TensorFlow 1",
        "convert them with the script of transformers 4, then save_pretrained",
    ),
    "openvino_model.xml": ("OpenVINO", "export the folder that they were made from"),
    "model.onnx": ("ONNX", "export the folder that they were made from"),
    "zero_to_fp32.py": ("DeepSpeed shards", "run zero_to_fp32.py in the folder, which writes pytorch_model.bin"),
}
_SUFFIXES = {
    ".ckpt": ("a training checkpoint", "load it with the tool that wrote it, then save_pretrained of the model inside"),
    ".pt": ("a PyTorch file", "load it into the model that it is of, then save_pretrained"),
    ".pth": ("a PyTorch file", "load it into the model that it is of, then save_pretrained"),
    ".gguf": ("GGUF", _UNQUANTIZE),
    ".safetensors": ("safetensors under another name", "call the file model.safetensors if it holds the whole model"),
}
# How the names of tensors end or what they hold -> what that is, what to do. The first that matches is told.
_TENSORS: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(pattern), what, todo)
    for pattern, what, todo in (
        (
            r"(^|\.)(lora_(A|B|embedding_A|embedding_B|magnitude_vector|E)|vera_lambda_[bd]|ia3_l|hada_w[12]_[ab]|"
            r"lokr_w[12]|oft_r|oft_s|boft_[RS]|base_layer|modules_to_save|original_module|prompt_encoder|"
            r"prompt_embeddings|trainable_tokens_delta)(\.|$)",
            "belong to a PEFT adapter",
            _MERGE,
        ),
        (
            r"(^|\.)(adapters|adapter_fusion_layer|prefix_tuning|prefix_gates|invertible_adapters|loras)\.",
            "belong to an adapter",
            _MERGE_ADAPTERS,
        ),
        (
            r"(^|\.)parametrizations\.|\.weight_[gv]$|\.weight_u$",
            "are parts of a weight that is computed (weight_norm, spectral_norm or another parametrization)",
            _PARAMETRIZED,
        ),
        (
            r"\.(weight|bias)_(orig|mask)$",
            "belong to a mask of torch.nn.utils.prune",
            "torch.nn.utils.prune.remove(module, 'weight') for each module, then save_pretrained",
        ),
        (
            r"\.(qweight|qzeros|g_idx|SCB|CB|weight_format|weight_packed|weight_scale|weight_scale_inv|weight_zero_point|"
            r"input_scale|scales|zero_point|_packed_params(\..*)?)$|\.weight\.(absmax|quant_map|quant_state|nested_)",
            "belong to a quantized model",
            _UNQUANTIZE,
        ),
        (
            r"(^|\.)(delta|bitfit|bias_delta|delta_bias|delta_weight)(\.|$)",
            "are differences from other weights",
            "add them to the weights that they were made from, then save_pretrained",
        ),
        (
            r"(^|\.)_flat_param(_\d+)?$|\.flat_param(_\d+)?$",
            "are shards that FSDP flattened",
            "save the model with a full state dict (StateDictType.FULL_STATE_DICT), then export that",
        ),
    )
)


def refuse_adapters(folder: Path) -> None:
    """Refuse a folder with an adapter: transformers applies one of PEFT's to the model that it loads.

    Raises:
        ModelDirectoryError: Naming the file.
    """
    for name, (what, todo) in _FILES.items():
        if (folder / name).is_file():
            raise ModelDirectoryError(f"{what} ({name}), and changes its answers", where=str(folder), todo=todo)


def refuse_foreign_tensors(names: Collection[str], path: Path) -> None:
    """Refuse weights with tensors that stand for a change of other weights.

    Args:
        names: The stored names.
        path: The file that holds them.

    Raises:
        ModelDirectoryError: Naming them.
    """
    for pattern, what, todo in _TENSORS:
        if found := [name for name in names if pattern.search(name)]:
            raise ModelDirectoryError(f"tensors {what}: {describe(found)}", where=str(path), todo=todo)


def describe_missing_weights(folder: Path) -> ModelDirectoryError:
    """What is said of a folder without weights that are read here: which others it holds, and what to do."""
    for name, (kind, todo) in _ELSEWHERE.items():
        if (folder / name).is_file():
            return ModelDirectoryError(
                f"the weights are for {kind} ({name}), which is not read here", where=str(folder), todo=todo
            )
    for path in sorted(folder.iterdir()):
        if path.suffix in _SUFFIXES and path.is_file():
            kind, todo = _SUFFIXES[path.suffix]
            return ModelDirectoryError(
                f"no weights: {path.name} is {kind}, which is not read here", where=str(folder), todo=todo
            )
    return ModelDirectoryError(
        "no weights: neither model.safetensors nor model.safetensors.index.json", where=str(folder)
    )
