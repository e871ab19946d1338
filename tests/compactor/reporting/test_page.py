"""The page: complete, closed to the world, and only data where a report's strings stand."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

from compactor.console import format_bytes
from compactor.errors import OutputError
from compactor.reporting.page import make_tiles, render_html, write_reports
from compactor.reporting.templates import PALETTE
from compactor.reporting.words import summary_sentence
from tests.compactor.reporting.pages import HOSTILE, Reader, check_closed_to_the_world, check_only_text
from tests.compactor.reports import make_report


@functools.cache
def plain_page() -> str:
    return render_html(make_report())


@pytest.mark.parametrize("scenario", ["single", "server"])
def test_the_page_is_closed_to_the_world(scenario):
    check_closed_to_the_world(render_html(make_report(scenario=scenario)))


def test_strings_of_a_report_are_only_text():
    report = make_report(names={"compact-int8": HOSTILE}, title=HOSTILE, notes=(HOSTILE,), reasons=[HOSTILE])
    report["command"] = report["machine"]["cpu_model"] = report["workload"]["file"] = HOSTILE
    report["layers"][0]["name"] = report["variants"][2]["profile"]["operators"][0]["name"] = HOSTILE
    check_only_text(render_html(report), render_html(make_report(reasons=["x"])))


def test_control_characters_are_shown_and_not_sent():
    page = render_html(make_report(title="a\x1b[31m\x00\N{RIGHT-TO-LEFT OVERRIDE}b\nc"))
    assert "a\\x1b[31m\\x00\\u202eb\\nc" in page
    assert not re.findall("[\x00-\x08\x0b-\x1f\N{RIGHT-TO-LEFT OVERRIDE}]", page)


@pytest.mark.parametrize("knobs", [{}, {"reasons": ["busy machine"]}, {"interrupted": True}, {"quick": True}])
def test_the_verdict_and_the_sentence_are_on_top(knobs):
    report = make_report(**knobs)
    text = Reader(render_html(report)).text.replace("\N{NO-BREAK SPACE}", " ")
    assert summary_sentence(report) in text
    assert ("✓ VALID" in text) is not bool(knobs.get("reasons"))
    assert ("✕ INVALID" in text) is bool(knobs.get("reasons"))
    assert ("quick run" in text) is bool(knobs.get("quick"))
    assert text.index("VALID", text.index("✓") if "✓" in text else text.index("✕")) < text.index("Speed")


@pytest.mark.parametrize(
    ("knobs", "absent"),
    [
        ({"layers": False}, "Heads and neurons of each layer"),
        ({"profile": False}, "Time by operator and layer"),
        ({"variants": ("model-torch", "compact-int8")}, "What is missing"),
        ({"notes": ()}, "Notes"),
        ({}, "Every rate that was tried"),
    ],
)
def test_a_section_without_data_is_not_there(knobs, absent):
    full = plain_page() if absent != "Every rate that was tried" else render_html(make_report(scenario="server"))
    assert absent in Reader(full).text
    assert absent not in Reader(render_html(make_report(**knobs))).text


@pytest.mark.parametrize(
    "knobs",
    [
        {"variants": ("compact-cuda-fp16",), "layers": False, "peak": False},
        {"failed": {"model-torch": "boom"}},
        {"baseline": None, "quality": False},
        {"scenario": "server", "variants": ("model-torch", "compact-cuda-fp16")},
        {"scenario": "server", "speed": {"compact-int8": 0.001, "compact-fp32": 0.001, "model-torch": 0.001}},
        {"interrupted": True, "rounds": 1, "samples": 1},
        {"scenario": "offline", "data": True, "cases": ("batch 32",)},
    ],
)
def test_reports_with_gaps_have_a_page_without_oddities(knobs):
    report = make_report(**knobs)
    report["machine"] = {}
    text = Reader(render_html(report)).text
    assert not re.search(r"\b(None|nan|inf|Undefined)\b", text.partition("How to reproduce")[0].replace("GPUnone", ""))


def test_an_empty_process_and_unknown_sizes_do_not_stop_it():
    report = make_report()
    for row in report["variants"]:
        row["counters"] = dict.fromkeys(row["counters"])
    assert "unknown" in Reader(render_html(report)).text


def test_tiles():
    tiles = {tile.name: tile for tile in make_tiles(make_report(cases=("1x128",)))}
    assert list(tiles) == ["Speed", "Latency", "Accuracy", "File", "Load"]
    assert (tiles["Speed"].value, tiles["Speed"].tone) == ("9.54×", "good")
    assert tiles["File"].note == f"against {format_bytes(40_638_000)}: 5.55× smaller"
    report = make_report(cases=("1x128",))
    report["variants"][2]["results"][0]["ratio"]["verdict"] = "no significant difference"
    assert make_tiles(report)[0].value == "no significant difference"
    assert make_tiles(make_report(quality=False))[2].value == "not measured"
    assert make_tiles(make_report(variants=("compact-cuda-fp16",))) == []


def test_it_is_always_the_same():
    assert render_html(make_report()) == plain_page()


@pytest.mark.parametrize("theme", [0, 1])
def test_the_palette_has_contrast(theme):
    colours = {name: pair[theme] for name, pair in PALETTE.items()}
    for name in ("ink", "muted", "good", "bad", *(f"s{index}" for index in range(8))):
        assert contrast(colours[name], colours["paper"]) >= 4.5, name
    for name in ("ink", "muted"):
        assert contrast(colours[name], colours["back"]) >= 4.5 and contrast(colours[name], colours["track"]) >= 4.5
    for name in ("good", "bad", "warn"):
        assert contrast(colours[name], colours[f"{name}-back"]) >= 4.5, name


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, "contrast ratio"."""

    def luminance(colour):
        values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_files_are_written_over_and_leave_nothing_else(tmp_path: Path):
    folder = tmp_path / "new" / "out"
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("an older one")
    markdown, page = write_reports(make_report(), folder)
    assert sorted(file.name for file in folder.iterdir()) == ["report.html", "report.md"]
    assert page.read_text(encoding="utf-8") == plain_page()
    assert markdown.read_text(encoding="utf-8").startswith("# sst2-small-hybrid\n")


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write the report"):
        write_reports(make_report(), tmp_path / "file")
