"""Open a graph in ONNX Runtime, with the provider that was asked for and no more threads than there are cores."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from .errors import ProviderUnavailableError
from .providers import GPU_HINT, Provider, resolve_provider
from .threads import plan_threads

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
) -> Any:
    """Open ``model`` and return an ``onnxruntime.InferenceSession``.

    Args:
        model: Path of an ONNX file, or its bytes (then without external data).
        provider: ``"cpu"``, or ``"cuda"``, which leaves to the CPU what CUDA has no kernel for.
        threads: Threads for one operator; one for each usable core when omitted.
        optimize: Let ONNX Runtime rewrite the graph at start-up, as it does by default.
        allow_spinning: Let idle threads wait busily: faster alone, harmful beside another session.
        optimized_model_path: Where to write the graph as ONNX Runtime rewrote it.

    Raises:
        ProviderUnavailableError: The provider is not installed, or its libraries do not load.
        FileNotFoundError: There is no such model file.
    """
    options = session_options(threads=threads, optimize=optimize, allow_spinning=allow_spinning)
    if optimized_model_path is not None:
        options.optimized_model_filepath = str(optimized_model_path)
    return open_with_options(model, options, provider=provider)


def open_with_options(model: str | Path | bytes, options: Any, *, provider: str = "cpu") -> Any:
    """As ``open_session``, with options from ``session_options`` that the caller went on to change."""
    import onnxruntime

    chosen = resolve_provider(provider)
    if not isinstance(model, bytes) and not Path(model).is_file():
        raise FileNotFoundError(f"there is no model file '{model}'")
    if chosen is Provider.CUDA:
        with contextlib.redirect_stdout(sys.stderr):  # it prints its complaints
            onnxruntime.preload_dlls()  # finds the CUDA libraries of the nvidia-* wheels, which are on no search path
    session = onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model),
        options,
        providers=list(chosen.chain),
        enable_fallback=0,  # on any error it would print to stdout and try again with the CPU provider alone
    )
    if session.get_providers()[0] != chosen.chain[0]:  # ONNX Runtime falls back to the CPU with a mere warning
        raise ProviderUnavailableError(
            f"the '{provider}' provider is installed but did not start: its libraries or the driver do not load",
            where=f"ONNX Runtime {onnxruntime.__version__} fell back to {session.get_providers()[0]}",
            todo=f"check the driver with nvidia-smi, then reinstall the libraries: {GPU_HINT}",
        )
    return session
