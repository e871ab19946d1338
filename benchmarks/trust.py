"""Can ``compactor bench`` be believed here? Three questions with known answers.

    python benchmarks/trust.py [--repeats 3] [--identical 20] [--out benchmarks/results/trust-NAME.json]

The same comparison several times: do the intervals overlap? A graph against itself, again and again: how often does it
come out as different? A graph with more to do: does ``--compare`` notice, and leave the same one alone?
All with the bundled example checkpoint, exported here.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # so that it runs by its path, and not only with -m

import numpy as np

import compactor
from benchmarks import _record, _run
from benchmarks._graphs import export_ours, in_fresh_process
from benchmarks._workshop import EXAMPLE, say
from compactor.benching.statistics import NO_DIFFERENCE
from compactor.reporting.numbers import digits, with_interval

SHAPES: Mapping[str, Sequence[int]] = {"batch": [1, 8], "seq": [128]}
SLOWED_BY = 600  # width of the square product that is added: 0.7 of the graph's multiply-adds at 1x128


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, judge, and write what came of it; 1 where an answer is not the known one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="of the comparison with PyTorch (default: %(default)s)")
    parser.add_argument(
        "--identical", type=int, default=20, help="runs of a graph against itself (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=8, help="processes of each variant (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="result, JSON; its tables are written beside it")
    args = parser.parse_args(argv)
    command = _run.command("trust.py", argv)
    _record.warn_if_busy()
    with tempfile.TemporaryDirectory(prefix="trust-") as temporary:
        work = Path(temporary)
        artefact, graph = work / "compact", work / "model.onnx"
        in_fresh_process(export_ours, EXAMPLE, artefact, {})
        graph.write_bytes((artefact / "onnx" / "model.onnx").read_bytes())
        slowed = work / "slowed" / "model.onnx"
        in_fresh_process(slow_down, graph, slowed)
        result = {
            "schema": 1,
            "kind": "compactor-trust",
            "command": command,
            "repeats": [repeat(artefact, number, args.rounds, command) for number in range(args.repeats)],
            "identical": [compare_with_itself(graph, number, args.rounds) for number in range(args.identical)],
            "compare": compare_slowed(graph, slowed, artefact / "onnx" / "model_quantized.onnx", args.rounds),
        }
    _record.publish(result, render(result), args.out)
    return 0 if all(judge(result).values()) else 1


def slow_down(source: Path, path: Path) -> None:
    """Write ``source`` with one more matrix product, whose result reaches the logits as nothing."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(source)
    graph = model.graph
    output = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["true_logits" if name == output else name for name in node.output]
        node.input[:] = ["true_logits" if name == output else name for name in node.input]
    random = np.random.default_rng(0)
    square = random.standard_normal((SLOWED_BY, SLOWED_BY), np.float32)
    constants = {"slow_a": square, "slow_b": square.T.copy(), "slow_zero": np.zeros((), np.float32)}
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    graph.node.extend(
        [
            helper.make_node("Cast", [graph.input[0].name], ["slow_ids"], to=onnx.TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["slow_ids"], ["slow_mean"], keepdims=0),
            helper.make_node("Add", ["slow_a", "slow_mean"], ["slow_left"]),  # known only at run time: nothing to fold
            helper.make_node("MatMul", ["slow_left", "slow_b"], ["slow_product"]),
            helper.make_node("ReduceMean", ["slow_product"], ["slow_scalar"], keepdims=0),
            helper.make_node("Mul", ["slow_scalar", "slow_zero"], ["slow_nothing"]),
            helper.make_node("Add", ["true_logits", "slow_nothing"], [output]),
        ]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def repeat(artefact: Path, number: int, rounds: int, command: str) -> dict[str, Any]:
    """One report of the artefact against its checkpoint in PyTorch."""
    say(f"the artefact against PyTorch, run {number + 1}")
    return without_places(
        compactor.bench([artefact], baseline=EXAMPLE, seed=number, rounds=rounds, command=command, **SHAPES)
    )


def compare_with_itself(graph: Path, number: int, rounds: int) -> dict[str, Any]:
    """The verdict on a graph against itself, with the samples."""
    say(f"a graph against itself, run {number + 1}")
    report = compactor.bench([graph, graph], batch=[1], seq=[128], duration_s=0.3, seed=number, rounds=rounds)
    results = [variant["results"][0] for variant in report["variants"]]
    return {
        "ratio": results[1]["ratio"],
        "valid": report["verdict"],
        "rounds_ms": [result["rounds_ms"] for result in results],
    }


def compare_slowed(graph: Path, slowed: Path, baseline: Path, rounds: int) -> dict[str, Any]:
    """``--compare`` of two reports on the same graph, and of one on the slowed graph; all against one baseline."""
    reports = []
    for path in (graph, graph, slowed):
        say(f"a report for --compare: {path.parent.name}")
        reports.append(without_places(compactor.bench([path], baseline=baseline, batch=[1], seq=[128], rounds=rounds)))
    before, again, slower = reports
    return {
        "same": compactor.compare(before, again),
        "slowed": compactor.compare(before, slower),
        "medians_ms": [report["variants"][1]["results"][0]["summary"]["median"] for report in reports],
        "reports": reports,
    }


def without_places(report: dict[str, Any]) -> dict[str, Any]:
    """The report with the names of its targets, not where they lie on this machine."""
    for variant in report["variants"]:
        variant["target"] = Path(variant["target"]).name
    return report


def judge(result: Mapping[str, Any]) -> dict[str, bool]:
    """The known answers, and whether they were found."""
    return {
        "the intervals of repeated runs overlap": all(overlaps(ratios) for ratios in ratios_by_cell(result).values()),
        "identical graphs: no significant difference in 19 of 20 runs": same(result) >= 0.95 * len(result["identical"]),
        "--compare finds the slowed graph": bool(result["compare"]["slowed"]["slower"]),
        "--compare leaves the same graph alone": not result["compare"]["same"]["slower"],
    }


def same(result: Mapping[str, Any]) -> int:
    """How often a graph was not told apart from itself."""
    return sum(entry["ratio"]["verdict"] == NO_DIFFERENCE for entry in result["identical"])


def ratios_by_cell(result: Mapping[str, Any]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """The ratios of all repeats, by variant and case."""
    cells: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for report in result["repeats"]:
        for variant in report["variants"]:
            for entry in variant["results"]:
                if entry["ratio"] is not None:
                    cells.setdefault((variant["name"], entry["case"]), []).append(entry["ratio"])
    return cells


def overlaps(ratios: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all intervals have a point in common."""
    return max(ratio["low"] for ratio in ratios) <= min(ratio["high"] for ratio in ratios)


def render(result: Mapping[str, Any]) -> str:
    """The tables."""
    repeats, found, compared = (result[part] for part in ("repeats", "identical", "compare"))
    header = ["variant", "case", *(f"run {i + 1}" for i in range(len(repeats)))]
    rows = [[*cell, *map(with_interval, ratios)] for cell, ratios in ratios_by_cell(result).items()]
    rows.append(["verdict", "", *("VALID" if report["verdict"]["valid"] else "INVALID" for report in repeats)])
    values = [entry["ratio"]["value"] for entry in found]
    valid = sum(entry["valid"]["valid"] for entry in found)
    before, again, slower = map(digits, compared["medians_ms"])
    told = ["slower" if compared[which]["slower"] else "not slower" for which in ("same", "slowed")]
    return _record.page(
        "# Can `compactor bench` be believed here?",
        "The example's artefact against its checkpoint in PyTorch, times faster with 95 % intervals:",
        _record.markdown_table(header, rows),
        f"A graph against itself, {len(found)} runs: no significant difference in {same(result)}; ratios from "
        f"{min(values):.3f} to {max(values):.3f}; {valid} of the runs VALID.",
        f"`--compare`: {before} ms before; the same graph again, {again} ms: {told[0]}; with one more matrix "
        f"product, {slower} ms: {told[1]}.",
        "\n".join(f"- {question}: {'yes' if held else '**no**'}" for question, held in judge(result).items()),
        *_record.provenance(repeats[0]),
    )


if __name__ == "__main__":
    sys.exit(main())
