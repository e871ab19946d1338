"""The report as Markdown, for pull requests and READMEs: the same sentences and tables as the page, without figures."""

from __future__ import annotations

import re

from compactor.console import printable
from compactor.reporting.contents import contents
from compactor.reporting.rows import Report
from compactor.reporting.templates import render_template

# What would make formatting, markup or another cell of a text that is data.
_SPECIAL = re.compile(r"[\\`*|~$#]|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def render_markdown(report: Report) -> str:
    """GitHub-flavoured Markdown of ``report``, a checked ``report.json``."""
    import markupsafe

    command = markupsafe.Markup(code(report["command"]))
    return render_template("report.md.jinja", escape, command=command, **contents(report))


def escape(text: str) -> str:
    r"""``text`` so that Markdown shows it as it is, also within a table.

    >>> escape("a|b <script> __init__ model_quantized.onnx [1.02, 1.10]")
    'a\\|b &lt;script&gt; \\_\\_init\\_\\_ model_quantized.onnx [1.02, 1.10]'
    """
    text = re.sub("[&<>]", lambda found: _ENTITIES[found[0]], printable(text))
    return _SPECIAL.sub(lambda found: f"\\{found[0]}", text)


def code(text: str) -> str:
    """A fenced block that ``text`` cannot leave."""
    text = printable(text)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
