"""Open a graph in ONNX Runtime, with the provider that was asked for and no more threads than there are cores."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import ProviderUnavailableError
from .providers import Provider, resolve_provider
from .threads import plan_threads

RECORD_PLACEMENT = "session.record_ep_graph_assignment_info"  # the entry of the options that ``placement`` needs

_LOG_FATAL_ONLY = 4  # ONNX Runtime raises what it logs as an error, so its log adds nothing but noise


def session_options(
    *,
    threads: int | None = None,
    optimize: bool = True,
    allow_spinning: bool = True,
    log_severity: int = _LOG_FATAL_ONLY,
) -> Any:
    """Options for an ``onnxruntime.InferenceSession``.

    Args:
        threads: Threads for one operator; one for each usable core when omitted.
        optimize: Let ONNX Runtime rewrite the graph at start-up, as it does by default.
        allow_spinning: Let idle threads wait busily: faster alone, harmful beside another session.
        log_severity: 0 (verbose) to 4 (fatal only).
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = plan_threads(threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = log_severity
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if allow_spinning else "0")
    return options


def open_session(
    model: str | Path | bytes,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    optimize: bool = True,
    allow_spinning: bool = True,
    optimized_model_path: str | Path | None = None,
    provider_options: Mapping[str, str] | None = None,
) -> Any:
    """Open ``model`` and return an ``onnxruntime.InferenceSession``.

    Args:
        model: Path of an ONNX file, or its bytes (then without external data).
        provider: ``"cpu"``; ``"cuda"``, which leaves to the CPU what CUDA has no kernel for; ``"tensorrt"``, which
            leaves to CUDA what TensorRT does not take.
        threads: Threads for one operator; one for each usable core when omitted.
        optimize: Let ONNX Runtime rewrite the graph at start-up, as it does by default.
        allow_spinning: Let idle threads wait busily: faster alone, harmful beside another session.
        optimized_model_path: Where to write the graph as ONNX Runtime rewrote it.
        provider_options: Options of the provider that was asked for, such as ``{"use_tf32": "0"}``.

    Raises:
        ProviderUnavailableError: The provider is not installed, or its libraries do not load.
        FileNotFoundError: There is no such model file.
    """
    options = session_options(threads=threads, optimize=optimize, allow_spinning=allow_spinning)
    if optimized_model_path is not None:
        options.optimized_model_filepath = str(optimized_model_path)
    return open_with_options(model, options, provider=provider, provider_options=provider_options)


def open_with_options(
    model: str | Path | bytes,
    options: Any,
    *,
    provider: str = "cpu",
    provider_options: Mapping[str, str] | None = None,
) -> Any:
    """As ``open_session``, with options from ``session_options`` that the caller went on to change."""
    import onnxruntime

    chosen = resolve_provider(provider)
    if not isinstance(model, bytes) and not Path(model).is_file():
        raise FileNotFoundError(f"there is no model file '{model}'")
    if chosen.needs_gpu:
        options.add_session_config_entry(RECORD_PLACEMENT, "1")
        with contextlib.redirect_stdout(sys.stderr):  # it prints its complaints
            onnxruntime.preload_dlls()  # finds the CUDA libraries of the nvidia-* wheels, which are on no search path
    if chosen is Provider.TENSORRT:
        _preload_tensorrt()
    first, *others = chosen.chain
    try:
        session = onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model),
            options,
            providers=[(first, dict(provider_options)) if provider_options else first, *others],
            enable_fallback=0,  # on any error it would print to stdout and try again with the CPU provider alone
        )
    except RuntimeError as error:  # of the provider's own making; those of the graph are of ONNX Runtime's classes
        if not chosen.needs_gpu:
            raise
        raise _not_started(chosen, str(error).strip().splitlines()[0]) from error
    if session.get_providers()[0] != first:  # ONNX Runtime falls back to the CPU with a mere warning
        raise _not_started(chosen, f"it fell back to {session.get_providers()[0]}")
    return session


def placement(session: Any) -> dict[str, dict[str, int]]:
    """How many nodes of which type each provider runs: ``{"CPUExecutionProvider": {"Gather": 1}, ...}``.

    For sessions on a GPU, which are opened so that ONNX Runtime records it; empty where it is too old to know.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return {}
    counts: dict[str, collections.Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        found = counts.setdefault(part.ep_name, collections.Counter())
        found.update("::".join(filter(None, (node.domain, node.op_type))) for node in part.get_nodes())
    return {provider: dict(sorted(counter.items())) for provider, counter in counts.items()}


def _not_started(provider: Provider, reason: str) -> ProviderUnavailableError:
    import onnxruntime

    return ProviderUnavailableError(
        f"the '{provider}' provider is installed but did not start: its libraries or the driver do not load",
        where=f"ONNX Runtime {onnxruntime.__version__}: {reason}",
        todo=f"check the driver with nvidia-smi, then reinstall the libraries: {provider.install_hint}",
    )


def _preload_tensorrt() -> None:
    """Load TensorRT from its wheel, ``tensorrt_libs``, which is on no search path; elsewhere the system finds it."""
    spec = importlib.util.find_spec("tensorrt_libs")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        for pattern in ("libnvinfer.so.*", "libnvonnxparser.so.*"):
            for library in sorted(Path(folder).glob(pattern)):
                with contextlib.suppress(OSError):  # ONNX Runtime then says itself what does not load
                    ctypes.CDLL(str(library))
