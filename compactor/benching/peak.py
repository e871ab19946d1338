"""How fast this machine can multiply at all: one large matrix product in ONNX Runtime, in every precision it runs.

    fp32, fp16    MatMul(x, W)                                      x (n, n) and W (n, n)
    int8          DynamicQuantizeMatMul(x, int8 W, scales)          signed weights, one scale a column: what int8
                                                                    artefacts are made of, quantizing of x included

It is the limit that the rows of a report are held against, so it takes the *best* sample: whatever disturbs one makes
it slower, never faster. For the same reason it tries three sizes and keeps the best. A large product keeps many cores
or a GPU busy, and next to its n multiply-adds for each element that is loaded nothing else counts. A small one takes a
few milliseconds and fits between two interruptions: on a machine with other work, one core that reaches 48 GMAC/s with
n = 512 was seen to reach 16 with n = 2048, whose 0.2 s are never undisturbed. Weights are constants of the graph, which
ONNX Runtime packs at start-up as those of a model; on a GPU, x is in its memory before the clock starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactor.errors import MeasurementError
from compactor.runtime.binding import BoundSession
from compactor.runtime.sessions import open_session

_GPU_SIZE = 8192  # one of 2048 is over before a large GPU is full
_FRACTIONS = (1, 2, 4)
_ROWS_CHECKED = 4
_MIN_SAMPLES = 3
_TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "int8": 5e-2}  # largest error against the largest element
_SEVEN_BITS = 63  # without VNNI, sums of two products with 8-bit weights overflow 16 bits, and the check would fail
_MICROSOFT = "com.microsoft"


def peak(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The worker's mode ``peak``.

    Args:
        spec: What the worker was given; its ``peak`` holds ``provider``, ``size`` (of the largest product on a CPU) and
            ``seconds`` to sample each precision for.

    Returns:
        ``peak``: by precision, the report's ``peak`` block, with the size that was the fastest.

    Raises:
        MeasurementError: A product is wrong, so its time says nothing.
    """
    wanted = spec["peak"]
    provider = wanted["provider"]
    largest = wanted["size"] if provider == "cpu" else max(_GPU_SIZE, wanted["size"])
    found = {}
    for precision in ("fp32", "int8") if provider == "cpu" else ("fp32", "fp16"):
        rates = {}
        for size in (largest // fraction for fraction in _FRACTIONS):
            seconds = _best_seconds(precision, size, wanted["seconds"] / len(_FRACTIONS), provider, spec)
            rates[size] = size**3 / seconds
        best = max(rates, key=lambda size: rates[size])
        found[precision] = {
            "macs_per_s": rates[best],
            "size": best,
            "engine": "onnxruntime",
            "provider": provider,
            "threads": spec["threads"],
        }
    return {"peak": found}


def product_model(precision: str, weights: NDArray[np.float32]) -> Any:
    """A graph that multiplies ``x`` (rows, n) by ``weights`` (n, m) in ``precision``, as an ``onnx.ModelProto``."""
    from onnx import TensorProto, helper, numpy_helper

    kind = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
    if precision == "int8":
        scales = np.abs(weights).max(axis=0) / _SEVEN_BITS
        tensors = {"weights": np.rint(weights / scales).astype(np.int8), "scales": scales}
        node = helper.make_node("DynamicQuantizeMatMul", ["x", "weights", "scales"], ["y"], domain=_MICROSOFT)
    else:
        tensors = {"weights": weights.astype(helper.tensor_dtype_to_np_dtype(kind))}
        node = helper.make_node("MatMul", ["x", "weights"], ["y"])
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", kind, ["rows", weights.shape[0]])],
        [helper.make_tensor_value_info("y", kind, ["rows", weights.shape[1]])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(_MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def _best_seconds(precision: str, size: int, seconds: float, provider: str, spec: Mapping[str, Any]) -> float:
    random = np.random.default_rng(0)
    x, weights = random.standard_normal((2, size, size), np.float32)
    x = x.astype(np.float16 if precision == "fp16" else np.float32)
    session = open_session(
        product_model(precision, weights).SerializeToString(),
        provider=provider,
        threads=spec["threads"],
        allow_spinning=spec["spinning"],
        provider_options={"use_tf32": "0"} if provider == "cuda" else None,
    )
    bound = BoundSession(session, device="cpu" if provider == "cpu" else "cuda")
    bound.upload({"x": x})
    bound.run_on_device()  # the first run allocates
    _check(precision, bound.download()["y"], x, weights)
    return _fastest(bound.run_on_device, seconds)


def _check(precision: str, product: NDArray[Any], x: NDArray[Any], weights: NDArray[Any]) -> None:
    expected = x[:_ROWS_CHECKED].astype(np.float32) @ weights
    error = np.abs(product[:_ROWS_CHECKED] - expected).max() / np.abs(expected).max()
    if not error <= _TOLERANCES[precision]:
        raise MeasurementError(
            f"the {precision} product of the peak measurement is wrong by {error:.2g} of its largest element",
            todo="the machine or this build of ONNX Runtime computes wrongly; do not trust other results either",
        )


def _fastest(call: Callable[[], None], seconds: float) -> float:
    """The shortest time of a call, of all that begin within ``seconds``."""
    best, calls = _time(call), 1
    end = time.perf_counter() + seconds
    while calls < _MIN_SAMPLES or time.perf_counter() < end:
        best, calls = min(best, _time(call)), calls + 1
    return best


def _time(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
