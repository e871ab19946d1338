"""What an export costs: wall time and peak memory of ``compactor export`` of a dense BERT-base, beside optimum's.

    python benchmarks/export_cost.py [--optimum-python PATH] [--rounds 3] [--out benchmarks/results/NAME.json]

Each command runs in a process of its own, from starting Python to the last file written. Optimum takes three to come
as far as ``compactor export`` does in one: export, optimize, quantize. Only ours verifies what it wrote.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # so that it runs by its path, and not only with -m

from benchmarks import _graphs, _record, _run, plant

OURS, OPTIMUM = "compactor export", "optimum-cli"


def main(argv: Sequence[str] | None = None) -> int:
    """Time both and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--optimum-python", default=os.environ.get("OPTIMUM_PYTHON"), help="default: $OPTIMUM_PYTHON")
    parser.add_argument("--out", type=Path, help="result, JSON; a table is written beside it")
    args = parser.parse_args(argv)
    _record.warn_if_busy()
    head = _record.head("compactor-export-cost", "export_cost.py", argv)
    with tempfile.TemporaryDirectory(prefix="export-cost-") as temporary:
        result = head | compare(Path(temporary), args)
    _record.publish(result, render(result), args.out)
    return 0


def compare(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run every command in every round. Returns all but the description of the run."""
    model = folder / "model"
    entry = plant.find_entry(plant.read_entries(), score=87.709)
    _graphs.in_fresh_process(plant.plant, model, plant.dense_twin(entry))
    out = folder / "ours"
    export = [sys.executable, "-m", "compactor", "export", str(model), str(out), "--overwrite", "--quiet"]
    tools, absent = {OURS: {"export": export}}, {}  # fp32 and int8
    if args.optimum_python:
        tools[OPTIMUM] = optimum_commands(args.optimum_python, model, folder)
    else:
        absent[OPTIMUM] = "no interpreter given: --optimum-python"
    costs: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in tools}
    for name in _run.turns(list(tools), args.rounds):
        costs[name].append([measure_command(command) for command in tools[name].values()])
    manifest = json.loads((out / "compactor.json").read_text(encoding="utf-8"))
    if not manifest["verification"]["passed"]:
        raise AssertionError("the export was not verified")
    return {
        "model_bytes": (model / "model.safetensors").stat().st_size,
        "tools": {name: {"steps": list(tools[name]), "rounds": rounds} for name, rounds in costs.items()},
        "absent": absent,
    }


def optimum_commands(python: str, model: Path, folder: Path) -> dict[str, list[str]]:
    """Optimum's export and optimizer, then ONNX Runtime's quantizer.

    The quantizer is called without optimum's front, which refuses the optimizer's fused operators: it does not pass on
    the option that they need.
    """
    tool = str(Path(python).with_name("optimum-cli"))
    exported, optimized = folder / "exported", folder / "optimized"
    task = ["--task", "question-answering"]
    quantizer = [python, str(Path(_graphs.__file__).resolve())]
    return {
        "export": [tool, "export", "onnx", "--model", str(model), *task, str(exported)],
        "optimize": [tool, "onnxruntime", "optimize", "--onnx_model", str(exported), "-O2", "-o", str(optimized)],
        "quantize": [*quantizer, str(optimized / "model_optimized.onnx"), str(folder / "quantized.onnx")],
    }


def measure_command(command: Sequence[str]) -> dict[str, Any]:
    """Run ``command`` to its end.

    Linux counts the memory of the process that starts the command into its peak, so this one must stay small.

    Returns:
        ``wall_s`` of wall time, and ``peak_bytes`` of memory, of its largest process.

    Raises:
        RuntimeError: It failed.
    """
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            tail = output.read().decode(errors="replace").strip().splitlines()[-5:]
            raise RuntimeError("\n".join([f"{' '.join(command)} exited with {process.returncode}:", *tail]))
    return {"wall_s": wall, "peak_bytes": usage.ru_maxrss * 1024}


def render(result: Mapping[str, Any]) -> str:
    """The table: seconds and peak memory of each tool."""
    rows, rounds = [], len(result["tools"][OURS]["rounds"])
    for name, tool in result["tools"].items():
        walls = [sum(step["wall_s"] for step in steps) for steps in tool["rounds"]]
        peak = statistics.median(max(step["peak_bytes"] for step in steps) for steps in tool["rounds"])
        rows.append(
            [
                f"{name}: {', '.join(tool['steps'])}",
                f"{statistics.median(walls):.1f} s [{min(walls):.1f}, {max(walls):.1f}]",
                f"{peak / 1e9:.2f} GB",
                f"{peak / result['model_bytes']:.1f}×",
            ]
        )
    rows += [[name, "-", "-", why] for name, why in result["absent"].items()]
    return _record.page(
        "# Cost of exporting a dense BERT-base, fp32 and int8",
        f"Model of {result['model_bytes'] / 1e6:.0f} MB; the median of {rounds} rounds [least, largest].",
        _record.markdown_table(["command", "wall time", "peak memory", "of the model's bytes"], rows),
        _record.machine_line(result),
    )


if __name__ == "__main__":
    sys.exit(main())
