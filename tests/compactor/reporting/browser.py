"""Looks at pages in headless Chromium, through its command line alone.

The pages are shown unchanged, in frames of an outer page whose script measures them: their content policy forbids
scripts of their own. A frame's width is its viewport, so one start of the browser sees every width. No driver is
needed, and no package beside the browser.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--enable-logging=stderr",
)  # fmt: skip

# For every text that is shown: its contrast with what lies behind it. For every drawing: its size, the colours that it
# really got, and how far its text reaches out of its figure.
_SCRIPT = """
const wait = frame => new Promise(done => frame.addEventListener("load", done, {once: true}));
const numbers = colour => (colour.match(/[\\d.]+/g) || []).map(Number);
const luminance = rgb => {
  const [r, g, b] = rgb.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (a, b) => {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
};
function behind(view, element) {
  for (; element; element = element.parentElement) {
    const rgb = numbers(view.getComputedStyle(element).backgroundColor);
    if (rgb.length === 3 || (rgb.length === 4 && rgb[3] > 0)) return rgb.slice(0, 3);
  }
  return [255, 255, 255];
}
function look(view) {
  const root = view.document.documentElement, style = element => view.getComputedStyle(element);
  const found = {width: root.clientWidth, overflow: root.scrollWidth - root.clientWidth, outside: [], faint: [],
                 figures: [], drawings: [], texts: 0,
                 links: view.document.querySelectorAll("[src],a,script,iframe").length,
                 background: style(view.document.body).backgroundColor,
                 dark: view.matchMedia("(prefers-color-scheme: dark)").matches};
  for (const element of view.document.body.querySelectorAll("*")) {
    const box = element.getBoundingClientRect();
    if (box.width && box.right > root.clientWidth + 0.5 && !element.closest(".scroll table"))
      found.outside.push(`${element.tagName} ${element.id || element.className} ${box.right}`);
  }
  const walker = view.document.createTreeWalker(view.document.body, 4);
  for (let node; node = walker.nextNode();) {
    const parent = node.parentElement;
    if (!node.data.trim() || !parent.checkVisibility()) continue;
    found.texts++;
    const drawn = parent.closest("svg");
    const ink = numbers(drawn ? style(parent).fill : style(parent).color).slice(0, 3);
    const back = behind(view, drawn ? drawn.parentElement : parent);
    if (drawn && String(ink) === String(back)) continue;  // set on a bar of the drawing: the palette's own test
    const value = contrast(ink, back);
    if (value < 4.5) found.faint.push(`${node.data.trim().slice(0, 40)} ${value.toFixed(2)}`);
  }
  for (const figure of view.document.querySelectorAll("figure")) {
    const caption = figure.querySelector("figcaption");
    found.figures.push({id: figure.id, caption: caption ? caption.textContent.length : 0});
  }
  for (const svg of view.document.querySelectorAll("svg")) {
    const box = svg.getBoundingClientRect(), frame = svg.closest("figure").getBoundingClientRect();
    const colours = new Set();
    for (const shape of svg.querySelectorAll("path, use, text")) {
      if (shape.closest("defs")) continue;
      for (const colour of [style(shape).fill, style(shape).stroke]) if (colour !== "none") colours.add(colour);
    }
    const texts = [...svg.querySelectorAll("text")].map(text => text.getBoundingClientRect());
    found.drawings.push({id: svg.id, width: box.width, height: box.height, label: svg.getAttribute("aria-label"),
      colours: [...colours], smallest: Math.min(...texts.map(text => text.height)), texts: texts.length,
      reach: Math.max(...texts.map(text => Math.max(text.right - frame.right, frame.left - text.left)))});
  }
  return found;
}
(async () => {
  const results = [];
  for (const [name, source] of Object.entries(pages)) for (const width of widths) for (const theme of themes) {
    const frame = document.createElement("iframe");
    frame.style = `width: ${width}px; height: 900px; border: 0`;
    frame.srcdoc = source;
    const loaded = wait(frame);
    document.body.append(frame);
    await loaded;
    if (theme) frame.contentDocument.documentElement.dataset.theme = theme;
    try { results.push({name, theme, asked: width, ...look(frame.contentWindow)}); }
    catch (error) { results.push({name, theme, asked: width, error: String(error)}); }
    frame.remove();
  }
  const out = document.createElement("pre");
  out.id = "results";
  out.textContent = JSON.stringify(results);
  document.body.append(out);
})();
"""


@dataclasses.dataclass(frozen=True)
class Looked:
    """What the browser saw of each page, width and theme, and what it said on its console."""

    results: Sequence[Mapping[str, Any]]
    console: Sequence[str]


def find_chromium() -> str | None:
    """The browser: ``$CHROMIUM``, or the first that is on the path."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)


def look_at(
    pages: Mapping[str, str],
    folder: Path,
    *,
    widths: Sequence[int] = (1280, 390, 360),
    themes: Sequence[str] = ("light", "dark"),
    flags: Sequence[str] = (),
) -> Looked:
    """Show each page in each width and theme, and measure it. An empty theme leaves it to the system's."""
    given = f"const pages = {json.dumps(pages)}, widths = {list(widths)}, themes = {list(themes)};".replace(
        "</", "<\\/"
    )
    outer = folder / "outer.html"
    outer.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,"><body><script>{given}{_SCRIPT}</script>',
        encoding="utf-8",
    )
    done = _run(
        "--virtual-time-budget=60000", "--window-size=1400,1000", "--dump-dom", *flags, outer.as_uri(), folder=folder
    )
    found = re.search(r'<pre id="results">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    text = (
        found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&nbsp;", "\N{NO-BREAK SPACE}").replace("&amp;", "&")
    )
    return Looked(json.loads(text), [line for line in done.stderr.splitlines() if "CONSOLE" in line])


def print_page(page: str, folder: Path) -> bytes:
    """The page as PDF, as it comes out of the printer."""
    source, target = folder / "page.html", folder / "page.pdf"
    source.write_text(page, encoding="utf-8")
    _run(f"--print-to-pdf={target}", source.as_uri(), folder=folder)
    return target.read_bytes()


def _run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    browser = find_chromium()
    assert browser is not None
    command = [browser, *_FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=180, check=True
    )
