"""The Markdown, read by a Markdown reader: the tables are tables, and names are only names."""

from __future__ import annotations

import itertools
import re

import pytest
from markdown_it import MarkdownIt

from compactor.reporting.markdown import code, escape
from compactor.reporting.page import render_markdown
from compactor.reporting.words import summary_sentence
from tests.compactor.reports import make_report

HOSTILE = (
    "<script>alert(1)</script>", "a | b", "`code`", "[link](http://example.org)", "![i](http://example.org/x.png)",
    "__init__ *bold*", "$x$", "line\nbreak", "\\", "&lt;", "[a]: http://example.org", "~~gone~~", "<http://example.org>",
)  # fmt: skip


def read(text: str):
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def test_it_opens_with_the_result():
    report = make_report(cases=("1x128",))
    lines = render_markdown(report).splitlines()
    assert lines[0] == "# sst2-small-hybrid"
    assert lines[2] == f"**{summary_sentence(report)}**"
    assert lines[4].startswith("**VALID** · 2026-11-23 22:40:00 UTC · AMD EPYC")
    columns = (
        "variant | median, ms | p10 to p90 | p95 | against the baseline | examples/s | tokens/s | MAC/s | of the peak"
    )
    assert f"| {columns} |" in lines
    assert f"| compact fp16, CUDA | not run: no CUDA device{' | not run' * 7} |" in lines
    assert "| layers.0 | 12 → 4 (33.3 %) | 1,536 → 1,264 (82.3 %) |" in lines
    assert "compactor bench compact --baseline model" in lines


def test_an_invalid_report_says_so_with_its_reasons():
    text = render_markdown(make_report(reasons=["another process used 31 % of a core"], interrupted=True, quick=True))
    assert "\n**INVALID** · **interrupted** · **quick run** · " in text
    assert "\n- another process used 31 % of a core\n" in text


def test_sections_without_data_are_not_there():
    headings = re.findall(
        r"^## (.*)$", render_markdown(make_report(layers=False, profile=False, notes=())), re.MULTILINE
    )
    assert headings == [
        "Speed",
        "Size, quality, memory",
        "How to reproduce",
        "Machine",
        "What exactly each variant was",
    ]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_shown_as_it_is(name):
    tokens = [token for block in read(f"x {escape(name)} y") for token in block.children or ()]
    assert {token.type for token in tokens} == {"text"} or {token.type for token in tokens} <= {"text", "text_special"}
    shown = "".join(token.content for token in tokens)
    assert shown == f"x {name} y".replace("\n", "\\n")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_stays_in_its_cell(name):
    report = make_report(names={"compact-int8": name}, title=name, notes=(name,), reasons=[name])
    kinds = {token.type for block in read(render_markdown(report)) for token in (block, *(block.children or ()))}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "s_open", "em_open"}
    tokens = read(render_markdown(report))
    cells = [after.children for token, after in itertools.pairwise(tokens) if token.type == "td_open"]
    shown = ["".join(child.content for child in children) for children in cells]
    assert shown.count(name.replace("\n", "\\n")) == 4  # in three cases and beside its file


def test_a_command_cannot_leave_its_block():
    block = code("x ``` y\n# heading")
    assert block == "````\nx ``` y\\n# heading\n````"


def test_it_is_always_the_same():
    assert render_markdown(make_report()) == render_markdown(make_report())
