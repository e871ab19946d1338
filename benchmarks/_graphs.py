"""Build the graphs that are compared: the plain export, ours, and what the tools of others make of either.

Each function that loads torch runs best in a process of its own (``in_fresh_process``): gigabytes of it would otherwise
stay behind while the clock runs.

    python benchmarks/_graphs.py MODEL.onnx OUT.onnx 8    # quantize to 8 bits, in any environment with ONNX Runtime
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import inspect
import json
import logging
import multiprocessing
import re
import subprocess
import sys
import traceback
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
T = TypeVar("T")

VOCABULARY_FLOOR = 1000  # below are special tokens
_ERROR = re.compile(r"[\w.]+(Error|Exception): ")  # the last line of a traceback, before more of the message
_TASKS = {"QuestionAnswering": "question-answering", "ImageClassification": "image-classification"}


class BuildError(Exception):
    """A tool refused a model."""


def in_fresh_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``function`` in a new process and return what it returned."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args, **kwargs).result()


def write_batch(path: Path, batch: int, length: int, *, seed: int) -> None:
    """Write one batch of random tokens without padding."""
    np.savez(path, **random_batch(batch, length, seed))


def random_batch(batch: int, length: int, seed: int) -> dict[str, Any]:
    """The inputs of BERT, each (batch, length): random tokens without padding."""
    from benchmarks import plant  # not where this file is a script in another environment

    ids = np.random.default_rng(seed).integers(VOCABULARY_FLOOR, plant.VOCABULARY, (batch, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def load_torch(model_dir: Path) -> Any:
    """The stock PyTorch model of a folder: with its zeros, where it holds the masks of nn_pruning."""
    import transformers

    if (model_dir / "sparse_args.json").exists():
        from compactor.checkpoint import read_checkpoint
        from compactor.importing.encoder import load_model

        return load_model(read_checkpoint(model_dir)).module

    transformers.utils.logging.disable_progress_bar()
    kind = getattr(transformers, _config(model_dir)["architectures"][0])
    return kind.from_pretrained(model_dir).eval().requires_grad_(False)


def write_reference(model_dir: Path, cases: Mapping[str, Sequence[Path]], folder: Path) -> None:
    """Run the PyTorch model on every batch and write its outputs to ``<case>.<batch>.npz``."""
    import torch

    model = load_torch(model_dir)
    taken = inputs_of(model)
    folder.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        for name, files in cases.items():
            for i, file in enumerate(files):
                feeds = {key: torch.from_numpy(array) for key, array in np.load(file).items() if key in taken}
                np.savez(folder / f"{name}.{i}.npz", **{key: value.numpy() for key, value in model(**feeds).items()})


def export_plain(model_dir: Path, path: Path, opset: int) -> None:
    """What one gets without any tool: ``torch.onnx.export`` of the stock model, mended where it runs no batch.

    Raises:
        BuildError: It is refused.
    """
    import onnx
    import torch

    from benchmarks._mending import repeat_rotary_tables

    model = load_torch(model_dir)
    names = ["start_logits", "end_logits"] if type(model).__name__.endswith("QuestionAnswering") else ["logits"]
    taken = inputs_of(model)
    axes = {0: torch.export.Dim("batch_size")}
    if "input_ids" in taken:
        ids = torch.full((2, 16), min(VOCABULARY_FLOOR, model.config.vocab_size // 2))
        feeds = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        axes |= {1: torch.export.Dim("sequence_length")}
    else:
        size = model.config.image_size
        feeds = {"pixel_values": torch.zeros(2, model.config.num_channels, size, size)}
    feeds = {name: tensor for name, tensor in feeds.items() if name in taken}
    _quieten()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                model,
                (),
                path,
                kwargs=feeds,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=dict.fromkeys(feeds, axes),
                output_names=names,
                external_data=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
            raise BuildError(f"torch.onnx.export: {reason[0]}") from error
    written = onnx.load(path)
    if repeat_rotary_tables(written):
        onnx.save(written, path)


def export_ours(model_dir: Path, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """``compactor export``. Returns the manifest."""
    import compactor

    return compactor.export(model_dir, folder, overwrite=True, **options).manifest


def export_compact(model_dir: Path, path: Path) -> None:
    """Our compact graph before any lowering: what the stock recipe starts from."""
    from compactor.checkpoint import read_checkpoint
    from compactor.exporting.serialization import write_graph
    from compactor.importing.encoder import load_model
    from compactor.passes.pipeline import canonicalisation, clean_up, finishing, structure
    from compactor.passes.runner import run_passes

    graph = load_model(read_checkpoint(model_dir)).trace()
    run_passes(graph, [*canonicalisation(), *structure(), *clean_up(), *finishing()])
    write_graph(graph, path)


def weight_bits() -> int:
    """How many bits ONNX Runtime advises weights to have here: 7 where sums of 8 bits saturate, else 8."""
    from compactor.runtime.artefacts import EXACT_INT8
    from compactor.runtime.machine import describe_machine

    return 8 if EXACT_INT8 & set(describe_machine().isa or ()) else 7


def quantize(source: Path, path: Path, bits: int | None = None) -> None:
    """ONNX Runtime's dynamic quantizer at its best setting: signed weights, one scale a column.

    Args:
        source: An ONNX file.
        path: Where to.
        bits: Of the weights, 7 or 8; None takes ``weight_bits``.

    Raises:
        BuildError: It refuses the graph.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    _quieten()
    model = onnx.load(source)
    # Left to itself it takes the standard Attention for Microsoft's, and gives signed weights to ConvInteger, which
    # takes none: it writes a graph that does not load.
    standard = any(node.op_type in ("Attention", "Conv") and not node.domain for node in model.graph.node)
    # It transposes the weights of Gemm under their old names, and then its shape inference finds them to be wrong.
    weights = {tensor.name for tensor in model.graph.initializer}
    described = [value for value in model.graph.value_info if value.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(described)
    try:
        quantize_dynamic(
            model,
            path,
            per_channel=True,
            reduce_range=(weight_bits() if bits is None else bits) == 7,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"] if standard else None,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # its shape inference does not know Attention
        )
    except Exception as error:  # whatever it raises, it is a row that says why
        raise BuildError(f"quantize_dynamic: {_last_line(error)}") from error


def fuse(source: Path, path: Path) -> None:
    """ONNX Runtime's transformer optimizer. Says how many of each operator it fused."""
    from onnxruntime.transformers.optimizer import optimize_model

    _quieten()
    # With 0 it takes the sizes from each layer; given the original head count it fuses pruned layers wrongly.
    model = optimize_model(str(source), model_type="bert", num_heads=0, hidden_size=0)
    model.save_model_to_file(str(path))
    fused = {name: int(count) for name, count in model.get_fused_operator_statistics().items() if count}
    print(f"fused: {fused}", file=sys.stderr, flush=True)


def calibration_batch(seed: int) -> dict[str, Any]:
    """One sequence of 128 tokens for a BERT."""
    return random_batch(1, 128, seed)


def convert_openvino(
    source: Path, path: Path, calibration: int = 0, batch_of: Callable[[int], Mapping[str, Any]] = calibration_batch
) -> None:
    """Convert ``source`` for OpenVINO, quantized statically by NNCF where there are ``calibration`` batches.

    Args:
        source: An ONNX file.
        path: Where to.
        calibration: How many batches scales are taken from; 0 quantizes nothing.
        batch_of: Makes one of them, of a seed.

    Raises:
        BuildError: It is refused.
    """
    try:
        import openvino

        model = openvino.Core().read_model(str(source))
        if calibration:
            import nncf

            nncf.set_log_level(logging.ERROR)
            inputs = {port.get_any_name() for port in model.inputs}
            batches = [batch_of(1000 + i) for i in range(calibration)]
            with contextlib.redirect_stdout(None):  # its progress
                model = nncf.quantize(
                    model,
                    nncf.Dataset([{name: batch[name] for name in batch.keys() & inputs} for batch in batches]),
                    model_type=nncf.ModelType.TRANSFORMER,  # keeps attention in the form OpenVINO runs best
                    subset_size=calibration,
                )
        openvino.save_model(model, str(path), compress_to_fp16=False)
    except Exception as error:  # whatever it raises, it is a row that says why
        raise BuildError(_last_line(error)) from error


def export_optimum(model_dir: Path, path: Path, python: str, level: str | None = None) -> None:
    """``optimum-cli export onnx`` in an environment that has it, at an optimization level or without any.

    Raises:
        BuildError: It is refused.
    """
    tool = str(Path(python).with_name("optimum-cli"))
    kind = _config(model_dir)["architectures"][0]
    task = next((task for end, task in _TASKS.items() if kind.endswith(end)), "text-classification")
    optimize = [] if level is None else ["--optimize", level]
    run_tool([tool, "export", "onnx", "--model", str(model_dir), "--task", task, *optimize, str(path)])


def convert_ctranslate2(model_dir: Path, folder: Path, quantization: str) -> None:
    """The encoder through CTranslate2's own converter; the task's head is not part of what it runs.

    Raises:
        BuildError: It is not installed, or refuses the model.
    """
    try:
        from ctranslate2.converters import TransformersConverter
    except ImportError as error:
        raise BuildError("CTranslate2 is not installed: pip install ctranslate2") from error

    class WithoutTokenizer(TransformersConverter):  # type: ignore[misc]
        """The vocabulary is written but not used: token ids go in."""

        def load_model(self, *arguments: Any, **options: Any) -> Any:
            model = super().load_model(*arguments, **options)
            # transformers 5 knows no other kind and has dropped the field that the converter asserts.
            model.config.position_embedding_type = "absolute"
            return model

        def load_tokenizer(self, *_: Any, **__: Any) -> Any:
            tokens = {"[UNK]": 0, **{f"token-{i}": i for i in range(1, _config(model_dir)["vocab_size"])}}
            return types.SimpleNamespace(unk_token="[UNK]", get_vocab=lambda: tokens)

    _quieten()
    try:
        WithoutTokenizer(str(model_dir)).convert(str(folder), quantization=quantization)
    except Exception as error:  # whatever it raises, it is a row that says why
        raise BuildError(f"{type(error).__name__}: {error}") from error


def quantize_with(source: Path, path: Path, python: str) -> None:
    """``quantize`` in another environment. Raises ``BuildError``."""
    run_tool([python, str(Path(__file__).resolve()), str(source), str(path), str(weight_bits())])


def run_tool(command: Sequence[str]) -> None:
    """Run a command to its end.

    Raises:
        BuildError: It fails; with the exception that it names, else with its last line.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(str(error)) from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["it failed without a word"]
        raise BuildError(next(filter(_ERROR.match, reversed(lines)), lines[-1]))


def inputs_of(model: Any) -> set[str]:
    """What a PyTorch model takes, by name."""
    return set(inspect.signature(model.forward).parameters)


def _last_line(error: Exception) -> str:
    """What an error ends with, its class included where that is one line."""
    return traceback.format_exception_only(error)[-1].strip().splitlines()[-1]


def _config(model_dir: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    return config


def _quieten() -> None:
    logging.disable(logging.WARNING)


if __name__ == "__main__":
    quantize(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
