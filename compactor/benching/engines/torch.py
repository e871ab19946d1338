"""PyTorch: a Hugging Face model directory, its masks folded in, run eagerly or compiled.

This is the dense model with zeros: PyTorch multiplies by every one of them. Outputs are those of the task, in float32.

Options:
    compile (false): Run what ``torch.compile`` makes, in its default mode.
    dynamic (true): Compile once for all batch sizes and lengths, as the other engines do; batches of one get a graph
        of their own, as always in PyTorch. False compiles for each shape anew: the fastest that PyTorch can be.
    dtype: ``float32``, ``float16`` or ``bfloat16``; the variant's precision when left out.
    tf32 (false): Let CUDA multiply float32 matrices with 10 bits of mantissa.
    transform: ``module:function`` that takes the loaded module and gives the one to run: to measure what another tool
        makes of the model. The module is looked for on ``PYTHONPATH``.
    task, allow_pickle: As of ``compactor export``.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactor.benching.engines.feeding import check_options, choose_inputs
from compactor.benching.plan import Variant
from compactor.errors import UsageError
from compactor.runtime.errors import ProviderUnavailableError

_OPTIONS = ("compile", "dynamic", "dtype", "tf32", "transform", "task", "allow_pickle")
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_MAX_COMPILED_SHAPES = 64


class TorchEngine:
    """A model in PyTorch; see ``Engine``.

    Attributes:
        module: The model itself, not compiled, for counting its operations.
    """

    def __init__(self, variant: Variant, *, threads: int, spinning: bool) -> None:
        check_options(variant.options, _OPTIONS, where=variant.name)
        dtype_name = str(variant.options.get("dtype", _DTYPES.get(variant.precision, variant.precision)))
        if dtype_name not in _DTYPES.values():
            raise UsageError(f"PyTorch does not run the model in '{dtype_name}'", where=variant.name)
        set_wait_policy(spinning=spinning)
        import torch

        from compactor.checkpoint import read_checkpoint
        from compactor.importing.encoder import load_model
        from compactor.tasks import find_task

        device = choose_device(variant.provider)
        set_threads(threads)
        tf32 = bool(variant.options.get("tf32", False))
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        checkpoint = read_checkpoint(variant.path, allow_pickle=bool(variant.options.get("allow_pickle", False)))
        task = variant.options.get("task")
        where = variant.name
        loaded = load_model(checkpoint, None if task is None else find_task(task, checkpoint.config, where=where))
        self.module = _transform(loaded.module, variant).to(device=device, dtype=getattr(torch, dtype_name))
        self._task, self._where, self._device = loaded.task, loaded.where, device
        compiled = bool(variant.options.get("compile", False))
        dynamic = bool(variant.options.get("dynamic", True))
        self._call = self.module
        if compiled:  # and after too many shapes it fails, where it would otherwise quietly run eagerly
            import torch._dynamo

            torch._dynamo.config.recompile_limit = _MAX_COMPILED_SHAPES
            torch._dynamo.config.fail_on_recompile_limit_hit = True
            self._call = torch.compile(self.module, dynamic=dynamic)
        # Token ids and masks are int64; only pixels have the model's type, and numpy has no bfloat16 to say so.
        self._types = dict.fromkeys(loaded.input_names, np.float32 if self._task.image else np.int64)
        self._cast = getattr(torch, dtype_name) if self._task.image else None
        self.environment = describe_module(
            self.module, device, dtype=dtype_name, tf32=tf32, compiled=compiled, dynamic=dynamic
        )

    def prepare(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """The model's inputs as tensors in host memory."""
        import torch

        chosen = choose_inputs(feeds, self._types, where=self._where)
        tensors = {name: torch.from_numpy(array) for name, array in chosen.items()}
        return tensors if self._cast is None else {name: tensor.to(self._cast) for name, tensor in tensors.items()}

    def run(self, prepared: dict[str, Any]) -> dict[str, NDArray[Any]]:
        """The task's outputs; on CUDA with the copies there and back.

        Raises:
            ProviderUnavailableError: ``torch.compile`` fails: mostly, there is no C++ compiler.
        """
        import torch

        with torch.inference_mode():
            try:
                results = self._call(**self._move(prepared))
            except torch._dynamo.exc.TorchDynamoException as error:
                reason = getattr(error, "inner_exception", error)  # what the backend said, without dynamo's preface
                lines = [line.strip() for line in str(reason).splitlines() if line.strip()] or [type(reason).__name__]
                raise ProviderUnavailableError(
                    f"torch.compile fails: {lines[0]}",
                    where="PyTorch's compiler",
                    todo="it needs a C++ compiler such as g++; or leave the compiled variant out",
                ) from error
            if self._device == "cuda":
                torch.cuda.synchronize()
            return {name: results[name].cpu().float().numpy() for name in self._task.outputs}

    def run_uncompiled(self, prepared: dict[str, Any]) -> Any:
        """What the model itself gives, on the device: for counting its operations."""
        return self.module(**self._move(prepared))

    def _move(self, tensors: dict[str, Any]) -> dict[str, Any]:
        return {name: tensor.to(self._device) for name, tensor in tensors.items()}


def choose_device(provider: str) -> str:
    """PyTorch's name of the device.

    Raises:
        ProviderUnavailableError: It sees none.
    """
    import torch

    if provider != "cuda":
        return "cpu"
    if not torch.cuda.is_available():
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs alone"
        raise ProviderUnavailableError(
            "PyTorch sees no CUDA device",
            where=f"PyTorch {torch.__version__}, built for {build}",
            todo="install a CUDA build of PyTorch, and check the driver with nvidia-smi",
        )
    return "cuda"


def set_wait_policy(*, spinning: bool) -> None:
    """Whether idle threads wait busily: of effect before PyTorch is loaded, which reads it once."""
    if not spinning and "torch" not in sys.modules:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def set_threads(threads: int) -> None:
    """Threads of one operator; one operator at a time."""
    import torch

    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:
        torch.set_num_interop_threads(1)  # may be called once, and only before the first operator


def describe_module(
    module: Any, device: str, *, dtype: str, tf32: bool, compiled: bool | None = None, dynamic: bool = True
) -> dict[str, Any]:
    """The ``environment`` of a model in PyTorch; ``compiled`` is None where nothing could be."""
    import torch
    import transformers

    found = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "providers": [device],
        "dtype": dtype,
        **({} if compiled is None else {"compile": compiled}),
        "attention": getattr(module.config, "_attn_implementation", None),
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "spinning": os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE",
    }
    if compiled:
        found["dynamic"] = dynamic
    if device == "cuda":
        found |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "tf32": tf32}
    return found


def _transform(module: Any, variant: Variant) -> Any:
    """What the option ``transform`` makes of the module.

    Raises:
        UsageError: There is no such function.
    """
    name = variant.options.get("transform")
    if name is None:
        return module
    place, _, function = str(name).partition(":")
    try:
        transform = getattr(importlib.import_module(place), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"there is no transform '{name}'", where=variant.name, todo=str(error)) from error
    return transform(module)
