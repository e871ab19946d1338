"""Absorb norms without statistics (NoNorm), and other scales of channels, into the weights around them.

    x' = w * (x + f(x)) + b,   x = s * u     ==>     u' = u + f'(u),   x' = (s * w) * u'

The residual stream is kept as u: every matrix that reads it has its rows multiplied by the scale s of its place, every
matrix that writes it its columns divided by that. The shift b goes into the bias of f', as ``b / (s w)``. Of the norm
nothing is left; the additions stay, with the relative rounding errors that they had, since a scale moves no channel
against itself. All factors are computed in float64 and every weight is rounded once.

What ends a stream at x itself (an output of the graph, a norm with statistics, any other operator) pins s to 1 there;
else each channel is scaled so that its geometric mean over all places is 1.

* A channel that a norm multiplies by 0 forgets what was in it: no s gives that, and its factor stays. Where the norm
  alone reads what is scaled, as behind the embeddings, the columns that write it become 0 instead.
* A channel whose scale, against that of the other channels, would differ by more than ``ratio`` between two places
  stays as it is at the later one: int8 rounds all channels of a row in steps of the largest.
* Where all scales together would leave ``reach``, all channels stay: float16 ends at 65504.

What stays is one ``Mul`` with 1 in every other channel, and the ``Add`` behind it.

Symbols: D model width, u, x (B, S, D) or (B, D); s, w, b (D,).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compactor.passes.base import Applied, Refused, RewritePass, RewriteResult
from compactor.passes.graph.matching import LAYER_KEY, constant, is_vector, layer_of, redirect
from compactor.passes.graph.shifting import fold_shift
from compactor.passes.graph.streams import Link, Scale, Stream, find_streams, scaling

_KEPT = "compactor.kept"  # node metadata: a Mul that holds what could not move, and is not asked again


@dataclasses.dataclass(frozen=True)
class AbsorbNormsPass(RewritePass):
    """Remove each ``Mul`` by a constant vector, and the ``Add`` of one behind it, where weights can take them.

    Needs current shapes. A product stays whole, with the reason, where both sides of it are pinned or are added; in
    single channels where those are scaled by 0 or too unevenly. A shift stays where its product does, and where the
    value in front of it is read by more than its norm.

    Attributes:
        ratio: How much larger a channel may be stored in one place than in another, against the other channels.
        reach: How much larger all channels may be.
    """

    name: ClassVar[str] = "absorb-norms"
    ratio: float = 64.0
    reach: float = 2.0**20

    def call(self, model: ir.Model) -> RewriteResult:
        """Absorb what scales and shifts the channels of the main graph."""
        graph = model.graph
        products = [node for node in graph if scaling(node) is not None and _KEPT not in node.metadata_props]
        applied: list[Applied] = []
        refused: list[Refused] = []
        for tree in _trees(find_streams(graph, products)):
            walk = _Walk(tree, np.log2(self.ratio), np.log2(self.reach))
            for stream in (*walk.scales, *walk.gains):
                scale = walk.scales.get(stream, np.ones(stream.width))
                stream.rescale(scale, walk.gains.get(stream, 1 / scale))
            for link in tree.links:
                layer, value, shifts = _layer(link), link.input, _shifts(link)
                stays = walk.stays[link]
                if stays.any():
                    applied.append(Applied(layer, "narrowed-scale", int(_narrow(link, walk))))
                    refused.append(Refused(layer, walk.reasons[link]))
                    continue
                redirect(link.node.outputs[0], value)
                graph.remove(link.node, safe=True)
                applied.append(Applied(layer, "absorbed-scale", 1))
                for shift in shifts:
                    if _fold(graph, value, shift):
                        applied.append(Applied(layer, "absorbed-shift", 1))
                    else:
                        refused.append(Refused(layer, "the shift stays: what is in front of it is read elsewhere too"))
        return RewriteResult.of(model, applied, refused)


@dataclasses.dataclass
class _Tree:
    """Streams that links connect.

    Attributes:
        root: Where the walk begins: where the scale is fixed, or else where something reads it.
        branches: Links from there outward, each with the stream that it leads to.
        leaves: Links from streams that nobody else sees.
        chords: Links between streams that are connected without them.
    """

    root: Stream
    branches: list[tuple[Link, Stream]] = dataclasses.field(default_factory=list)
    leaves: list[Link] = dataclasses.field(default_factory=list)
    chords: list[Link] = dataclasses.field(default_factory=list)

    @property
    def links(self) -> list[Link]:
        """All of them."""
        return [*(link for link, _ in self.branches), *self.leaves, *self.chords]


def _trees(links: Sequence[Link]) -> Iterator[_Tree]:
    """Group links by what they connect."""
    beside: dict[Stream, list[Link]] = collections.defaultdict(list)
    for link in links:
        beside[link.source].append(link)
        beside[link.target].append(link)
    leaves = {link for link in links if _is_leaf(link.source, beside)}
    hidden = {link.source for link in leaves}
    reached: set[Stream] = set()
    for root in sorted(beside, key=lambda stream: (not stream.pins, not stream.readers)):
        if root in reached or root in hidden:
            continue
        tree, pending, taken = _Tree(root), collections.deque([root]), set[Link]()
        reached.add(root)
        while pending:
            stream = pending.popleft()
            for link in beside[stream]:
                if link in taken:
                    continue
                taken.add(link)
                other = link.target if stream is link.source else link.source
                if link in leaves:
                    tree.leaves.append(link)
                elif other in reached:
                    tree.chords.append(link)
                else:
                    reached.add(other)
                    tree.branches.append((link, other))
                    pending.append(other)
        yield tree


def _is_leaf(stream: Stream, beside: Mapping[Stream, Sequence[Link]]) -> bool:
    """Whether a stream is seen through one link alone, so that what writes it can take any factor, 0 too."""
    alone = len(beside[stream]) == 1 and beside[stream][0].source is stream
    return alone and not stream.readers and not stream.pins


class _Walk:
    """From the root of a tree outward, each scale from the one before; a channel that cannot follow begins again.

    Attributes:
        scales: s (D,) of every stream but the leaves.
        gains: What the writers of the leaves are multiplied by, (D,).
        stays: The channels (D,) that stay at each link.
        reasons: Why they do.
    """

    def __init__(self, tree: _Tree, ratio: float, reach: float) -> None:
        """``ratio`` and ``reach`` in doublings."""
        width = tree.root.width
        self.scales = {tree.root: np.ones(width)}
        self.stays = {link: np.full(width, link in tree.chords) for link in tree.links}
        self.reasons = {link: "what it scales is added to what it makes of that" for link in tree.chords}
        runs = {tree.root: np.zeros(width, dtype=int)}  # by channel: streams of one number share a factor that is free
        low, high = np.zeros(width), np.zeros(width)
        for number, (link, stream) in enumerate(tree.branches, 1):
            forward, factors = stream is link.target, link.factors
            before = link.source if forward else link.target
            zero = factors == 0
            usable = np.where(zero, 1.0, factors)
            scale = self.scales[before] * (usable if forward else 1 / usable)
            doublings = np.log2(np.abs(scale))
            centre = 0.0 if stream.pins else float(np.median(doublings))
            beside = doublings - centre
            spread = np.maximum(high, beside) - np.minimum(low, beside)
            uneven = (spread > ratio) & ~zero & bool(stream.readers)
            stays = zero | uneven | bool(stream.pins) | (abs(centre) > reach)
            if abs(centre) > reach:
                centre = 0.0
            self.reasons[link] = _reason(stream, zero, uneven, float(spread[~zero].max(initial=0)))
            self.stays[link] = stays
            self.scales[stream] = np.where(stays, 2.0**centre, scale)
            runs[stream] = np.where(stays, number, runs[before])
            if stream.readers:
                low = np.where(stays, 0.0, np.minimum(low, beside))
                high = np.where(stays, 0.0, np.maximum(high, beside))
        _balance(self.scales, runs)
        self.gains = {link.source: link.factors / self.scales[link.target] for link in tree.leaves}


def _reason(stream: Stream, zero: NDArray[np.bool_], uneven: NDArray[np.bool_], spread: float) -> str:
    """Why channels stay, in words."""
    if stream.pins:
        return f"both sides are wanted as they are: {stream.pins[0]}"
    if zero.any():
        return f"{zero.sum()} of {zero.size} channels are scaled by 0, which no weight can undo"
    if uneven.any():
        return (
            f"{uneven.sum()} of {zero.size} channels would be stored up to {2**spread:.3g} times larger than elsewhere"
        )
    return "all channels would leave the range of float16"


def _balance(scales: dict[Stream, Scale], runs: Mapping[Stream, NDArray[np.int_]]) -> None:
    """Give each channel the geometric mean 1 over every run of streams, none of which is pinned."""
    streams = list(scales)
    numbers = np.array([runs[stream] for stream in streams])
    doublings = np.log2(np.abs([scales[stream] for stream in streams]))
    pinned = np.array([[bool(stream.pins)] for stream in streams])
    for number in np.unique(numbers):
        members = numbers == number
        free = members.any(axis=0) & ~(members & pinned).any(axis=0)
        mean = (doublings * members).sum(axis=0) / np.maximum(members.sum(axis=0), 1)
        for stream, own in zip(streams, members, strict=True):
            scales[stream] = np.where(own & free, scales[stream] / 2.0**mean, scales[stream])


def _narrow(link: Link, walk: _Walk) -> bool:
    """Leave in the product what stays. Returns whether that is less, or another number."""
    stays, old = walk.stays[link], link.factors
    between = walk.scales[link.source] / walk.scales[link.target]  # exactly 1 where both are one stream
    new = np.where(stays, old * between, 1.0)
    if (new == old).all():
        return False
    link.slot.refill(new.reshape(link.slot.array.shape))
    link.node.metadata_props[_KEPT] = "scale"
    return True


def _shifts(link: Link) -> list[ir.Node]:
    """The addition of a vector (D,) behind a product, where it alone reads that."""
    readers = list(link.node.outputs[0].uses())
    if len(readers) != 1 or link.node.outputs[0].is_graph_output() or readers[0].node.op_type != "Add":
        return []
    array = constant(readers[0].node.inputs[1 - readers[0].idx])
    width = link.factors.size
    return [readers[0].node] if array is not None and is_vector(array, width) else []


def _fold(graph: ir.Graph, value: ir.Value, shift: ir.Node) -> bool:
    """Fold the shift that is added to ``value``; False where nothing behind it takes it."""
    index = 0 if constant(shift.inputs[0]) is not None else 1
    row = constant(shift.inputs[index])
    assert row is not None
    if row.any() and not fold_shift(graph, value, row.reshape(-1), reader=shift):
        return False
    redirect(shift.outputs[0], value)
    graph.remove(shift, safe=True)
    return True


def _layer(link: Link) -> str:
    """The sublayer in front of the norm, or the product's own name."""
    before = link.input.producer()
    return (before.metadata_props.get(LAYER_KEY) if before is not None else None) or layer_of(link.node)
