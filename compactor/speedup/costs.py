"""What a block with so many heads or neurons takes on this machine, in the graph that will be served.

Nothing is guessed from a table of kernels. The model itself is exported a few times, each time with other sizes planted
in its blocks, so that every size stands somewhere in some graph, as it would among its neighbours; ONNX Runtime's
profile says what each block took. The profile takes time of its own, the same for each node: that is taken off by what
the graphs take without it. What is in no block is what no pruning changes (embeddings, head).

    T(sizes) = fixed + sum over blocks of cost(kind, size)      checked on every graph: ``Costs.error``

Sizes between measured ones are interpolated. The rounds go over the graphs one way and back, a session at a time, so
that a machine that grows slower meets all of them alike.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compactor.benching.card import machine_card
from compactor.errors import UsageError
from compactor.evaluation.datafiles import read_lengths, read_table
from compactor.evaluation.texts import tokenize
from compactor.exporting.export import export
from compactor.runtime.artefacts import Artefact
from compactor.runtime.bucketing import Examples, in_order
from compactor.runtime.profiling import Feeds, profile_session
from compactor.runtime.sampling import Clock, sample
from compactor.runtime.sessions import open_session
from compactor.speedup.subject import Subject
from compactor.speedup.units import Linears, Unit

SCHEMA = 1
COSTS = "costs.json"
_GRAPHS = (2, 4)  # planted ones, at least and at most
_SHARES = (0.0, 0.04, 0.08, 0.13, 0.2, 0.28, 0.38, 0.5, 0.63, 0.77, 0.9, 1.0)  # of a block's neurons
_ROUNDS, _MOST_ROUNDS = 2, 4
_TRUSTED = 0.08  # error of the sum, above which more rounds are run
_CLOCK = Clock(warm_up_s=0.2, measure_s=0.8)
_MOST_BATCHES = 12  # of a file of lengths


@dataclasses.dataclass(frozen=True)
class Load:
    """What is promised a speed: the inputs of one call, or of several in turn.

    Attributes:
        batch: Examples of a call.
        seq: Tokens of each; None where they come from a file.
        lengths: The file of lengths or texts; None where all are as long.
        precision: ``int8`` or ``fp32``.
    """

    batch: int = 1
    seq: int | None = 128
    lengths: Path | None = None
    precision: str = "int8"

    def feeds(self, spec: Any) -> list[Feeds]:
        """The calls: random ordinary tokens of these lengths, in the order of the file."""
        random = np.random.default_rng(17)
        if self.lengths is None:
            assert self.seq is not None
            spec.check_length(self.seq)
            return [spec.random_tokens(random, self.batch, self.seq)]
        found = read_lengths(self.lengths)
        if found is None:
            found = tokenize(read_table(self.lengths), spec, labelled=False).examples.lengths.tolist()
        limit = spec.max_tokens or max(found)
        examples = Examples.join([spec.random_tokens(random, min(int(size), limit)) for size in found], spec.fill)
        batches = in_order(examples.lengths, self.batch)
        chosen = np.unique(np.linspace(0, len(batches) - 1, min(_MOST_BATCHES, len(batches))).astype(int))
        return [examples.batch(batches[place]) for place in chosen]

    def to_json(self) -> dict[str, Any]:
        """As it stands in a file."""
        name = None if self.lengths is None else self.lengths.name
        return {"batch": self.batch, "seq": self.seq, "lengths": name, "precision": self.precision}

    @property
    def words(self) -> str:
        """``1 x 128 tokens, int8``."""
        what = f"{self.seq} tokens" if self.lengths is None else f"lengths of {self.lengths.name}"
        return f"{self.batch} x {what}, {self.precision}"


@dataclasses.dataclass(frozen=True)
class Costs:
    """Times by size.

    Attributes:
        load: What was timed.
        machine: Card of the machine.
        fixed_ms: What no pruning changes.
        dense_ms: The whole model as it was.
        tables: By the shape of a block (``Unit.shape``) sizes, ascending from 0, and their milliseconds.
        error: The largest relative error of the sum on a whole graph that was measured.
        graphs: Measured and summed milliseconds of those graphs.
    """

    load: Mapping[str, Any]
    machine: Mapping[str, Any]
    fixed_ms: float
    dense_ms: float
    tables: Mapping[str, Sequence[tuple[int, float]]]
    error: float
    graphs: Sequence[tuple[float, float]]

    def check_reach(self, speedup: float) -> None:
        """Raises UsageError where a model with nothing left of any block would not be so many times as fast."""
        most = self.dense_ms / max(self.fixed_ms, 1e-9)
        if speedup >= most:
            raise UsageError(
                f"a speed-up of {speedup:g} is out of reach: with nothing left of any block it is "
                f"{most:.3g}, and embedding and head take the rest",
                todo=f"ask for less than {0.9 * most:.3g}",
            )

    def times(self, unit: Unit, sizes: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(K,) milliseconds of a block with these sizes."""
        known, taken = zip(*self.tables[unit.shape], strict=True)
        return np.asarray(np.interp(sizes, known, taken), np.float64)

    def total(self, units: Sequence[Unit], sizes: Sequence[int]) -> float:
        """Milliseconds of a model whose blocks have these sizes."""
        return self.fixed_ms + sum(float(self.times(unit, [size])[0]) for unit, size in zip(units, sizes, strict=True))

    def to_json(self) -> dict[str, Any]:
        """The content of ``costs.json``."""
        return {"schema": SCHEMA, "kind": "compactor-costs", **dataclasses.asdict(self)}

    @classmethod
    def read(cls, path: Path, units: Sequence[Unit], load: Load) -> Costs:
        """What ``to_json`` wrote, for these blocks and this load.

        Raises:
            UsageError: It is no such file, or of other blocks, or of another load.
        """
        try:
            found = cls._parse(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise UsageError(f"cannot be read: {error.strerror}", where=str(path), todo="check the path") from error
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise UsageError(
                f"no costs that compactor wrote: {error}", where=str(path), todo="leave out --costs to measure them"
            ) from error
        missing = [unit.shape for unit in units if unit.shape not in found.tables]
        if missing:
            raise UsageError(
                f"the costs are of another model: none of a block of {missing[0]}",
                where=str(path),
                todo="leave out --costs to measure them",
            )
        if found.load != load.to_json():
            raise UsageError(
                f"the costs are of another load: {found.load}",
                where=str(path),
                todo="ask for the same batch, lengths and precision, or leave out --costs",
            )
        return found

    @classmethod
    def _parse(cls, content: dict[str, Any]) -> Costs:
        """Of the content of a file, which may be anything: what does not fit raises an error of Python's own."""
        if content.pop("kind") != "compactor-costs" or content.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        for name in ("load", "machine"):
            if not isinstance(content[name], dict):
                raise ValueError(f"'{name}' is no object")
        for name in ("fixed_ms", "dense_ms", "error"):
            content[name] = float(content[name])
        content["tables"] = {
            str(shape): [(int(size), float(taken)) for size, taken in rows] for shape, rows in content["tables"].items()
        }
        content["graphs"] = [(float(own), float(added)) for own, added in content["graphs"]]
        found = cls(**content)
        times = [found.fixed_ms, found.dense_ms, found.error]
        for rows in found.tables.values():
            sizes, taken = [size for size, _ in rows], [time for _, time in rows]
            if sizes[:1] != [0] or sizes != sorted(set(sizes)) or taken != sorted(taken):
                raise ValueError("sizes that do not ascend from 0, or more of them that take less")
            times += taken
        if not all(math.isfinite(time) and time >= 0 for time in times) or found.dense_ms == 0:
            raise ValueError("a time that is none")
        return found


def measure_costs(
    subject: Subject, units: Sequence[Unit], load: Load, whole: Path, say: Callable[[str], None]
) -> Costs:
    """Export graphs with planted sizes, and time them.

    Args:
        subject: The model; it is as it was when this returns.
        units: Its blocks.
        load: What is timed.
        whole: The graph of the model as it is.
        say: Told of each graph.
    """
    feeds = load.feeds(subject.spec)
    planted, linears = _plans(units), Linears(subject.model, units)
    plans = [tuple(unit.count for unit in units), *planted]
    with tempfile.TemporaryDirectory(prefix="compactor-costs-") as temporary:
        graphs = [whole]
        for number, sizes in enumerate(planted):
            say(f"measuring costs: graph {number + 1} of {len(planted)}")
            graphs.append(_export(subject, units, linears, sizes, load, Path(temporary) / str(number)))
        totals: list[list[float]] = [[] for _ in graphs]
        profiles: list[list[dict[str, Taken]]] = [[] for _ in graphs]
        order = list(range(len(graphs)))
        while True:  # more rounds where the machine was too busy for the first
            for step in range(_ROUNDS):
                say(f"measuring costs: round {len(totals[0]) + 1}")
                for number in order if step % 2 == 0 else reversed(order):
                    totals[number].append(_low(_time(graphs[number], feeds)))
                    profiles[number].append(_profile(graphs[number], feeds))
            found = _fit(units, plans, [_low(times) for times in totals], [_lows(rows) for rows in profiles], load)
            if found.error <= _TRUSTED or len(totals[0]) >= _MOST_ROUNDS:
                return found


@dataclasses.dataclass(frozen=True)
class Taken:
    """What the nodes of a layer took in a profile, and how many there are."""

    ms: float
    nodes: float


def _low(times: Sequence[float]) -> float:
    """The lower quartile: what else the machine does makes times longer, and never shorter."""
    return float(np.quantile(times, 0.25))


def _plans(units: Sequence[Unit]) -> list[tuple[int, ...]]:
    """Sizes of all blocks, graph by graph, so that each shape meets as many sizes as there are places for."""
    by_shape: dict[str, list[int]] = collections.defaultdict(list)
    for place, unit in enumerate(units):
        by_shape[unit.shape].append(place)
    least = min(len(places) for places in by_shape.values())
    wanted = max(min(unit.count, len(_SHARES)) for unit in units)
    graphs = min(max(_GRAPHS[0], math.ceil(wanted / least)), _GRAPHS[1])
    plans = np.zeros((graphs, len(units)), np.int64)
    for places in by_shape.values():
        sizes = _sizes(units[places[0]])
        slots = [(graph, place) for graph in range(graphs) for place in places]
        if len(sizes) > len(slots):
            sizes = [sizes[number] for number in np.linspace(0, len(sizes) - 1, len(slots)).astype(int)]
        step = next(step for step in (5, 7, 3, 1) if math.gcd(step, len(sizes)) == 1)  # large beside small
        for number, (graph, place) in enumerate(slots):
            plans[graph, place] = sizes[number * step % len(sizes)]
    return [tuple(int(size) for size in plan) for plan in plans]


def _sizes(unit: Unit) -> list[int]:
    """Sizes worth measuring, all but nothing, which takes no time, and the whole, which the dense graph has."""
    if unit.is_attention and unit.count <= len(_SHARES) + 4:
        return list(range(1, unit.count)) or [unit.count]
    found = {round(share * unit.count) for share in _SHARES}
    return sorted(found - {0, unit.count}) or [unit.count]


def _export(
    subject: Subject, units: Sequence[Unit], linears: Linears, sizes: Sequence[int], load: Load, folder: Path
) -> Path:
    try:
        for unit, size in zip(units, sizes, strict=True):
            if size < unit.count:
                kept = torch.arange(size)
                weight = unit.weight()
                inputs = unit.inputs_of(kept)
                bias = weight[:, unit.module.in_features :]
                linears.write(unit, kept, torch.cat([weight[:, inputs], bias], 1))
                linears.clear(unit, kept)
        subject.model.save_pretrained(folder / "model")
    finally:
        linears.restore()
    return export_graph(folder / "model", folder / "out", load.precision, task=subject.task.name)


def export_graph(model: Path, out: Path, precision: str, *, task: str | None = None) -> Path:
    """Export for the CPU, and return the graph of ``precision``."""
    return graph_of(export(model, out, precision=[precision], task=task).path, precision)


def graph_of(artefact: Path, precision: str) -> Path:
    """The file of a graph in an artefact of ours."""
    return artefact / Artefact.open(artefact).graphs[precision]


def _time(graph: Path, feeds: Sequence[Feeds]) -> list[float]:
    """Milliseconds of all calls together, over and over."""
    session = open_session(graph)
    names = {entry.name for entry in session.get_inputs()}
    chosen = [{name: array for name, array in batch.items() if name in names} for batch in feeds]

    def call() -> None:
        for batch in chosen:
            session.run(None, batch)

    times, _ = sample(call, _CLOCK)
    return times


def _profile(graph: Path, feeds: Sequence[Feeds]) -> dict[str, Taken]:
    """What all calls together take by layer: of each call the lower quartile of several runs."""
    found: dict[str, Taken] = {}
    cases = {str(number): [batch] for number, batch in enumerate(feeds)}
    for profile in profile_session(graph, cases, runs=max(5, 24 // len(feeds))).values():
        times: dict[str, dict[int, int]] = collections.defaultdict(lambda: collections.defaultdict(int))
        nodes: dict[str, int] = collections.defaultdict(int)
        for event in profile.events:
            times[event.layer][event.run] += event.time_us
            nodes[event.layer] += 1
        for layer, runs in times.items():
            before = found.get(layer, Taken(0.0, 0.0))
            own = _low(list(runs.values())) / 1e3
            found[layer] = Taken(before.ms + own, before.nodes + nodes[layer] / profile.runs)
    return found


def _lows(rows: Sequence[Mapping[str, Taken]]) -> dict[str, Taken]:
    """Of several profiles of a graph."""
    return {layer: Taken(_low([row[layer].ms for row in rows]), rows[0][layer].nodes) for layer in rows[0]}


def _fit(
    units: Sequence[Unit],
    plans: Sequence[Sequence[int]],
    measured: Sequence[float],
    profiled: Sequence[Mapping[str, Taken]],
    load: Load,
) -> Costs:
    """Take from each node what the profile itself takes, and make tables of what is left.

    A profile of N nodes that sums to P, of a graph that takes M without it, adds (P - M) / N to each node.

    Args:
        units: The blocks.
        plans: Their sizes in each graph; in the first one all are whole.
        measured: Milliseconds of each graph.
        profiled: By graph and layer what its nodes took; what is in no block is under ``other``.
        load: What was timed.
    """
    excess = float(
        np.median(
            [
                (sum(taken.ms for taken in found.values()) - own) / max(sum(taken.nodes for taken in found.values()), 1)
                for own, found in zip(measured, profiled, strict=True)
            ]
        )
    )
    raw: dict[str, dict[int, list[float]]] = {unit.shape: {0: [0.0]} for unit in units}
    names = {unit.name for unit in units}
    rest = []
    for sizes, found in zip(plans, profiled, strict=True):
        real = {layer: max(taken.ms - excess * taken.nodes, 0.0) for layer, taken in found.items()}
        for unit, size in zip(units, sizes, strict=True):
            raw[unit.shape].setdefault(size, []).append(real.get(unit.name, 0.0))
        rest.append(sum(taken for layer, taken in real.items() if layer not in names))
    tables = {}
    for shape, taken in raw.items():
        sizes = sorted(taken)
        # More never takes less: what noise turns around is levelled.
        rising = _rising([float(np.median(taken[size])) for size in sizes])
        tables[shape] = list(zip(sizes, rising, strict=True))
    costs = Costs(load.to_json(), {}, float(np.median(rest)), 1.0, tables, 0.0, ())
    summed = [costs.total(units, sizes) for sizes in plans]
    return dataclasses.replace(
        costs,
        machine={key: value for key, value in machine_card().items() if key != "load_before"},
        dense_ms=summed[0],
        error=max(abs(added - own) / own for own, added in zip(measured, summed, strict=True)),
        graphs=[(float(own), added) for own, added in zip(measured, summed, strict=True)],
    )


def _rising(values: Sequence[float]) -> list[float]:
    """The closest sequence that never falls, in the square: neighbours that do are averaged."""
    blocks: list[list[float]] = []  # sum and count
    for value in values:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    return [total / count for total, count in blocks for _ in range(int(count))]
