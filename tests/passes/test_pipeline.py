"""The pipeline's order, and the record of what its passes said."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from compactor.exporting.targets import TARGETS
from compactor.passes.base import Applied, Refused, RewritePass, RewriteResult
from compactor.passes.caching.attach_caches import Step
from compactor.passes.pipeline import (
    caching,
    canonicalisation,
    equalisation,
    finishing,
    lowering,
    precision_passes,
    structure,
)
from compactor.passes.runner import Record, run_passes


class Said(RewritePass):
    """Reports what it is told to, and changes nothing."""

    name = "said"

    def __init__(self, *events: Applied | Refused) -> None:
        self._events = events

    def __str__(self) -> str:
        return "said{twice=True}"

    def call(self, model: ir.Model) -> RewriteResult:
        applied = [event for event in self._events if isinstance(event, Applied)]
        return RewriteResult.of(model, applied, [event for event in self._events if isinstance(event, Refused)])


@pytest.fixture
def model() -> ir.Model:
    return ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 23}), ir_version=11)


def _names(passes: list[ir.passes.PassBase]) -> list[str]:
    return [str(step).partition("{")[0] for step in passes if isinstance(step, RewritePass)]


def test_structure_reads_as_the_design() -> None:
    assert _names(canonicalisation()) == [
        "fold-transposed-weights",
        "raise-normalization",
        "split-projections",
        "split-merged-heads",
        "raise-relative-logits",
        "raise-attention",
        "raise-rotary",
        "tabulate-rotary",
        "normalize-attention",
        "label-layers",
        "simplify-masks",
    ]
    assert _names(structure()) == [
        "absorb-norms",
        "fold-value-biases",
        "remove-dead-heads",
        "trim-head-channels",
        "remove-dead-neurons",
        "remove-empty-sublayers",
    ]


@pytest.mark.parametrize(
    ("target", "pack", "names"),
    [
        (
            "cpu",
            True,
            [
                *("align-widths", "pack-tokens", "write-relative-logits", "write-head-norms"),
                *("write-residuals-as-sum", "write-masks-as-floats"),
            ],
        ),
        (
            "cpu",
            False,
            [
                *("align-widths", "write-relative-logits", "write-head-norms"),
                *("write-residuals-as-sum", "write-masks-as-floats"),
            ],
        ),
        (
            "cuda",
            False,
            [
                *("repeat-shared-heads", "write-relative-logits", "write-head-norms", "align-widths"),
                "fuse-cuda-attention",
                *("fuse-cuda-rotary", "fuse-skip-layer-norm", "fuse-bias-gelu", "lower-opset"),
            ],
        ),
        (
            "portable",
            False,
            [
                *("repeat-shared-heads", "write-relative-logits", "write-head-norms", "decompose-attention"),
                *("decompose-rotary", "lower-opset"),
            ],
        ),
    ],
)
def test_lowering(target: str, pack: bool, names: list[str]) -> None:
    assert _names(lowering(target, pack={"logits": -1.0} if pack else None)) == names


def test_scale_moves_along_channels_before_int8() -> None:
    names = ["scale-norms", "scale-values", "scale-relu-neurons", "scale-gated-neurons"]
    assert _names(equalisation()) == names


@pytest.mark.parametrize(
    ("scales", "names"),
    [
        ("tensor", ["quantize-embeddings", "quantize-linears"]),
        ("token", ["merge-projections", "carry-biases", "quantize-embeddings", "quantize-linears-by-token"]),
    ],
)
def test_int8_by_token_is_prepared(scales: str, names: list[str]) -> None:
    assert _names(precision_passes("int8", "cpu", scales=scales)) == names


def test_every_target_has_passes_for_each_of_its_precisions() -> None:
    for target in TARGETS.values():
        for precision in target.precisions:
            assert (precision_passes(precision, target.name) == []) == (precision == "fp32")
    with pytest.raises(AssertionError, match="no passes for precision 'int4'"):
        precision_passes("int4", "cpu")
    assert _names(finishing()) == ["share-transposed-weights", "name-nodes"]


@pytest.mark.parametrize("step", ["first", "next"])
@pytest.mark.parametrize(
    ("target", "names"),
    [("cpu", ["attach-caches"]), ("portable", ["attach-caches"]), ("cuda", ["align-widths", "attach-caches"])],
)
def test_caches_are_attached_when_their_widths_are_final(step: Step, target: str, names: list[str]) -> None:
    assert _names(caching(step, target)) == names


def test_a_run_is_recorded(model: ir.Model) -> None:
    record = Record()
    events = (Applied("layers.0", "dead", 2), Applied("layers.1", "dead", 1), Refused("layers.2", "shared"))
    run_passes(model, [Said(*events), Said(Applied("layers.0", "dead", 3), Refused("layers.2", "shared"))], record)
    assert record.passes == ["said{twice=True}"] * 2
    assert record.rules == [
        {"pass": "said", "layer": "layers.0", "rule": "dead", "count": 5},
        {"pass": "said", "layer": "layers.1", "rule": "dead", "count": 1},
    ]
    assert record.refused == [{"pass": "said", "layer": "layers.2", "reason": "shared"}]
    assert (record.count("dead"), record.count("other")) == (6, 0)


def test_records_add_up(model: ir.Model) -> None:
    total, first, second = Record(), Record(), Record()
    run_passes(model, [Said(Applied("a", "dead", 1), Refused("b", "no"))], first)
    run_passes(model, [Said(Applied("a", "dead", 2), Refused("b", "no"))], second)
    total.add(first)
    total.add(second)
    assert total.passes == ["said{twice=True}"]
    assert total.count("dead") == 3
    assert len(total.refused) == 1


def test_passes_of_the_library_are_not_recorded(model: ir.Model) -> None:
    record = Record()
    run_passes(model, [ir.passes.common.RemoveUnusedNodesPass(), ir.passes.common.TopologicalSortPass()], record)
    assert record == Record()
    run_passes(model, [Said(Applied("a", "dead", 1))])
