"""What int8 does to answers and to time: our two kinds of scales, the usual tools, and layers chosen by data.

    python benchmarks/int8_answers.py [--embedder MODEL_DIR --pairs FILE] [--rounds 6] [--threads 2] [--work DIR]
                                      [--out benchmarks/results/int8-answers-NAME.json]

On the bundled classifier and its sentences, and on a folder of sentence-transformers with pairs for its vectors.
Times, answers and their paired differences are those of ``compactor bench``. *Dependence* is how far the outputs of an
example move between being alone and being among 31 others, as a share of the largest.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # so that it runs by its path, and not only with -m

import numpy as np

from benchmarks import _graphs, _record, _run
from benchmarks._workshop import EXAMPLE, SENTENCES, Given, say
from compactor.benching.bench import bench
from compactor.evaluation.datafiles import read_table
from compactor.evaluation.inputs import InputSpec
from compactor.evaluation.texts import tokenize
from compactor.reporting.rows import result_of
from compactor.runtime.sessions import open_session

KIND = "compactor-int8-answers"
KEEP = 99.5
BLOCK = 128  # of weights that MatMulNBits gives a scale
BATCHES = (1, 8)
_ALONE = 64  # texts that are looked at alone
_BESIDE = 32


def main(argv: Sequence[str] | None = None) -> int:
    """Build, time, judge, and write what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--embedder", type=Path, help="a folder of sentence-transformers")
    parser.add_argument("--pairs", type=Path, help="a data file of queries and what they search")
    _run.add_common_options(parser)
    args = parser.parse_args(argv)
    result: dict[str, Any] = {**_record.head(KIND, "int8_answers.py", argv), "models": {}}
    with _run.work_folder(args.work, "int8-answers-") as work:
        models = [(Given(work, EXAMPLE), SENTENCES, {})]
        if args.embedder is not None and args.pairs is not None:
            models.append((Given(work, args.embedder), args.pairs, {"embed": True}))
        if not args.build_only:
            _record.warn_if_busy()
        for shop, data, options in models:
            graphs = build(shop, data, options)
            if args.build_only:
                continue
            report = bench(
                list(graphs.values()),
                batch=BATCHES,
                data=data,
                threads=args.threads,
                rounds=args.rounds,
                command=result["command"],
                progress=say,
            )
            for variant in report["variants"]:  # not where this machine keeps them
                variant["target"] = f"WORK/{Path(variant['target']).relative_to(work).as_posix()}"
            moved = {name: dependence(path, data, shop) for name, path in graphs.items()}
            result["models"][shop.folder.name] = {"rows": list(graphs), "report": report, "dependence": moved}
            if args.out is not None:
                _record.write_result(args.out, result, render(result))
    if not args.build_only:
        print(render(result))
    return 0


def build(shop: Given, data: Path, options: Mapping[str, Any]) -> dict[str, Path]:
    """The graphs by the name of their row; the first is fp32."""

    def graph(name: str, which: str = "int8", **more: Any) -> Path:
        made = shop.exported(name, _graphs.export_ours, {**options, **more})
        return Path(made) / "onnx" / {"fp32": "model.onnx", "int8": "model_quantized.onnx"}[which]

    fp32 = graph("tensor", "fp32", int8="tensor")
    portable = graph("portable", "fp32", target="portable", precision=("fp32",))

    def stock(name: str, source: Path, convert: Callable[[Path, Path], None]) -> Path:
        """Beside the graph that it was made of, where the tokenizer is found."""
        path = source.with_name(f"{name}.onnx")
        if not path.exists():
            say(f"building {path.name}")
            _graphs.in_fresh_process(convert, source, path)
        return path

    return {
        "fp32": fp32,
        "ours, tensor": graph("tensor", int8="tensor"),
        "ours, token": graph("token", int8="token"),
        f"ours, token, keep {KEEP:g}": graph("chosen", int8="token", calibrate=data, keep=KEEP),
        "quantize_dynamic, default": stock("dynamic", portable, quantize_by_default),
        "quantize_dynamic, signed, per channel": stock("dynamic-channels", portable, _graphs.quantize),
        "MatMulNBits, 8 bits": stock("nbits", fp32, quantize_by_blocks),
    }


def quantize_by_default(source: Path, path: Path) -> None:
    """ONNX Runtime's dynamic quantizer as it comes."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, path)


def quantize_by_blocks(source: Path, path: Path) -> None:
    """Its weight-only quantizer, with activations in int8 inside the operator (accuracy level 4)."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(source), bits=8, block_size=BLOCK, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(path), use_external_data_format=False)


def dependence(path: Path, data: Path, shop: Given) -> float:
    """The largest move of an output between a text alone and among others, as a share of the largest output."""
    config = json.loads((shop.path / "config.json").read_text(encoding="utf-8"))
    task = "feature-extraction" if (shop.path / "modules.json").exists() else "text-classification"
    spec = InputSpec.from_config(config, task=task, folder=shop.path)
    examples = tokenize(read_table(data), spec, labelled=False).examples
    session = open_session(path, allow_spinning=False)
    inputs, output = {entry.name for entry in session.get_inputs()}, session.get_outputs()[-1].name

    def run(rows: Sequence[int]) -> Any:
        batch = examples.batch(rows)
        return session.run([output], {name: array for name, array in batch.items() if name in inputs})[0]

    moved = largest = 0.0
    for start in range(0, _ALONE, _BESIDE):
        together = run(range(start, start + _BESIDE))
        for row, mate in enumerate(together):
            moved = max(moved, float(np.abs(run([start + row])[0] - mate).max()))
        largest = max(largest, float(np.abs(together).max()))
    return moved / largest


def render(result: Mapping[str, Any]) -> str:
    """A table for each model."""
    parts = ["# int8: answers and time", (__doc__ or "").split("\n\n")[2].replace("\n", " ").strip()]
    for name, model in result["models"].items():
        rows = []
        cases = [case["id"] for case in model["report"]["workload"]["cases"]]
        for label, variant in zip(model["rows"], model["report"]["variants"], strict=True):
            metrics = (variant["quality"] or {"metrics": {}})["metrics"]
            cells = [_metric(metrics, kind) for kind in _kinds(model)]
            speeds = [_record.speed_cell(variant, case) if result_of(variant, case) else "-" for case in cases]
            file = f"{variant['counters']['file_bytes'] / 1e6:.1f} MB"
            rows.append([label, file, *speeds, *cells, f"{model['dependence'][label]:.1e}"])
        header = ["graph", "file", *cases, *_kinds(model), "dependence"]
        parts += [
            f"## {name}",
            _record.markdown_table(header, rows),
            *_record.remarks(model["report"]),
            *_record.provenance(model["report"]),
        ]
    parts.append("Times faster than fp32, with 95 % intervals. Answers in percent, with standard errors.")
    return _record.page(*parts) + "\n"


def _kinds(model: Mapping[str, Any]) -> list[str]:
    found = (variant["quality"] for variant in model["report"]["variants"])
    return list(dict.fromkeys(name for each in found if each for name in each["metrics"]))


def _metric(metrics: Mapping[str, Any], name: str) -> str:
    found = metrics.get(name)
    if found is None:
        return "-"
    changed = (found["difference"] or {}).get("changed")
    text = f"{100 * found['value']:.2f} ± {100 * found['se']:.2f}"
    return text if changed is None else f"{text}, {changed} of {found['n']} changed"


if __name__ == "__main__":
    sys.exit(main())
