"""Figures: there when they have data, in the page's colours, the same bytes each time."""

from __future__ import annotations

import re

import pytest

from compactor.reporting.canvas import SERIES, draw, framed, shorten
from compactor.reporting.figures import make_figures
from compactor.reporting.figures.figure import variant_keys
from tests.compactor.reporting.pages import check_drawings, shown
from tests.compactor.reports import KINDS, make_ledger, make_report

REAL = ("batch 1", "batch 32", "batch 32, bucketed")


def figures_of(**knobs):
    return {figure.id: figure for figure in make_figures(make_report(**knobs))}


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({}, ["latency", "pareto", "throughput", "layers", "operators", "layer-times", "processes"]),
        (
            {"cases": ("1x128",), "profile": False, "layers": False, "ledger": True},
            ["latency", "pareto", "ledger", "processes"],
        ),
        ({"scenario": "server"}, ["server", "pareto", "layers", "operators", "layer-times"]),
        ({"cases": ("1x128",)}, ["latency", "pareto", "layers", "operators", "layer-times", "processes"]),
        ({"profile": False, "layers": False}, ["latency", "pareto", "throughput", "processes"]),
        ({"variants": ("model-torch",), "rounds": 1, "cases": ("1x128",), "layers": False}, ["latency"]),
        ({"variants": ("compact-cuda-fp16",), "layers": False}, []),
    ],
)
def test_a_figure_is_there_when_it_has_data(knobs, expected):
    assert list(figures_of(**knobs)) == expected


@pytest.mark.parametrize("scenario", ["single", "server"])
def test_drawings_are_sound_and_take_their_colours_from_the_page(scenario):
    check_drawings(make_figures(make_report(scenario=scenario, ledger=True)))


def test_the_same_report_gives_the_same_bytes():
    assert make_figures(make_report()) == make_figures(make_report())


def test_matplotlib_is_left_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)
    make_figures(make_report(cases=("1x128",)))
    assert dict(matplotlib.rcParams) == before


def test_names_are_text():
    name = "</svg><script>$x$ & #010299"
    figures = figures_of(names={"compact-int8": name}, cases=("1x128",))
    assert name in shown(figures["latency"])
    assert "<script>" not in "".join(drawing.markup for figure in figures.values() for drawing in figure.drawings)


def test_latency_shows_every_row_and_no_number_for_one_that_did_not_run():
    figure = figures_of(cases=("1x128",), failed={"compact-fp32": "boom"})["latency"]
    texts = shown(figure)
    assert texts[texts.index("compact fp32") + 1] == "failed: boom"
    assert texts[texts.index("compact fp16, CUDA") + 1] == "not run: no CUDA device"
    assert texts[texts.index("compact int8") + 1] == "2.59 ms · 9.61×"


def test_a_case_that_an_interrupt_took_is_read_out_as_it_is_shown():
    report = make_report(interrupted=True)
    del report["variants"][2]["results"][1:]
    figure = make_figures(report)[0]
    assert "compact int8 not run: interrupted" in figure.drawings[1].markup
    assert "not run: interrupted" in shown(figure)


def test_a_server_has_no_cases_and_its_figures_all_the_same():
    report = make_report(scenario="server")
    report["workload"]["cases"] = []
    assert [figure.id for figure in make_figures(report)][:2] == ["server", "pareto"]


def test_bars_are_as_long_as_the_times():
    report = make_report(cases=("1x128",))
    (figure,) = (figure for figure in make_figures(report) if figure.id == "latency")
    medians = [row["results"][0]["summary"]["median"] for row in report["variants"] if row["results"]]
    bars = re.findall(r'd="M 0 [\d.]+ L ([\d.]+) [^"]*"[^>]*fill: var\(--s(\d)\)', figure.drawings[0].markup)
    assert [int(series) for _, series in bars] == [0, 1, 2]
    lengths = [float(length) for length, _ in bars]
    assert [length / lengths[0] for length in lengths] == pytest.approx([ms / medians[0] for ms in medians], rel=1e-4)


def test_a_difference_that_is_none_is_marked():
    report = make_report(cases=("1x128",))
    report["variants"][1]["results"][0]["ratio"]["verdict"] = "no significant difference"
    figure = make_figures(report)[0]
    assert any("· ≈ 3.8" in text for text in shown(figure))
    assert "≈: no significant difference" in figure.caption


def test_a_ratio_without_an_interval_is_not_drawn():
    figure = figures_of(cases=("1x128",), rounds=1)["latency"]
    assert not any("×" in text for text in shown(figure))


def test_offline_bars_are_throughput():
    figure = figures_of(scenario="offline", data=True, cases=REAL)["latency"]
    assert figure.title == "Throughput"
    assert any(re.fullmatch(r"2,\d{3}/s · 9\.\d+×", text) for text in shown(figure))


def test_throughput_needs_two_batches_and_tells_bucketing_apart():
    assert "throughput" not in figures_of(cases=("1x32", "1x128"))
    assert [drawing.title for drawing in figures_of()["throughput"].drawings] == ["128 tokens"]
    figure = figures_of(scenario="offline", data=True, cases=REAL)["throughput"]
    assert "stroke-dasharray" in figure.drawings[0].markup and "Dashed" in figure.caption


def test_pareto_without_quality_is_size_against_speed():
    assert figures_of()["pareto"].title == "Speed, accuracy, size"
    figure = figures_of(quality=False)["pareto"]
    assert figure.title == "Speed and size" and "file, MB" in shown(figure)


def test_layers_are_named_by_their_number_and_hold_the_counts():
    texts = shown(figures_of()["layers"])
    assert {"4", "5", "1,264", "555", "113"} <= set(texts)
    titles = [drawing.title for drawing in figures_of()["layers"].drawings]
    assert titles == ["attention heads: 14 of 36 kept", "FFN neurons: 1,932 of 4,608 kept"]


def test_layers_without_neurons_show_heads_alone():
    report = make_report()
    for layer in report["layers"]:
        layer["neurons_before"] = layer["neurons_after"] = None
    (figure,) = (figure for figure in make_figures(report) if figure.id == "layers")
    assert [drawing.id for drawing in figure.drawings] == ["layers-heads"]


def test_a_ledger_shows_error_time_and_choice_of_each_layer():
    figure = figures_of(ledger=True)["ledger"]
    (drawing,) = figure.drawings
    assert drawing.title == "compact int8: 99.5 % of 200 held-out answers kept"
    texts = shown(figure)
    assert texts[:2] == ["error", "ms saved"]
    for row in (["0 feed-forward#1", "2.1 %", "0.569"], ["pooler#0", "0.07 %", "\N{MINUS SIGN}0.003"]):
        place = texts.index(row[0])
        assert texts[place : place + 3] == row
    place = texts.index("word_embeddings")
    assert texts[place : place + 3] == ["word_embeddings", "0.41 %", "table"]
    assert [key.text for key in figure.keys] == ["int8", "stays in fp32"]
    assert "layers.0.feed_forward#1: error 2.1 %, 0.569 ms saved, fp32" in drawing.markup


def test_bars_of_a_ledger_are_as_long_as_errors_and_times_and_coloured_by_the_choice():
    (drawing,) = figures_of(ledger=True)["ledger"].drawings
    units = make_ledger()["units"]
    found = re.findall(r'd="M ([\d.]+) [\d.]+ L ([\d.]+) [^"]*"[^>]*fill: var\(--s(\d)\)', drawing.markup)
    bars = [(float(right) - float(left), int(series)) for left, right, series in found]
    errors = [length for length, _ in bars[::2]]
    saved = [length for length, _ in bars[1:-1:2]]
    assert errors == pytest.approx([66 * unit["error"] / 0.0214 for unit in units], rel=1e-3)
    gains = [unit["fp32_ms"] - unit["int8_ms"] for unit in units[:-1]]
    assert saved == pytest.approx([66 * gain / (0.708 + 0.003) for gain in gains], abs=0.01)
    assert [series for _, series in bars[::2]] == [1, 1, 1, 3, 1, 1]


def test_a_report_from_before_ledgers_has_its_other_figures():
    report = make_report()
    del report["ledgers"]
    assert "ledger" not in {figure.id for figure in make_figures(report)}


def test_operators_beyond_the_named_are_others():
    keys = figures_of()["operators"].keys
    assert [key.text for key in keys][-1] == "5 others" and len(keys) == 8


def test_processes_show_the_case_that_agrees_least():
    report = make_report()
    report["variants"][0]["results"][1]["summary"]["process_spread"] = 0.5
    (figure,) = (figure for figure in make_figures(report) if figure.id == "processes")
    assert figure.caption.startswith("Case 1x128, where processes differ most")


def test_colours_and_numbers_stay_with_the_variant():
    report = make_report(variants=tuple(KINDS))
    keys = variant_keys(report)
    assert keys["model-torch"].series == 0
    assert sorted(key.series for key in keys.values()) == list(range(6))
    assert [key.mark for key in keys.values()] == ["1", "2", "3", "4", "5", "6"]
    assert 0 not in {key.series for key in variant_keys(make_report(baseline=None)).values()}
    many = {"variants": [{"id": str(number), "name": "x"} for number in range(20)], "baseline": None}
    assert {key.series for key in variant_keys(many).values()} == set(range(1, len(SERIES)))


def test_shorten_counts_wide_characters():
    assert shorten("compact int8", 12) == "compact int8"
    assert shorten("compact int8 on something", 12) == "compact int…"
    assert shorten("日本語日本語日本語", 9) == "日本語日…"
    assert shorten("a\x1b[31m", 20) == "a\\x1b[31m"


def test_a_drawing_says_what_it_shows():
    drawing = draw("x", 100, lambda figure: framed(figure).plot([0, 1], [0, 1], color=SERIES[1]), label='a "b" <c>')
    assert drawing.markup.startswith(
        '<svg class="plot" id="x" viewBox="0 0 350 100" role="img" aria-label="a &quot;b&quot; &lt;c&gt;">'
    )
