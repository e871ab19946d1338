"""The paper's methods by name, and what one types for a block."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from compactor.errors import UsageError
from compactor.trainer.methods import METHODS, Block, Scoring, Second, Shape, find_method, parse_unit, unit_text

ROOT = Path(__file__).resolve().parents[3]
SQUARE, HEAD, DIM = Block(32, 32), Shape.HEAD, Shape.DIM


@pytest.mark.parametrize(
    ("name", "attention", "feed_forward", "teacher", "second"),
    [
        ("movement", Block(1, 1), Block(1, 1), True, Second.NONE),
        ("block", SQUARE, SQUARE, True, Second.NONE),
        ("hybrid", SQUARE, DIM, True, Second.NONE),
        ("hybrid-nt", SQUARE, DIM, False, Second.NONE),
        ("struct", HEAD, DIM, True, Second.NONE),
        ("hybrid-filled", SQUARE, DIM, True, Second.FILL),
        ("hybrid-filled-lt", SQUARE, DIM, True, Second.FILL),
        ("hybrid-opt", SQUARE, DIM, True, Second.NONE),
        ("hybrid-filled-opt", SQUARE, DIM, True, Second.FILL),
        ("rewind", SQUARE, DIM, True, Second.REWIND),
        ("magnitude", SQUARE, DIM, True, Second.NONE),
        ("dense", Shape.NONE, Shape.NONE, False, Second.NONE),
    ],
)
def test_each_method_of_the_papers_table(
    name: str, attention: object, feed_forward: object, teacher: bool, second: Second
) -> None:
    method = METHODS[name]
    assert (method.attention, method.feed_forward) == (attention, feed_forward)
    assert (method.teacher, method.second) == (teacher, second)
    assert method.scoring is (Scoring.MAGNITUDE if name == "magnitude" else Scoring.MOVEMENT)
    assert method.prunes == (name != "dense")
    assert method.simple == name.endswith("-opt")


def test_lambda_of_whole_heads_is_a_thirty_second_of_that_of_neurons() -> None:
    ratios = {name: method.attention_lambda / method.feed_forward_lambda for name, method in METHODS.items()}
    assert ratios.pop("struct") == 1 / 32
    assert set(ratios.values()) == {1.0}


def test_methods_are_found_by_their_names() -> None:
    assert all(find_method(name).name == name for name in METHODS)
    with pytest.raises(UsageError, match="no method 'hybird'") as caught:
        find_method("hybird")
    assert caught.value.todo is not None and all(name in caught.value.todo for name in METHODS)


def test_the_documentation_tells_of_each_method_what_the_command_tells() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    section = text.partition("\n## Methods\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [(name.strip("`"), teacher == "yes", summary) for name, _, _, teacher, summary in rows] == [
        (method.name, method.teacher, method.summary) for method in METHODS.values()
    ]


# Blocks


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("32x32", Block(32, 32)),
        ("4x16", Block(4, 16)),
        (" 8X8 ", Block(8, 8)),
        ("1x99999", Block(1, 99999)),
        ("head", Shape.HEAD),
        ("DIM", Shape.DIM),
        ("none", Shape.NONE),
    ],
)
def test_what_one_types_for_a_block(text: str, unit: object) -> None:
    found = parse_unit(text, "--block")
    assert found == unit
    assert parse_unit(unit_text(found), "--block") == found


@pytest.mark.parametrize(
    "text", ["", "32", "x32", "32x", "0x32", "32x0", "-4x4", "4x4x4", "4,4", "4.0x4", "1x100000", "heads"]
)
def test_what_is_no_block_is_refused_with_its_option(text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"--block: '{text}' is no block")):
        parse_unit(text, "--block")
