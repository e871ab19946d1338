"""Where the time of a graph goes: ONNX Runtime's own profile, by operator, by layer and by provider.

A profile has one event for each node and run, with the shapes of that run. They give the multiply-adds that were
really executed, after every rewrite and with padding or without. Symbols: B batch, S queries, T keys.

    MatMul, Gemm, MatMulInteger, ...    elements of the output * width contracted
    Attention, MultiHeadAttention       B*S*T * (width of the queries + width of the output)      Q K^T, then P V
    com.microsoft Attention, QAttention the same, and B*S * input width * width of Q, K and V     its own projections
    Conv                                elements of the output * weights of one output channel

Weights that a kernel packed at start-up have no shape in the profile, so no formula reads theirs, but Conv's. An
operator that multiplies and has no formula here has an unknown count, and makes the sum unknown: a sum that left it
out would be too low and look right.

Reference: ONNX Runtime, "Profiling Tools", https://onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import json
import math
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .sessions import open_with_options, session_options

OTHER = "other"

Feeds = Mapping[str, NDArray[Any]]
Shape = tuple[int, ...]
Tensors = tuple[tuple[str, Shape], ...]  # type and shape of each, as the profile tells them

_FLOATS = ("float", "float16", "bfloat16", "double")
_CONTROL_FLOW = ("If", "Loop", "Scan")  # the nodes of their bodies have events of their own
_COPIES = ("MemcpyFromHost", "MemcpyToHost")
_SUFFIX = "_kernel_time"

# The names that compactor's name-nodes pass gives; then those of other exporters: "/encoder/layer.0/attention/MatMul".
_LAYER = re.compile(r"((?:(?:encoder|decoder)\.)?layers\.\d+\.\w+)/")
_FOREIGN_LAYER = re.compile(r"(?:^|[/._])(?:layers?|blocks?|h)[/._](\d+)(?=[/._])")

_MATRIX_PRODUCTS = frozenset(
    (
        *("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "GemmFastGelu"),
        *("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm", "MatMulNBits"),
    )
)
_CONVOLUTIONS = frozenset(("Conv", "FusedConv", "NhwcFusedConv", "ConvInteger", "QLinearConv"))
_MULTIPLIES = re.compile(r"MatMul|Gemm|Conv|Attention|LSTM|GRU|RNN|Einsum|MoE|^TRTKernel")


@dataclasses.dataclass(frozen=True)
class NodeEvent:
    """One node in one run.

    Attributes:
        run: Number of the run within its profile, from 0.
        name: Of the node, after ONNX Runtime's rewrites.
        operator: Its type, without the domain, which a profile does not tell.
        provider: ``cpu``, ``cuda``, ``tensorrt``, ...
        inputs: Types and shapes of the inputs, less those that a kernel packed at start-up.
        outputs: Types and shapes of the outputs.
        host_us: Microseconds on the host. For a node on a GPU, what it takes to start its kernels.
        device_us: Microseconds of its kernels on the GPU; None where the profile has none.
        graph: Name of the graph that it is in, where a profile is of several.
    """

    run: int
    name: str
    operator: str
    provider: str
    inputs: Tensors
    outputs: Tensors
    host_us: int
    device_us: int | None = None
    graph: str = ""

    @property
    def time_us(self) -> int:
        """Microseconds: on the device where they are known, else on the host."""
        return self.host_us if self.device_us is None else self.device_us

    @property
    def layer(self) -> str:
        """``layers.3.attention``, or ``layers.3`` in a graph that compactor did not name, or ``other``.

        Of an encoder-decoder also ``decoder.layers.3.cross_attention``.
        """
        if found := _LAYER.match(self.name):
            return found[1]
        if found := _FOREIGN_LAYER.search(self.name):
            return f"layers.{found[1]}"
        return OTHER

    @property
    def macs(self) -> int | None:
        """Multiply-adds of this run of the node; None where there is no formula."""
        return _count_macs(self)

    @property
    def computes(self) -> bool:
        """Whether it works on the model's numbers, not on shapes, indexes and single factors."""
        return bool(_MULTIPLIES.search(self.operator)) or any(
            kind in _FLOATS and math.prod(shape) > 1 for kind, shape in self.outputs
        )


@dataclasses.dataclass(frozen=True)
class Profile:
    """The events of some runs.

    Attributes:
        events: In the order of the profile.
        runs: What totals are divided by to be those of one run. A whole number unless some batches stand for others.
    """

    events: tuple[NodeEvent, ...]
    runs: float

    @property
    def total_ms(self) -> float:
        """Milliseconds of all nodes, of one run."""
        return _milliseconds(self.events, self.runs)

    @property
    def macs(self) -> int | None:
        """Multiply-adds of one run; None where a node's are unknown. Runs of different shapes give the mean."""
        return _mean_macs(self.events, self.runs)

    def by_operator(self) -> list[dict[str, Any]]:
        """Operator and provider, nodes, milliseconds of one run, share, multiply-adds; the slowest first."""
        groups = _group(self.events, lambda event: (event.operator, event.provider))
        rows = [
            {
                "name": operator,
                "provider": provider,
                "count": len(_nodes(events)),
                "ms": _milliseconds(events, self.runs),
                "share": self._share(events),
                "macs": _mean_macs(events, self.runs),
            }
            for (operator, provider), events in groups.items()
        ]
        return sorted(rows, key=lambda row: -row["ms"])

    def by_layer(self) -> list[dict[str, Any]]:
        """Layer, milliseconds of one run, share; in the order they run, ``other`` last."""
        groups = _group(self.events, lambda event: event.layer)
        return [
            {"name": layer, "ms": _milliseconds(events, self.runs), "share": self._share(events)}
            for layer, events in sorted(groups.items(), key=lambda item: item[0] == OTHER)
        ]

    def placement(self) -> dict[str, int]:
        """How many nodes ran on each provider."""
        groups = _group(self.events, lambda event: event.provider)
        return {provider: len(_nodes(events)) for provider, events in groups.items()}

    def misplaced(self, provider: str) -> list[str]:
        """What keeps a session on ``provider`` from staying there, a line for each node.

        Names the nodes that work on the model's numbers and run on the CPU, and the copies between the two. Shapes and
        indexes belong on the CPU.
        """
        if provider == "cpu":
            return []
        found = []
        for event in _nodes(self.events).values():
            if event.operator in _COPIES:
                found.append(f"{event.name} ({event.operator}) copies between cpu and {provider}")
            elif event.provider == "cpu" and event.computes:
                found.append(f"{event.name} ({event.operator}) runs on cpu")
        return found

    def uncounted(self) -> list[str]:
        """Nodes whose multiply-adds are unknown, as ``name (operator)``."""
        return [f"{event.name} ({event.operator})" for event in _nodes(self.events).values() if event.macs is None]

    def launch_times_only(self) -> bool:
        """Whether nodes ran on a GPU and none of them has a time there: their times are those of starting kernels."""
        on_gpu = [event for event in self.events if event.provider != "cpu"]
        return bool(on_gpu) and all(event.device_us is None for event in on_gpu)

    def _share(self, events: Iterable[NodeEvent]) -> float:
        total = sum(event.time_us for event in self.events)
        return round(sum(event.time_us for event in events) / total, 6) if total else 0.0


def profile_session(
    model: str | Path | bytes,
    cases: Mapping[str, Sequence[Feeds]],
    *,
    runs: int,
    warm_up: int = 2,
    threads: int | None = None,
    allow_spinning: bool = True,
    provider: str = "cpu",
    provider_options: Mapping[str, str] | None = None,
) -> dict[str, Profile]:
    """Run ``model`` with ONNX Runtime's profiler on, in a session of its own.

    Args:
        model: Path of an ONNX file, or its bytes.
        cases: Batches by the name of their case: arrays by the name of the input, cast here to the type that the graph
            declares. Inputs that it has not are left out.
        runs: How often all batches of a case are run and counted.
        warm_up: Runs of each case ahead of those, not counted: the first one allocates.
        threads: As of ``open_session``.
        allow_spinning: As of ``open_session``.
        provider: As of ``open_session``.
        provider_options: As of ``open_session``.

    Returns:
        The profile of each case; one run is one batch.

    Raises:
        ProviderUnavailableError: The provider is not installed, or its libraries do not load.
        FileNotFoundError: There is no such model file.
    """
    with tempfile.TemporaryDirectory(prefix="compactor-") as folder:
        session = ProfiledSession(
            model,
            Path(folder),
            threads=threads,
            allow_spinning=allow_spinning,
            provider=provider,
            provider_options=provider_options,
        )
        counted: dict[str, range] = {}
        for name, batches in cases.items():
            feeds = [_choose(session, batch) for batch in batches]
            for number in range(warm_up):
                session.run(None, feeds[number % len(feeds)])
            start = session.runs
            for batch in feeds * runs:
                session.run(None, batch)
            counted[name] = range(start, session.runs)
        events = session.end()
    return {name: Profile(select_runs(events, numbers), len(numbers)) for name, numbers in counted.items()}


class ProfiledSession:
    """A session with ONNX Runtime's profiler on, which counts its runs. Otherwise it is used like one.

    Args:
        model: Path of an ONNX file, or its bytes.
        folder: An empty folder for the profile.
        graph: Name that its nodes get, where a profile is of several graphs.
        threads: As of ``open_session``.
        allow_spinning: As of ``open_session``.
        provider: As of ``open_session``.
        provider_options: As of ``open_session``.

    Attributes:
        runs: So far.

    Raises:
        ProviderUnavailableError: The provider is not installed, or its libraries do not load.
        FileNotFoundError: There is no such model file.
    """

    def __init__(
        self,
        model: str | Path | bytes,
        folder: Path,
        *,
        graph: str = "",
        threads: int | None = None,
        allow_spinning: bool = True,
        provider: str = "cpu",
        provider_options: Mapping[str, str] | None = None,
    ) -> None:
        options = session_options(threads=threads, allow_spinning=allow_spinning)
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        self._session = open_with_options(model, options, provider=provider, provider_options=provider_options)
        self._graph = graph
        self.runs = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, *arguments: Any) -> Any:
        """As of a session."""
        self.runs += 1
        return self._session.run(*arguments)

    def run_with_ort_values(self, *arguments: Any) -> Any:
        """As of a session."""
        self.runs += 1
        return self._session.run_with_ort_values(*arguments)

    def run_with_iobinding(self, *arguments: Any) -> Any:
        """As of a session."""
        self.runs += 1
        return self._session.run_with_iobinding(*arguments)

    def end(self) -> list[NodeEvent]:
        """Stop profiling, and return the nodes of all runs."""
        events = read_profile(self._session.end_profiling())
        return [dataclasses.replace(event, graph=self._graph) for event in events] if self._graph else events


def read_profile(path: str | Path) -> list[NodeEvent]:
    """The nodes of all runs in a profile that ONNX Runtime wrote.

    A node belongs to the run (``model_run``) within whose time it began; what runs while the session is being opened
    is left out. Kernels of a GPU follow the node that started them.
    """
    nodes: list[dict[str, Any]] = []
    starts = []
    for event in _read_events(Path(path)):
        if event["cat"] == "Session" and event["name"] == "model_run":
            starts.append(event["ts"])
        elif event["cat"] == "Node" and event["name"].endswith(_SUFFIX):
            if event["args"]["op_name"] not in _CONTROL_FLOW:
                event["args"].pop("thread_scheduling_stats", None)  # most of its bytes
                nodes.append(event | {"device": None})
        elif event["cat"] == "Kernel" and nodes:
            nodes[-1]["device"] = (nodes[-1]["device"] or 0) + event["dur"]
    starts.sort()
    shapes: dict[str, Tensors] = {}  # the same in every run, so kept once
    return [
        NodeEvent(
            run=run,
            name=event["name"].removesuffix(_SUFFIX),
            operator=event["args"]["op_name"],
            provider=_provider_name(event["args"].get("provider", "")),
            inputs=_tensors(event["args"].get("input_type_shape", []), shapes),
            outputs=_tensors(event["args"].get("output_type_shape", []), shapes),
            host_us=event["dur"],
            device_us=event["device"],
        )
        for event in nodes
        if (run := bisect.bisect_right(starts, event["ts"]) - 1) >= 0
    ]


def _read_events(path: Path) -> Iterator[dict[str, Any]]:
    """One event after the other: ONNX Runtime writes each on a line, and a long profile has hundreds of megabytes."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.startswith("{"):
                yield json.loads(line.rstrip().rstrip(","))


def _choose(session: Any, batch: Feeds) -> dict[str, NDArray[Any]]:
    return {entry.name: np.asarray(batch[entry.name], _numpy_type(entry.type)) for entry in session.get_inputs()}


def _numpy_type(declared: str) -> np.dtype[Any]:
    """``tensor(float)`` is ``float32``; the others share numpy's names."""
    kind = declared.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(kind, kind))


def select_runs(events: Iterable[NodeEvent], numbers: range) -> tuple[NodeEvent, ...]:
    """The events of some runs, which are counted from 0 again."""
    return tuple(dataclasses.replace(event, run=event.run - numbers.start) for event in events if event.run in numbers)


def _provider_name(name: str) -> str:
    """The name that people use: ``CUDAExecutionProvider`` is ``cuda``."""
    return name.removesuffix("ExecutionProvider").lower() or "unknown"


def _tensors(listed: Sequence[Mapping[str, Sequence[int]]], known: dict[str, Tensors]) -> Tensors:
    tensors = tuple((kind, tuple(shape)) for entry in listed for kind, shape in entry.items())
    return known.setdefault(str(tensors), tensors)


def _group(events: Iterable[NodeEvent], key: Any) -> dict[Any, list[NodeEvent]]:
    groups = collections.defaultdict(list)
    for event in events:
        groups[key(event)].append(event)
    return dict(groups)


def _nodes(events: Iterable[NodeEvent]) -> dict[tuple[str, str, str], NodeEvent]:
    """One event of each node."""
    found: dict[tuple[str, str, str], NodeEvent] = {}
    for event in events:
        found.setdefault((event.graph, event.name, event.operator), event)
    return found


def _milliseconds(events: Iterable[NodeEvent], runs: float) -> float:
    return round(sum(event.time_us for event in events) / runs / 1e3, 6)


def _mean_macs(events: Iterable[NodeEvent], runs: float) -> int | None:
    total = 0
    for event in events:
        macs = event.macs
        if macs is None:
            return None
        total += macs
    return round(total / runs)


# Multiply-adds


def _count_macs(event: NodeEvent) -> int | None:
    if event.operator in _MATRIX_PRODUCTS:
        return _matrix_product_macs(event)
    if event.operator in ("Attention", "MultiHeadAttention", "QAttention"):
        return _attention_macs(event)
    if event.operator in _CONVOLUTIONS:
        return _convolution_macs(event)
    return None if _MULTIPLIES.search(event.operator) else 0


def _matrix_product_macs(event: NodeEvent) -> int | None:
    """Each element of the output is a sum over the contracted axis of the first input, transposed or not."""
    if not event.inputs or not event.outputs:
        return None
    left, out = event.inputs[0][1], event.outputs[0][1]
    if not left:
        return None
    if len(left) == 1 or len(out) < len(left) or left[-2] == out[-2]:  # a vector left, a vector right, a plain product
        return math.prod(out) * left[-1]
    return math.prod(out) * left[-2] if left[-1] == out[-2] else None


def _attention_macs(event: NodeEvent) -> int | None:
    """Standard Attention has queries, keys and values first; Microsoft's has one input, then biases of its weights."""
    if not event.inputs or not event.outputs:
        return None
    (_, query), *others = event.inputs
    out = event.outputs[0][1]
    key = others[0][1] if others else ()
    if len(query) == len(key) == 4 and event.operator == "Attention":  # (B, H, S, d)
        keys = event.outputs[1][1][2] if len(event.outputs) > 1 else key[2]  # with those of a cache
        return (math.prod(query) + math.prod(out)) * keys
    if len(query) != 3:
        return None
    if len(key) == 3:  # (B, S, width)
        keys = event.outputs[1][1][2] if len(event.outputs) > 1 else key[1]
        return (math.prod(query) + math.prod(out)) * keys
    if event.operator == "MultiHeadAttention":  # packed keys and values, or a cache of another layout
        return None
    biases = [shape for kind, shape in others if len(shape) == 1 and kind in _FLOATS and math.prod(shape) > 1]
    if not biases or len(event.outputs) > 1:
        return None
    batch, length, width = query
    (projected,), values = biases[0], out[-1]
    queries = (projected - values) // 2  # queries and keys have the same width
    return batch * length * (width * projected + length * (queries + values))


def _convolution_macs(event: NodeEvent) -> int | None:
    if not event.inputs or not event.outputs:
        return None
    (_, image), *others = event.inputs
    weights = [shape for _, shape in others if len(shape) == len(image)]
    if not weights or not weights[0][0]:
        return None
    return math.prod(event.outputs[0][1]) * math.prod(weights[0][1:])
