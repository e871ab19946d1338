"""The page of a family of pruned models: what it says, and what it draws."""

from __future__ import annotations

import copy
import functools
import re

import pytest

from compactor.reporting.figures.family import make_family_figures
from compactor.reporting.speedup import (
    blocks_table,
    make_speedup_tiles,
    metrics_table,
    quality_table,
    render_speedup,
    settings_rows,
    speeds_table,
    speedup_about,
    speedup_sentence,
)
from tests.compactor.reporting.families import make_family, make_unknown_family
from tests.compactor.reporting.pages import (
    HOSTILE,
    Reader,
    check_closed_to_the_world,
    check_drawings,
    check_only_text,
    roots,
    shown,
)

ALL = ["family", "sizes", "costs"]


@functools.cache
def plain_page() -> str:
    return render_speedup(make_family())


def figures_of(document):
    return {figure.id: figure for figure in make_family_figures(document)}


def rows_of(table):
    ((_, rows),) = table.groups
    return {row[0].text: row[1:] for row in rows}


def nothing_measured():
    document = make_family(metric=None)
    for model in document["models"]:
        model.update(measured=None, kept=False)
    return document


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (
            make_family(),
            "All 3 models keep their speed within 5 %: 1.52× to 3.04× as fast, at 91.06 % to 86.19 % accuracy; "
            "the whole model in fp32: 91.63 ± 0.94 %.",
        ),
        (
            make_family(metric=None, missed=(2.0,)),
            "2 of 3 models keep their speed within 5 %, 2.0x does not: 1.52× to 3.04× as fast, at a KL of 0.002 to "
            "0.017 from the whole model's answers.",
        ),
        (
            make_family(metric=None, targets=(2.0,), task="feature-extraction"),
            "2.0x keeps its speed within 5 %: 2.02× as fast, at a 1 \N{MINUS SIGN} cosine of 0.005 from the whole "
            "model's answers.",
        ),
        (
            make_family(targets=(2.0,), missed=(2.0,)),
            "2.0x does not keep its speed within 5 %: 1.80× as fast, at 89.85 % accuracy; the whole model in fp32: "
            "91.63 ± 0.94 %.",
        ),
        (make_unknown_family(), "2 of 3 models keep their speed within 5 %, 2.0x does not: 1.52× to 3.04× as fast."),
        (nothing_measured(), "0 of 3 models keep their speed within 5 %: none was measured."),
    ],
    ids=["kept", "missed", "vectors", "alone", "unknown", "not-measured"],
)
def test_the_sentence(document, sentence):
    assert speedup_sentence(document) == sentence


def test_what_it_is_about():
    assert speedup_about(make_family()) == "model bert · text classification · 1 x 128 tokens, int8 · AMD EPYC 9B14"
    assert speedup_about(make_unknown_family()) == "model bert · text classification · 1 x 128 tokens, int8"


def test_tiles():
    tiles = {tile.name: tile for tile in make_speedup_tiles(make_family(missed=(3.0,)))}
    assert list(tiles) == ["Promises kept", "Fastest that keeps it", "Accuracy", "Time"]
    assert (tiles["Promises kept"].value, tiles["Promises kept"].tone) == ("2 of 3", "bad")
    fastest = tiles["Fastest that keeps it"]
    assert (fastest.value, fastest.note) == ("2.02×", "2.0x: 4.64 ms")  # and not the 2.70× that missed 3.0
    assert tiles["Accuracy"].note == "of 2.0x, on 872 examples; \N{MINUS SIGN}1.78 ± 0.56 points"
    assert tiles["Time"].value == "20.6 min"
    assert [tile.name for tile in make_speedup_tiles(make_family(metric=None))][2] == "KL"
    assert [tile.name for tile in make_speedup_tiles(nothing_measured())] == ["Promises kept", "Time"]
    assert [tile.name for tile in make_speedup_tiles(make_unknown_family())] == [
        "Promises kept", "Fastest that keeps it",
    ]  # fmt: skip


def test_the_table_of_speeds():
    rows = rows_of(speeds_table(make_family(missed=(3.0,))))
    assert list(rows) == ["whole, fp32", "whole, int8", "1.5x", "2.0x", "3.0x"]
    assert rows["whole, fp32"][0].absent
    assert [cell.text for cell in rows["whole, int8"]] == [*["baseline"] * 4, "9.40"]
    assert [cell.text for cell in rows["1.5x"]] == ["1.50×", "1.50×", "1.52× [1.50, 1.54]", "kept", "6.19"]
    promise = rows["3.0x"][3]
    assert (promise.text, promise.tone, promise.note) == ("missed", "bad", "10.0 % below")


def test_the_table_of_speeds_with_gaps():
    rows = rows_of(speeds_table(make_unknown_family()))
    assert "whole, fp32" not in rows and rows["whole, int8"][4].text == "unknown"
    assert [cell.text for cell in rows["1.5x"]][2:4] == ["1.52×", "kept"]
    assert [cell.text for cell in rows["2.0x"]] == ["2.00×", "unknown", *["not measured"] * 3]


def test_the_table_of_quality():
    document = make_family()
    table = quality_table(document)
    assert table.columns == ("model", ">accuracy", ">difference, points", ">KL", ">heads", ">neurons")
    rows = rows_of(table)
    assert [cell.text for cell in rows["whole, fp32"]] == ["91.63 ± 0.94 %", "baseline", "baseline", "72", "9,216"]
    accuracy, difference, loss, heads, _ = rows["3.0x"]
    assert (accuracy.text, loss.text) == ("86.19 ± 0.94 %", "0.017")
    assert (difference.text, difference.tone) == ("\N{MINUS SIGN}5.44 ± 0.56", "bad")
    assert difference.note == "\N{MINUS SIGN}6.54 to \N{MINUS SIGN}4.34"
    left = sum(document["models"][2]["sizes"][::2])
    assert (heads.text, heads.note) == (str(left), f"{100 * left / 72:.1f} %")


def test_the_table_of_quality_without_a_metric_or_some_numbers():
    assert quality_table(make_family(metric=None)).columns == ("model", ">KL", ">heads", ">neurons")
    document = make_family()
    document["models"][0]["metrics"] = {}
    document["models"][1]["metrics"]["accuracy"]["difference"].update(se=None, low=None)
    rows = rows_of(quality_table(document))
    assert [cell.text for cell in rows["1.5x"]][:2] == ["not measured"] * 2
    assert (rows["2.0x"][1].text, rows["2.0x"][1].note) == ("\N{MINUS SIGN}1.78", "")


def test_in_fp32_the_whole_model_is_one_row():
    for table in (speeds_table, quality_table, metrics_table):
        assert list(rows_of(table(make_family(precision="fp32"))))[:2] == ["whole, fp32", "1.5x"]
    assert not rows_of(speeds_table(make_family(precision="fp32")))["whole, fp32"][0].absent


def test_other_metrics_have_a_table_where_there_are_any():
    assert metrics_table(make_family()).columns == ("model", ">accuracy", ">f1")
    assert not metrics_table(make_family(metric=None))


def test_the_table_of_blocks():
    document = make_family(layers=2)
    rows = rows_of(blocks_table(document))
    assert list(rows) == [block["name"] for block in document["blocks"]] and len(rows) == 4
    assert [cell.text for cell in rows["layers.0.attention"]] == [
        "attention", "12", *(str(model["sizes"][0]) for model in document["models"]),
    ]  # fmt: skip


def test_settings_say_what_costs_are_worth():
    costs = dict(settings_rows(make_family()))["costs"]
    assert costs == "0.400 ms of 9.40 ms that no pruning changes; sums miss 3 whole graphs by up to 2.1 %"
    document = make_family()
    document["costs"]["machine"] = {"cpu_model": "Another"}
    assert dict(settings_rows(document))["costs"].endswith("measured on another machine: Another")
    assert dict(settings_rows(make_unknown_family()))["costs"] == "unknown"


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (make_family(), ALL),
        (make_family(metric=None), ALL),
        (make_unknown_family(), ALL),
        (nothing_measured(), ALL[1:]),
    ],
    ids=["all", "no-metric", "unknown", "not-measured"],
)
def test_a_figure_is_there_when_it_has_data(document, expected):
    assert list(figures_of(document)) == expected


def test_drawings_are_sound_and_take_their_colours_from_the_page():
    check_drawings(make_family_figures(make_family(layers=24, heads=16, missed=(2.0,))))
    check_drawings(make_family_figures(make_unknown_family()))


def test_the_family_against_speed():
    figure = figures_of(make_family(missed=(3.0,)))["family"]
    assert figure.title == "Accuracy against measured speed"
    assert [drawing.title for drawing in figure.drawings] == ["accuracy", "KL"]
    assert [shown(figure).count(name) for name in ("1.5x", "2.0x", "3.0x")] == [2, 2, 2]
    assert shown(figure).count("whole, fp32: 91.6 %") == 1
    assert "diamond" in figure.caption and "not shown" not in figure.caption
    assert figure.drawings[0].markup.count("var(--bad)")
    assert not figures_of(make_family())["family"].drawings[0].markup.count("var(--bad)")


def test_without_a_metric_the_loss_stands_for_it():
    figure = figures_of(make_family(metric=None))["family"]
    assert figure.title == "KL against measured speed" and len(figure.drawings) == 1
    figure = figures_of(make_unknown_family())["family"]
    assert "1.5x" in shown(figure) and not {"2.0x", "3.0x"} & set(shown(figure))
    assert "not shown" in figure.caption


def test_sizes_have_a_drawing_for_each_kind_and_an_empty_block_is_hollow():
    document = make_family(layers=2)
    for model in document["models"]:
        model["sizes"] = [12, 1536, 6, 768]
    document["models"][2]["sizes"][0] = 0
    figure = figures_of(document)["sizes"]
    assert [drawing.title for drawing in figure.drawings] == ["attention: heads", "feed-forward: neurons"]
    assert shown(figure).count("75.0 %") == 5 and shown(figure).count("25.0 %") == 1
    first, second = roots(figure)
    hollow = [
        sum("stroke: var(--muted)" in (node.get("style") or "") for node in root.iter()) for root in (first, second)
    ]
    assert hollow == [1, 0]


def test_costs_have_a_drawing_for_each_shape():
    document = make_family()
    document["costs"]["tables"] |= {"feed_forward 768 2624x2": [[0, 0.0], [2624, 1.5]], HOSTILE: [[0, 0.0], [3, 1.0]]}
    document["costs"]["tables"]["nothing"] = [[0, 0.0]]
    titles = [drawing.title for drawing in figures_of(document)["costs"].drawings]
    assert titles[:3] == [
        "attention: 12 heads of 32, 384 wide",
        "feed-forward: 1,536 neurons, 384 wide",
        "feed-forward: 2,624 neurons, gated, 768 wide",
    ]
    assert len(titles) == 4 and titles[3].startswith("</title>")


def test_the_page_is_closed_to_the_world():
    check_closed_to_the_world(plain_page())


def test_strings_of_a_document_are_only_text():
    document = make_family(title=HOSTILE, warnings=(HOSTILE,))
    document["versions"][HOSTILE] = document["command"] = document["model"] = document["data"] = HOSTILE
    document["load_words"] = document["models"][0]["name"] = document["blocks"][0]["name"] = HOSTILE
    document["machine"]["cpu_model"] = HOSTILE
    harmless = render_speedup(make_family(warnings=("x",)))
    check_only_text(render_speedup(document), harmless, beside=("dt", "dd"))  # one more version


@pytest.mark.parametrize("document", [make_unknown_family(), nothing_measured()], ids=["unknown", "not-measured"])
def test_documents_with_gaps_have_a_page_without_oddities(document):
    reader = Reader(render_speedup(document))
    assert not reader.open
    assert not re.search(r"\b(None|nan|inf|Undefined)\b", reader.text)


def test_what_the_page_says():
    text = Reader(render_speedup(make_family(missed=(3.0,), warnings=("3.0x is off",)))).text.replace("\xa0", " ")
    assert "✕ 2 of 3 promises kept" in text and "3.0x is off" in text and "measurement INVALID" not in text
    assert "load1 x 128 tokens, int8" in text and "choices tried24 for each target" in text
    assert "compactor prune bert --speedup 1.5,2,3" in text and "onnxruntime1.23.0" in text
    assert "CPUAMD EPYC 9B14" in text and "commiteb8516b" in text
    assert "✓ 3 of 3 promises kept" in plain_page().replace("\xa0", " ")
    assert "measurement INVALID" in render_speedup(make_unknown_family())


def test_it_is_always_the_same_and_leaves_the_document_alone():
    document = make_family()
    before = copy.deepcopy(document)
    assert render_speedup(document) == plain_page()
    assert document == before
