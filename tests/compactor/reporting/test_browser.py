"""The pages in a real browser: everything is there, fits, and can be read, in light, dark and print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from compactor.reporting.page import render_html
from compactor.reporting.speedup import render_speedup
from compactor.reporting.training import render_training
from tests.compactor.reporting.browser import Looked, find_chromium, look_at, print_page
from tests.compactor.reporting.families import make_family, make_unknown_family
from tests.compactor.reporting.parts import make_parts_report
from tests.compactor.reporting.trainings import make_bare, make_training, make_unknown
from tests.compactor.reports import KINDS, make_report

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium: install one (apt-get install chromium) or set CHROMIUM to its path"
)

HOSTILE = {
    "compact-int8": "<script>alert(1)</script>" + "very" * 40,
    "model-torch": '$x^2$ & "quoted" \'--> </svg> \N{RIGHT-TO-LEFT OVERRIDE} #010299 日本語',
}
REAL = ("batch 1", "batch 32", "batch 32, bucketed")
TIMED = ["latency", "pareto", "throughput", "layers", "operators", "layer-times", "processes"]
TRAINED = ["density", "losses", "metric", "pattern-0"]
FIGURES = {
    "single": [*TIMED[:-1], "ledger", TIMED[-1]],
    "offline": TIMED,
    "hostile": TIMED,
    "many": TIMED,
    "parts": TIMED,
    "server": ["server", "pareto", "layers", "operators", "layer-times"],
    "bare": ["latency"],
    "nothing": [],
    "training": TRAINED,
    "training, stopped": TRAINED[:3],
    "training, long": [*TRAINED, "pattern-1"],
    "training, unknown": ["pattern-0"],
    "training, bare": [],
    "family": ["family", "sizes", "costs"],
    "family, long": ["family", "sizes", "costs"],
    "family, unknown": ["family", "sizes", "costs"],
}


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    reports = {
        "single": make_report(ledger=True),
        "offline": make_report(scenario="offline", data=True, cases=REAL),
        "server": make_report(scenario="server", data=True),
        "hostile": make_report(
            names=HOSTILE, title="<b>" + "long" * 80, reasons=["<i>" + "busy" * 50], interrupted=True),
        "many": make_report(
            variants=tuple(KINDS), cases=("1x32", "1x128", "1x384", "8x32", "8x128", "8x384", "32x128")),
        "parts": make_parts_report(("1x128", "8x128")),
        "bare": make_report(
            variants=("compact-int8",), cases=("1x128",), baseline=None, quality=False, profile=False, layers=False,
            peak=False, rounds=1,
        ),
        "nothing": make_report(variants=("compact-cuda-fp16",), baseline=None, layers=False),
    }  # fmt: skip
    trainings = {
        "training": make_training(),
        "training, stopped": make_training(stopped=200),
        "training, long": make_training(
            steps=90_000, every=50, evaluations=60, layers=24, heads=16, stacks=("encoder", "decoder"),
            title="<b>" + "long" * 80, method="very" * 30, notes=("x" * 300,), warnings=("busy" * 60, "two")),
        "training, unknown": make_unknown(),
        "training, bare": make_bare(),
    }  # fmt: skip
    phases = trainings["training, long"]["phases"]
    phases[0]["last"] = phases[1]["first"] = 40
    phases[2]["name"] = "$x^2$ & a very long name"
    families = {
        "family": make_family(missed=(2.0,)),
        "family, long": make_family(
            targets=(1.1, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0), layers=24, heads=16, title="<b>" + "long" * 80,
            warnings=("busy" * 60, "two")),
        "family, unknown": make_unknown_family(),
    }  # fmt: skip
    families["family, long"]["models"][3]["name"] = "$x^2$ & a very long name"
    families["family, long"]["costs"]["tables"]["very" * 40] = [[0, 0.0], [4, 1.0]]
    found = {name: render_html(report) for name, report in reports.items()}
    found |= {name: render_speedup(document) for name, document in families.items()}
    return found | {name: render_training(document) for name, document in trainings.items()}


@pytest.fixture(scope="module")
def seen(pages: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Looked:
    return look_at(pages, tmp_path_factory.mktemp("seen"))


def test_it_looked_at_every_page(seen: Looked) -> None:
    assert len(seen.results) == len(FIGURES) * 3 * 2
    assert not [result for result in seen.results if "error" in result]
    assert all(result["width"] == result["asked"] for result in seen.results)


def test_every_figure_is_there_with_a_caption(seen: Looked) -> None:
    for result in seen.results:
        assert [figure["id"] for figure in result["figures"]] == [f"figure-{name}" for name in FIGURES[result["name"]]]
        assert all(figure["caption"] > 20 for figure in result["figures"])


def test_nothing_overflows(seen: Looked) -> None:
    for result in seen.results:
        assert result["overflow"] <= 0 and not result["outside"], (result["name"], result["asked"], result["outside"])


def test_drawings_are_shown_and_their_text_stays_within_the_figure(seen: Looked) -> None:
    for result in seen.results:
        for drawing in result["drawings"]:
            where = (result["name"], result["asked"], drawing["id"])
            assert drawing["width"] > 250 and drawing["height"] > 20, where
            assert drawing["label"], where
            assert drawing["texts"] > 0 and drawing["smallest"] >= 9, where
            assert drawing["reach"] <= 0, where


def test_every_text_has_contrast(seen: Looked) -> None:
    for result in seen.results:
        assert result["texts"] > (8 if result["name"].startswith("training") else 40)
        assert not result["faint"], (result["name"], result["theme"], result["faint"])


@pytest.mark.parametrize("page", ["single", "training", "family"])
def test_drawings_take_the_colours_of_the_theme(seen: Looked, page: str) -> None:
    light, dark = (
        {d["id"]: set(d["colours"]) for d in _only(seen, page, theme)["drawings"]} for theme in ("light", "dark")
    )
    assert len(light) >= 5 and light.keys() == dark.keys()
    for name in light:
        assert not light[name] & dark[name], f"{name} has colours that do not follow the theme"
        assert "rgb(0, 0, 0)" not in light[name] | dark[name], f"{name} has a colour that the page does not know"


def test_nothing_is_loaded_and_nothing_complains(seen: Looked) -> None:
    assert not seen.console
    assert all(result["links"] == 0 for result in seen.results)


def test_without_a_theme_the_page_follows_the_system(pages: dict[str, str], tmp_path: Path) -> None:
    for setting, dark in (("1", False), ("0", True)):
        folder = tmp_path / setting
        folder.mkdir()
        flags = [f"--blink-settings=preferredColorScheme={setting}"]
        (result,) = look_at({"single": pages["single"]}, folder, widths=[1280], themes=[""], flags=flags).results
        assert result["dark"] is dark
        assert result["background"] == ("rgb(13, 17, 23)" if dark else "rgb(246, 248, 250)")


@pytest.mark.parametrize("name", ["single", "training, long"])
def test_print_shows_what_is_folded(pages: dict[str, str], name: str, tmp_path: Path) -> None:
    folded = re.sub(r"details::details-content \{[^}]*\}", "", pages[name])
    assert folded != pages[name]
    assert _sheets(print_page(pages[name], tmp_path)) > _sheets(print_page(folded, tmp_path))


def test_the_eyes_are_open(pages: dict[str, str], tmp_path: Path) -> None:
    """Each thing that must not happen is noticed when it does."""
    page = re.sub(r"<meta http-equiv[^>]*>", "", pages["single"])
    broken = {
        "wide": page.replace("<footer>", '<footer><div style="width: 1400px">x</div>'),
        "faint": page.replace("<footer>", '<footer><p style="color: #bbb">hardly to be read</p>'),
        "lost": page.replace("var(--s1)", "var(--none)"),
        "loud": page.replace("<footer>", "<footer><script>console.error('loud')</script>"),
    }
    seen = look_at(broken, tmp_path, widths=[390], themes=["light"])
    results = {result["name"]: result for result in seen.results}
    assert results["wide"]["overflow"] > 0 and results["wide"]["outside"]
    assert any("hardly" in text for text in results["faint"]["faint"])
    assert any("rgb(0, 0, 0)" in drawing["colours"] for drawing in results["lost"]["drawings"])
    assert any("loud" in line for line in seen.console)


def _only(seen: Looked, name: str, theme: str) -> dict:
    return next(dict(r) for r in seen.results if (r["name"], r["theme"], r["asked"]) == (name, theme, 1280))


def _sheets(pdf: bytes) -> int:
    return len(re.findall(rb"/Type /Page\b", pdf))
