"""The table of equalisations: an artefact has those that were chosen and no other; what finds nothing says so."""

from __future__ import annotations

import pytest

from benchmarks import equalisations
from compactor.benching.card import machine_card


@pytest.fixture(scope="module")
def without(example_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("without") / "out"
    equalisations.export_with(example_checkpoint, folder, {"int8": "token"}, ())
    return folder


def test_an_artefact_has_the_chosen_ones_alone(without, token_artefact):
    nothing = dict.fromkeys(equalisations.NAMES, 0)
    assert equalisations.places_of(without) == nothing
    assert equalisations.places_of(token_artefact) == {**nothing, "scale-values": 2}


def test_the_table_has_a_row_for_each_choice_and_says_what_finds_nothing():
    entry = {"places": 0, "error": 0.0179, "changed": 8, "answers": 872}
    found = {**dict.fromkeys(equalisations.CHOICES, entry), "all": {**entry, "places": 2, "changed": 7}}
    result = {"command": "python it", "machine": machine_card(), "models": {"small": {"token": found}}}
    lines = [line for line in equalisations.render(result).splitlines() if line.startswith("|")]
    assert lines[0] == "| equalisation | sublayers changed | `token`: error | `token`: answers changed |"
    assert lines[2] == "| none | 0 | 1.79 % | 8 of 872 (0.92 %) |"
    assert lines[-1] == "| all | 2 | 1.79 % | 7 of 872 (0.8 %) |"
    assert [line for line in lines if "nothing to move" in line] == [
        f"| {name} | nothing to move |  |  |" for name in equalisations.NAMES
    ]
