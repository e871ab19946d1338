"""Pages and drawings as their readers get them, and what holds for every one of them."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from html.parser import HTMLParser

from compactor.reporting.canvas import COLOURS
from compactor.reporting.figures.figure import Figure

VOID = {"meta", "link", "br", "path", "use", "rect", "circle"}
HOSTILE = '</title><script>alert(1)</script><img src=x onerror=alert(1)>\' onload="x" {{ 7 * 7 }}'


class Reader(HTMLParser):
    """Collects elements and text, and notices what is not closed."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def roots(figure: Figure) -> list[ElementTree.Element]:
    """The drawings of a figure."""
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return [ElementTree.fromstring(drawing.markup.replace("<svg ", f"<svg {names} ", 1)) for drawing in figure.drawings]


def shown(figure: Figure) -> list[str | None]:
    """Every text of a figure, as it is read."""
    return [node.text for root in roots(figure) for node in root.iter() if node.tag.endswith("text")]


def check_drawings(figures: Iterable[Figure]) -> None:
    """They are sound, have ids and words of their own, and take their colours from the page."""
    ids: list[str] = []
    for figure in figures:
        for drawing, root in zip(figure.drawings, roots(figure), strict=True):
            assert root.get("aria-label")
            found = [name for node in root.iter() if (name := node.get("id"))]
            assert all(name == drawing.id or name.startswith(f"{drawing.id}-") for name in found)
            assert set(re.findall(r'(?:url\(#|href="#)([\w-]+)', drawing.markup)) <= set(found)
            assert not re.findall(r"(?:fill|stroke): ?#[0-9a-f]+", drawing.markup), drawing.id
            assert set(re.findall(r"var\((--\w+)\)", drawing.markup)) <= set(COLOURS.values())
            ids += found
    assert ids and len(set(ids)) == len(ids)


def check_closed_to_the_world(page: str) -> None:
    """Its policy forbids everything but its styles, and it asks for nothing; its ids are unique."""
    reader = Reader(page)
    assert not reader.open
    policies = [attrs["content"] for tag, attrs in reader.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    assert not {tag for tag, _ in reader.tags} & {"script", "img", "iframe", "object", "a", "base", "form"}
    links = [attrs.get(name) for _, attrs in reader.tags for name in ("src", "href", "xlink:href")]
    assert all(link is None or link == "data:," or link.startswith("#") for link in links)
    assert "@import" not in page and "url(http" not in page
    ids = [attrs["id"] for _, attrs in reader.tags if attrs.get("id")]
    assert len(set(ids)) == len(ids)


def check_only_text(page: str, harmless: str, *, beside: Sequence[str] = ()) -> None:
    """``HOSTILE`` made no element of ``page`` that is not in ``harmless``, whose drawings and ``beside`` may differ."""
    reader, other = Reader(page), Reader(harmless)
    skipped = {"g", "path", "use", "defs", "text", *beside}
    assert [tag for tag, _ in reader.tags if tag not in skipped] == [tag for tag, _ in other.tags if tag not in skipped]
    assert not [attrs for _, attrs in reader.tags for name in attrs if name.startswith("on")]
    assert reader.text.count(HOSTILE) > 10
