"""What an export costs: how a command is measured, and the table."""

from __future__ import annotations

import sys

import pytest

from benchmarks import _graphs, export_cost
from tests.benchmarks.made_up import MACHINE


def test_costs_add_up_over_steps_and_peak_at_the_largest() -> None:
    steps = [{"wall_s": 2.0, "peak_bytes": 3_000_000_000}, {"wall_s": 3.0, "peak_bytes": 1_000_000_000}]
    result = {
        "command": "python benchmarks/export_cost.py",
        "machine": MACHINE,
        "model_bytes": 1_000_000_000,
        "tools": {export_cost.OURS: {"steps": ["export", "more"], "rounds": [steps]}},
        "absent": {"optimum-cli": "no interpreter"},
    }
    table = export_cost.render(result)
    assert "| compactor export: export, more | 5.0 s [5.0, 5.0] | 3.00 GB | 3.0× |" in table
    assert "| optimum-cli | - | - | no interpreter |" in table
    assert "A CPU (avx2, avx512_vnni), 2 cores, virtual, 6; onnxruntime 1; commit abc." in table


def test_a_command_is_measured_and_its_failure_is_told() -> None:
    cost = export_cost.measure_command([sys.executable, "-c", "x = bytearray(200_000_000); x[::4096] = x[::4096]"])
    assert cost["peak_bytes"] > 190_000_000
    assert cost["wall_s"] > 0
    with pytest.raises(RuntimeError, match="exited with 3:\nwhy"):
        export_cost.measure_command([sys.executable, "-c", "print('why'); raise SystemExit(3)"])


def test_a_fresh_process_returns_what_the_function_does() -> None:
    assert _graphs.in_fresh_process(divmod, 7, 2) == (3, 1)


def test_a_tool_that_fails_tells_its_error_or_its_last_line() -> None:
    with pytest.raises(_graphs.BuildError, match=r"^last$"):
        _graphs.run_tool([sys.executable, "-c", "import sys; sys.exit('first\\nlast')"])
    failing = "raise ValueError('no such model\\n\\nUpdate, and try again.')"
    with pytest.raises(_graphs.BuildError, match=r"^ValueError: no such model$"):
        _graphs.run_tool([sys.executable, "-c", failing])
    with pytest.raises(_graphs.BuildError, match="No such file"):
        _graphs.in_fresh_process(_graphs.run_tool, ["/no/such/tool"])
