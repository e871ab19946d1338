"""Time one graph in this process and print the samples: the process that ``_measure.py`` starts for each variant.

    python benchmarks/_worker.py SPEC.json      # see ``Spec``

Imports no more than the engine it times, so that it also runs in an environment that has only that engine.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, Any]
Run = Callable[[Arrays], Arrays]


@dataclasses.dataclass(frozen=True)
class Spec:
    """What to time.

    Attributes:
        engine: ``onnxruntime`` or ``openvino``.
        model: The graph's file.
        threads: Threads of one operator.
        cases: For each case the files (``.npz``) of its batches. One sample is the time of running them all, in order.
        outputs: A folder for the outputs of each case, ``<case>.<batch>.npz``; None keeps none.
        warm_up_s: Least time of warm-up.
        warm_up_calls: Least number of calls of warm-up.
        measure_s: Time to go on sampling for, within the next two.
        min_samples: Least number of samples.
        max_samples: Largest number of samples.
        properties: OpenVINO properties.
    """

    engine: str
    model: str
    threads: int
    cases: dict[str, list[str]]
    outputs: str | None = None
    warm_up_s: float = 0.3
    warm_up_calls: int = 2
    measure_s: float = 1.0
    min_samples: int = 5
    max_samples: int = 100
    properties: dict[str, str] = dataclasses.field(default_factory=dict)


def main() -> int:
    """Time what the spec says and print one JSON document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("spec", type=Path)
    spec = Spec(**json.loads(parser.parse_args().spec.read_text(encoding="utf-8")))
    os.environ["OMP_NUM_THREADS"] = str(spec.threads)
    start = time.perf_counter()
    run, engine = {"onnxruntime": open_onnxruntime, "openvino": open_openvino}[spec.engine](spec)
    engine["open_s"] = round(time.perf_counter() - start, 3)
    samples = {}
    for name, files in spec.cases.items():
        batches = [dict(np.load(file)) for file in files]
        seconds = sample(functools.partial(_run_all, run, batches), spec)
        samples[name] = [round(1e3 * second, 4) for second in seconds]
        if spec.outputs is not None:  # after the clock has stopped
            for i, batch in enumerate(batches):
                np.savez(Path(spec.outputs) / f"{name}.{i}.npz", **run(batch))
    print(json.dumps({"samples_ms": samples, "engine": engine}))
    return 0


def _run_all(run: Run, batches: Sequence[Arrays]) -> None:
    for batch in batches:
        run(batch)


def sample(call: Callable[[], object], spec: Spec) -> list[float]:
    """Seconds of each call, after the warm-up."""
    start, calls = time.perf_counter(), 0
    while calls < spec.warm_up_calls or time.perf_counter() - start < spec.warm_up_s:
        call()
        calls += 1
    times: list[float] = []
    while len(times) < spec.max_samples and (len(times) < spec.min_samples or sum(times) < spec.measure_s):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def open_onnxruntime(spec: Spec) -> tuple[Run, Arrays]:
    """The graph in ONNX Runtime with its default optimizations."""
    import onnxruntime

    from compactor.runtime.sessions import open_session

    session = open_session(spec.model, threads=spec.threads)
    inputs = {entry.name for entry in session.get_inputs()}
    outputs = [entry.name for entry in session.get_outputs()]

    def run(feeds: Arrays) -> Arrays:
        values = session.run(outputs, {name: array for name, array in feeds.items() if name in inputs})
        return dict(zip(outputs, values, strict=True))

    return run, {"onnxruntime": onnxruntime.__version__}


def open_openvino(spec: Spec) -> tuple[Run, Arrays]:
    """The graph in OpenVINO on the CPU, one stream, dynamic shapes."""
    import openvino

    options = {
        "INFERENCE_NUM_THREADS": str(spec.threads),
        "NUM_STREAMS": "1",
        "PERFORMANCE_HINT": "LATENCY",
        **spec.properties,
    }
    compiled = openvino.Core().compile_model(spec.model, "CPU", options)
    request = compiled.create_infer_request()
    inputs = {port.get_any_name() for port in compiled.inputs}
    outputs = {port: port.get_any_name() for port in compiled.outputs}

    def run(feeds: Arrays) -> Arrays:
        values = request.infer({name: array for name, array in feeds.items() if name in inputs}, share_inputs=True)
        return {name: np.array(values[port]) for port, name in outputs.items()}

    precision = str(compiled.get_property("INFERENCE_PRECISION_HINT"))
    return run, {"openvino": openvino.__version__, "inference_precision": precision}


if __name__ == "__main__":
    sys.exit(main())
