"""Text as Markdown: shown as it is, whatever it holds."""

from __future__ import annotations

import html
import re

from compactor.console import printable

# What would make formatting, markup or another cell of a text that is data.
_SPECIAL = re.compile(r"[\\`*|~$#]|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])")


def escape(text: str) -> str:
    r"""``text`` so that Markdown shows it as it is, also within a table.

    >>> escape("a|b <script> __init__ model_quantized.onnx [1.02, 1.10]")
    'a\\|b &lt;script&gt; \\_\\_init\\_\\_ model_quantized.onnx [1.02, 1.10]'
    """
    return _SPECIAL.sub(r"\\\g<0>", html.escape(printable(text), quote=False))


def code(text: str) -> str:
    """A fenced block that ``text`` cannot leave."""
    text = printable(text)
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"
