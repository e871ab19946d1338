"""What a report of an encoder-decoder says: whole texts first, then the parts, each with its words."""

from __future__ import annotations

import pytest

from compactor.console import Console
from compactor.reporting.figures import make_figures
from compactor.reporting.figures.layers import layers_figure
from compactor.reporting.figures.speed import throughput_figure
from compactor.reporting.page import render_html, render_markdown
from compactor.reporting.tables.layers import layer_table, profile_tables
from compactor.reporting.tables.results import speed_table
from compactor.reporting.terminal import print_summary
from compactor.reporting.words import describe_workload, placement_words, summary_sentence
from tests.compactor.reporting.parts import PARTS, SHAPES, make_parts_report
from tests.compactor.reports import make_report


def test_a_case_in_words() -> None:
    report = make_parts_report(SHAPES)
    assert [describe_workload(report, case) for case in report["workload"]["cases"]][:6] == [
        "32 new tokens for one 128-token request (greedy search)",
        "32 new tokens for one 128-token request (4 beams)",
        "the encoder on one 128-token request",
        "the decoder's first token for one 128-token request",
        "one more token, after 16, for one 128-token request",
        "32 new tokens for a batch of 8 × 128 tokens (greedy search)",
    ]


def test_the_sentence_is_about_whole_texts() -> None:
    assert summary_sentence(make_parts_report()).startswith(
        "compact int8 writes 32 new tokens for one 128-token request (greedy search) in 2.61 ms, 9.54×"
    )


def test_speed_says_whether_the_outputs_are_the_same() -> None:
    table = speed_table(make_parts_report())
    assert table.columns[5] == ">outputs differ in"
    cells = {heading: [row[5].text for row in rows if len(row) > 5] for heading, rows in table.groups}
    assert [found for heading, found in cells.items() if heading and heading.startswith("generate")] == [
        ["baseline", "no token", "5 of 8 texts"]
    ] * 2
    assert list(cells.values())[2] == ["baseline", "below 0.01 %", "0.27 %"]
    assert "batch × new tokens" in table.caption
    report = make_parts_report()
    report["variants"][1]["results"][2]["agreement"] |= {"max_abs_diff": None, "max_abs": None}
    report["variants"][1]["results"][3]["agreement"] = None
    rows = [rows[1] for _, rows in speed_table(report).groups]
    assert [row[5].text for row in rows[2:4]] == ["not comparable", "not compared"]
    assert ">outputs differ in" not in speed_table(make_report()).columns


def test_each_part_has_its_profile() -> None:
    report = make_parts_report()
    tables = profile_tables(report)
    assert [table.title for table in tables if table.title.startswith("Operators")][:4] == [
        "Operators: compact fp32, generate",
        "Operators: compact fp32, encoder",
        "Operators: compact fp32, first step",
        "Operators: compact fp32, step",
    ]
    assert len({table.id for table in tables}) == len(tables)
    assert "the rest is the search, outside of the graphs" in tables[0].caption
    assert not [table for table in tables if "search" in table.caption and "generate" not in table.title]
    assert placement_words(report)[1].startswith("Nodes of compact fp32, encoder: ")
    old = make_report()
    assert profile_tables(old)[0].title == "Operators: compact fp32"  # it has no profiles


def test_cross_attention_has_no_neurons_and_a_mark_of_its_own() -> None:
    report = make_parts_report()
    (_, rows), *_ = layer_table(report).groups
    assert [cell.text for cell in rows[2]] == ["decoder.layers.0, cross-attention", "12 → 3", "none"]
    figure = layers_figure(report)
    assert figure is not None and "x: the decoder's attention to the encoder" in figure.caption
    assert "e0: 5 of 12, d0: 4 of 12, x0: 3 of 12" in figure.drawings[0].markup
    assert "attention to the encoder" not in (layers_figure(make_report()) or figure).caption


def test_batch_sizes_are_compared_within_a_part() -> None:
    figure = throughput_figure(make_parts_report(SHAPES))
    assert figure is not None
    assert [drawing.title for drawing in figure.drawings] == [f"{part.words}, 128 tokens" for part in PARTS]
    assert throughput_figure(make_parts_report()) is None


@pytest.mark.parametrize("scenario", ["single", "offline"])
def test_every_page_can_be_made(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = make_parts_report(SHAPES, scenario=scenario)
    page, text = render_html(report), render_markdown(report)
    for words in ("step after 16 tokens, 8x128", "5 of 8 texts"):
        assert words in page and words in text
    names = [drawing.title for figure in make_figures(report) for drawing in figure.drawings]
    assert "compact int8, first step" in names
    print_summary(Console(), report)
    lines = capsys.readouterr().out.splitlines()
    assert "tokens/s" in next(line for line in lines if line.startswith("variant"))
