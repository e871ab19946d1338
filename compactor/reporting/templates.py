"""What the documents have in common: colours, the tiles on top, and how a template becomes a page or Markdown.

A page needs nothing else: no network, no script, no font. Its content policy forbids everything but its own styles, so
nothing that a document's strings hold can run, even if it were not escaped.
"""

from __future__ import annotations

import dataclasses
import re

from compactor.console import printable
from compactor.reporting.markdown import code, escape

_UNIT = re.compile(r"(?<=\d) (?=(?:%|ms|s|[kMGT]?B|[kMG])\b|%)|(?<=\d) (?=±)|(?<=±) (?=\d)")

# Light and dark. Text on `paper` and `back` has a contrast of at least 4.5; colours of series, of which text is set in
# `paper`, too. They differ in lightness or along blue and yellow for who cannot tell red from green.
PALETTE = {
    "back": ("#f6f8fa", "#0d1117"),
    "paper": ("#ffffff", "#151b23"),
    "ink": ("#1f2328", "#e6edf3"),
    "muted": ("#57606a", "#9da7b3"),
    "line": ("#d0d7de", "#30363d"),
    "grid": ("#d8dee4", "#373e47"),
    "track": ("#eef1f4", "#212830"),
    "good": ("#1a7f37", "#4ac26b"),
    "good-back": ("#dafbe1", "#12261e"),
    "bad": ("#c21c2c", "#ff7b72"),
    "bad-back": ("#ffebe9", "#2a1618"),
    "warn": ("#805500", "#e3b341"),
    "warn-back": ("#fff3c4", "#272115"),
    "s0": ("#68717b", "#9aa4b0"),
    "s1": ("#0b62c4", "#58a6ff"),
    "s2": ("#b84d00", "#f0913f"),
    "s3": ("#00766c", "#3fc7b0"),
    "s4": ("#9c3587", "#e58fd0"),
    "s5": ("#7d6000", "#dcbc3c"),
    "s6": ("#5a4bc8", "#b0a7ff"),
    "s7": ("#2a6f95", "#7cc7ec"),
}


@dataclasses.dataclass(frozen=True)
class Tile:
    """One large figure at the top.

    Attributes:
        name: What it is.
        value: The number, or the words that stand for it.
        note: Against what, under which conditions.
        tone: ``good``, ``bad`` or empty.
        number: Whether ``value`` is one.
    """

    name: str
    value: str
    note: str
    tone: str = ""
    number: bool = True


def render_template(name: str, /, **values: object) -> str:
    """The document that the template ``name`` of this folder makes of ``values``, of which no string is markup in it.

    In a Markdown template blocks stand on lines of their own, which are not in the document.
    """
    import jinja2
    import markupsafe

    markdown = name.endswith(".md.jinja")

    def text(value: object) -> object:
        """On a page control characters are shown and not sent, and numbers kept on the line of their units."""
        if type(value) is not str:  # markup is a str of another type
            return value
        return markupsafe.Markup(escape(value)) if markdown else _UNIT.sub("\N{NO-BREAK SPACE}", printable(value))

    def verbatim(value: str) -> str:
        """What is to be copied from a page has spaces that break."""
        return markupsafe.Markup(code(value)) if markdown else markupsafe.escape(printable(value))

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=markdown,
        finalize=text,
        loader=jinja2.PackageLoader("compactor.reporting", "."),
    )
    environment.filters["verbatim"] = verbatim
    return environment.get_template(name).render(palette=PALETTE, **values)
