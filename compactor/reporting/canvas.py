"""Matplotlib as a source of inline SVG that takes its colours and its font from the page.

Matplotlib wants fixed colours. It gets *sentinels*, each standing for a CSS variable, and they are replaced in what it
wrote; so one drawing follows the page from light to dark and onto paper. Text stays text: it can be selected, and it
is escaped by matplotlib's own writer. The same drawing always gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import html
import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from compactor.console import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure

WIDTH = 350.0  # of a drawing, in CSS pixels at its natural size: about a phone, or a column of the page

# Sentinel colours -> variables of the page. No drawing uses a colour outside this table.
INK, MUTED, GRID, TRACK, PAPER, BAD = _NAMED = tuple(f"#0102{index:02x}" for index in range(3, 9))
SERIES = tuple(f"#0103{index:02x}" for index in range(8))  # the first is the baseline's, and of what is left over
COLOURS = dict(zip(_NAMED, ("--ink", "--muted", "--grid", "--track", "--paper", "--bad"), strict=True))
COLOURS |= {colour: f"--s{index}" for index, colour in enumerate(SERIES)}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar in a name is a dollar
    "text.color": INK,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine lays out alike; the page sets its own
    "font.size": 11.0,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 11.5,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    **{f"{axis}tick.color": MUTED for axis in "xy"},
    **{f"{axis}tick.labelsize": 11.0 for axis in "xy"},
    **{f"{axis}tick.{ticks}.size": 0.0 for axis in "xy" for ticks in ("major", "minor")},
    "lines.linewidth": 2.0,
    "figure.facecolor": "none",
    "figure.dpi": 72.0,  # then a point is a pixel of the view box
}


@dataclasses.dataclass(frozen=True)
class Drawing:
    """One inline SVG.

    Attributes:
        id: Unique on the page.
        title: Above it; empty for none.
        markup: ``<svg>…</svg>``, safe to put into a page as it is.
    """

    id: str
    title: str
    markup: str


def draw(
    identity: str, height: float, paint: Callable[[MatplotlibFigure], Any], *, label: str, title: str = ""
) -> Drawing:
    """Let ``paint`` draw on an empty figure, ``WIDTH`` by ``height`` pixels, and take its SVG.

    Args:
        identity: Unique on the page; letters, digits and dashes.
        height: In pixels.
        paint: Draws, with the colours of this module only.
        label: What there is to see, for who cannot.
        title: For the page to put above it.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": identity}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the page's font may have it
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        paint(figure)
        canvas: Any = FigureCanvasSVG(figure)  # its print methods have no types
        canvas.print_svg(buffer, metadata={"Creator": None, "Date": None, "Format": None, "Type": None})
    return Drawing(identity, title, _inline(buffer.getvalue(), identity, label))


def pixels(figure: MatplotlibFigure) -> Any:
    """Axes without a frame whose units are pixels, y downwards: for bars between lines of text."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(figure.bbox.height, 0))
    axes.axis("off")
    return axes


def framed(
    figure: MatplotlibFigure, *, left: float = 52, right: float = 12, top: float = 12, bottom: float = 38
) -> Any:
    """Axes with margins in pixels."""
    height = figure.bbox.height
    size = (WIDTH - left - right) / WIDTH, (height - top - bottom) / height
    return figure.add_axes((left / WIDTH, bottom / height, *size))


def shorten(text: str, columns: int) -> str:
    """``text`` in at most ``columns`` columns of a terminal's width, cut with an ellipsis."""
    from rich.cells import cell_len, set_cell_size

    text = printable(text)
    return text if cell_len(text) <= columns else f"{set_cell_size(text, columns - 1).rstrip()}…"


def _inline(text: str, identity: str, label: str) -> str:
    """The bare ``<svg>`` element of what matplotlib wrote, its ids prefixed, its colours and its font the page's."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', text)
    assert box is not None, "matplotlib writes a view box"
    spoken = html.escape(printable(label), quote=True)
    head = f'<svg class="plot" id="{identity}" viewBox="{box[1]}" role="img" aria-label="{spoken}">'
    body = re.sub(r"<[^>]*>", lambda found: _tag(found[0], identity), text[text.index(">") + 1 :])
    return head + re.sub(r">\s+<", "><", body).strip()


def _tag(tag: str, identity: str) -> str:
    """One tag; what stands between tags is text from the report, and is left as it is."""
    tag = re.sub(r"\s+", " ", tag)
    tag = re.sub(r'^<g id="[^"]*"', "<g", tag)  # matplotlib names every group, and refers to none
    tag = re.sub(r' id="(?=[^"])', f' id="{identity}-', tag)
    tag = re.sub(r'url\(#|href="#', lambda found: f"{found[0]}{identity}-", tag)
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    return re.sub(r"#01[0-9a-f]{4}", lambda found: f"var({COLOURS[found[0]]})", tag)
