"""What is printed at the end of ``compactor bench``."""

from __future__ import annotations

import pytest

from compactor.console import Console
from compactor.reporting.terminal import print_summary
from compactor.reporting.words import summary_sentence
from tests.compactor.reports import make_report


def printed(capsys: pytest.CaptureFixture[str], **knobs) -> list[str]:
    print_summary(Console(), make_report(**knobs), "out")
    return capsys.readouterr().out.splitlines()


def test_the_result_of_one_case(capsys):
    lines = printed(capsys, cases=("1x128",))
    assert lines[0] == summary_sentence(make_report(cases=("1x128",)))
    assert lines[2].split("  ")[0] == "variant"
    (int8,) = (line for line in lines if line.startswith("compact int8  "))
    assert "7.32 MB  1x128" in int8 and "9.54× [9.27, 9.84] faster" in int8 and "84.63 ± 1.22 %" in int8
    assert lines[-2:] == ["VALID", "report: out/report.html"]


def test_a_row_that_did_not_run_has_words_and_a_remedy(capsys):
    lines = printed(capsys, failed={"compact-int8": "boom"})
    (row,) = (line for line in lines if line.startswith("compact int8  "))
    assert row.split()[2:] == ["7.32", "MB", "all"] + ["failed"] * 5
    assert "compact int8: failed: boom" in lines
    assert any(line.startswith("compact fp16, CUDA: not run: no CUDA device; run it on") for line in lines)


def test_reasons_are_lines(capsys):
    lines = printed(capsys, reasons=["one", "two"])
    assert lines[-4:] == ["INVALID", "  one", "  two", "report: out/report.html"]


def test_server_and_offline_and_nothing(capsys):
    assert any("2,171" in line for line in printed(capsys, scenario="server")[3:])
    offline = printed(capsys, scenario="offline", data=True, cases=("batch 32", "batch 32, bucketed"), baseline=None)
    assert "examples/s" in offline[2] and "baseline" not in offline[2]
    nothing = printed(capsys, variants=("compact-cuda-fp16",))
    assert nothing[0].startswith("Nothing was measured")


def test_no_difference_and_control_characters(capsys):
    report = make_report(cases=("1x128",), names={"compact-fp32": "x\x1b[31m"})
    report["variants"][1]["results"][0]["ratio"]["verdict"] = "no significant difference"
    print_summary(Console(), report)
    out = capsys.readouterr().out
    assert "no significant difference, 3.8" in out
    assert "\x1b" not in out and "report:" not in out
