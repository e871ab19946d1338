"""Which precision goes with which target, and why another does not."""

from __future__ import annotations

import pytest

from compactor.errors import UsageError
from compactor.exporting.targets import TARGETS, choose_precisions, find_target

KNOWN = ("fp32", "int8", "fp16")


@pytest.mark.parametrize(("target", "default"), [("cpu", "int8"), ("cuda", "fp16"), ("portable", "int8")])
def test_defaults(target: str, default: str) -> None:
    assert choose_precisions(find_target(target), None) == ("fp32", default)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("precision", KNOWN)
def test_every_pair_is_taken_or_refused_with_a_reason(target: str, precision: str) -> None:
    entry = TARGETS[target]
    if precision in entry.precisions:
        assert choose_precisions(entry, [precision]) == tuple(dict.fromkeys(("fp32", precision)))
    else:
        with pytest.raises(UsageError, match=f"'{target}' does not take {precision}") as caught:
            choose_precisions(entry, [precision])
        assert caught.value.where == entry.refusals[precision]


def test_int8_on_cuda_says_why() -> None:
    with pytest.raises(UsageError, match="falls back to the CPU node by node") as caught:
        choose_precisions(find_target("cuda"), ["fp32", "int8"])
    assert "fp16" in str(caught.value.todo)


def test_fp32_is_always_there_first_and_once() -> None:
    assert choose_precisions(find_target("cpu"), ["int8", "fp32", "int8"]) == ("fp32", "int8")
    assert choose_precisions(find_target("cpu"), []) == ("fp32",)


@pytest.mark.parametrize("precision", ["int4", "", "FP32"])
def test_an_unknown_precision(precision: str) -> None:
    with pytest.raises(UsageError, match=f"no precision '{precision}'"):
        choose_precisions(find_target("cpu"), [precision])


def test_an_unknown_target_lists_the_known() -> None:
    with pytest.raises(UsageError, match="choose one of: cpu, cuda, portable"):
        find_target("tpu")
