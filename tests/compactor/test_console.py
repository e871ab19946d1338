"""What people see is aligned, scaled and cannot drive their terminal."""

from __future__ import annotations

import pytest

from compactor.console import Console, format_bytes, format_count, format_ratio, printable


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (12_345, "12.3 kB"), (999_999, "1.00 MB"), (438 * 10**6, "438 MB")],
)
def test_format_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_format_count_and_ratio() -> None:
    assert (format_count(7), format_count(85_054_464)) == ("7", "85.1 M")
    assert (format_ratio(10, 4), format_ratio(10, 0)) == ("2.50x", "-")


def test_printable_escapes_what_is_not_text() -> None:
    assert printable("naïve \x1b[31m\n\udc80") == "naïve \\x1b[31m\\n\\udc80"


def test_plain_tables_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    Console().table(("name", ">size"), [("a", "1"), ("long", "1000")])
    assert capsys.readouterr().out == "name  size\na        1\nlong  1000\n"


def test_a_terminal_gets_the_same_cells(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    Console().table(("name", ">size"), [("[bold]x[/bold]", "1")])
    out = capsys.readouterr().out
    assert "[bold]x[/bold]" in out  # a name in brackets is not markup
    assert "size" in out
