"""Compare ours with what else one could do with a published pruned model, on the same shapes in one run.

    python benchmarks/peers.py [--f1 87.709] [--shapes 1x128,8x128] [--threads 2] [--rounds 8] [--only ours,openvino]
                               [--optimum-python PATH] [--work DIR [--build-only]] [--out benchmarks/results/NAME.json]

The sizes are planted in a random BERT (``plant.py``). The peers: PyTorch, nn_pruning's own compaction, ONNX Runtime's
and optimum's recipes, OpenVINO and CTranslate2. What is not installed is a row that says so. After timing, every row's
answers are compared with PyTorch's on the same model; a row that is wrong has no times.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # so that it runs by its path, and not only with -m

import numpy as np

from benchmarks import _graphs, _record, _run, plant
from benchmarks._run import LOOSE, STATIC, Row
from benchmarks._workshop import Arrays, Planted, Workshop, parse_shapes, synthetic_cases
from compactor.reporting.numbers import bytes_text, times
from compactor.reporting.rows import result_of

BASELINE = "dense-onnxruntime-fp32"
OURS = "ours-int8"
STOCK = ("stock-fused-int8", "stock-int8", "stock-attention-int8")
PEERS = {  # whom ours is compared with: the fastest of these rows
    "PyTorch eager, dense": ["dense-torch-eager"],
    "PyTorch compiled, dense": ["dense-torch-compiled"],
    "nn_pruning's compaction in PyTorch, the faster": ["nn-pruning-eager", "nn-pruning-compiled"],
    "ONNX Runtime int8, dense": ["dense-onnxruntime-int8"],
    "optimum + dynamic int8, the faster": ["optimum-O2-int8", "optimum-O3-int8"],
    "CTranslate2 int8, dense": ["dense-ctranslate2-int8"],
    "stock": STOCK,
    "OpenVINO static int8, dense": ["dense-openvino-int8"],
    "OpenVINO static int8, our compact graph": ["compact-openvino-int8"],
    "OpenVINO bf16, our compact graph": ["compact-openvino-bf16"],
}
OLD_OPSET = 18  # attention spelled out, as the usual exporters write it
SHAPES = "1x32,1x128,8x128,1x384"
CONVERTER_PACKAGES = ("openvino", "nncf")
CALIBRATION = 32  # random sequences for static quantization


def main(argv: Sequence[str] | None = None) -> int:
    """Build, time, check, and write what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    plant.add_entry_options(parser)
    _run.add_run_options(parser, shapes=SHAPES)
    parser.add_argument(
        "--only", help="comma-separated beginnings of ids; all other rows but the baseline are left out"
    )
    parser.add_argument(
        "--optimum-python",
        default=os.environ.get("OPTIMUM_PYTHON"),
        help="an interpreter with optimum-onnx (default: $OPTIMUM_PYTHON)",
    )
    args = parser.parse_args(argv)
    entry = plant.chosen_entry(args)
    with _run.work_folder(args.work, "peers-") as work:
        cases, how = synthetic_cases(work, parse_shapes(args.shapes)), _run.settings(args)
        rows = make_rows(Planted(work, entry), args.optimum_python)
        if args.only:
            rows = [row for row in rows if row.id == BASELINE or row.id.startswith(tuple(args.only.split(",")))]
        if args.build_only:
            _run.build(rows, cases, how)
            return 0
        _record.warn_if_busy()
        found = _run.run(rows, cases, how)
        report = _record.make_report(
            f"Peers on the sizes of {entry.title}",
            rows,
            found,
            baseline=BASELINE,
            command=_run.command("peers.py", argv),
        )
    result = {
        "schema": 1,
        "kind": "compactor-peers",
        "entry": entry.to_json(),
        "relative_error": found.errors,
        "report": report,
    }
    _record.publish(result, render(result), args.out)
    return 1 if _record.failures([report]) else 0


def make_rows(shop: Planted, optimum: str | None) -> list[Row]:
    """Every way to run the model that the tables compare: dense first, then with its zeros, then compacted."""
    dense = shop.dense
    return [
        Row(BASELINE, "dense: plain export, ONNX Runtime fp32", dense, dense.plain),
        *_torch_rows(shop),
        _quantized_row("dense-onnxruntime-int8", "dense: plain export, ONNX Runtime int8", dense, dense.plain),
        *_openvino_rows("dense", dense, lambda: dense.plain(OLD_OPSET)),
        _ctranslate2_row(dense),
        *_optimum_rows(shop, optimum),
        *_stock_rows(shop),
        *_openvino_rows("compact", shop, lambda: _portable(shop)),
        Row("ours-fp32", "ours: compactor fp32", shop, lambda: shop.graph("fp32")),
        Row(OURS, "ours: compactor int8", shop, lambda: shop.graph("int8"), "int8"),
    ]


def _torch_rows(shop: Planted) -> list[Row]:
    """PyTorch: the dense model, the one with zeros, and the one that nn_pruning's rule leaves."""

    def row(id: str, name: str, model: Planted, options: Mapping[str, Any], bound: float | None = None) -> Row:
        return Row(id, name, model, model.checkpoint, "fp32", "torch", "torch", options, bound)

    # Its rule is approximate, and by how much is in the table; beyond all bounds it would still be an error.
    peer, rule = "nn_pruning's compaction: PyTorch", {"transform": "_nn_pruning:compact"}
    return [
        row("dense-torch-eager", "dense: PyTorch eager", shop.dense, {}),
        row("dense-torch-compiled", "dense: PyTorch compiled", shop.dense, {"compile": True}),
        row("pruned-torch-eager", "zeros in place: PyTorch eager", shop, {}),
        row("nn-pruning-eager", f"{peer} eager", shop, rule, LOOSE),
        row("nn-pruning-compiled", f"{peer} compiled", shop, rule | {"compile": True}, LOOSE),
    ]


def _optimum_rows(shop: Planted, python: str | None) -> list[Row]:
    """What optimum makes of the checkpoint: it leaves the zeros in their places. O3 approximates Gelu."""
    missing = None if python else "no interpreter with optimum-onnx given: --optimum-python"

    def rows(level: str, bound: float | None) -> list[Row]:
        def fp32() -> Path:
            return shop.exported(f"optimum-{level}", _graphs.export_optimum, python, level) / "model.onnx"

        def int8() -> Path:
            return shop.converted(fp32(), "-int8.onnx", _graphs.quantize_with, python)

        id, name = f"optimum-{level}", f"zeros in place: optimum {level}"
        return [
            Row(f"{id}-fp32", f"{name} fp32", shop, fp32, bound=bound, missing=missing),
            Row(f"{id}-int8", f"{name} + dynamic int8", shop, int8, "int8", missing=missing),
        ]

    return [*rows("O2", None), *rows("O3", LOOSE)]


def _stock_rows(shop: Planted) -> list[Row]:
    """ONNX Runtime's own tools on our compact graph: they measure lowering and quantization, not pruning."""
    name = "our compact graph:"
    fused = lambda: shop.converted(_portable(shop), "-fused.onnx", _graphs.fuse)  # noqa: E731
    compact = lambda: shop.exported("compact.onnx", _graphs.export_compact)  # noqa: E731
    return [
        _quantized_row(STOCK[0], f"{name} optimizer + quantizer", shop, fused),
        _quantized_row(STOCK[1], f"{name} quantizer alone", shop, lambda: _portable(shop)),
        _quantized_row(STOCK[2], f"{name} quantizer on Attention", shop, compact),
    ]


def _quantized_row(id: str, name: str, shop: Planted, source: Callable[[], Path]) -> Row:
    """A graph through ``quantize_dynamic``."""
    return Row(id, name, shop, lambda: shop.converted(source(), "-int8.onnx", _graphs.quantize), "int8")


def _portable(shop: Workshop) -> Path:
    """Our compact fp32 for other runtimes: attention spelled out, nothing packed."""
    options = {"target": "portable", "precision": ("fp32",)}
    return shop.exported("portable", _graphs.export_ours, options) / "onnx" / "model.onnx"


def _openvino_rows(kind: str, shop: Workshop, source: Callable[[], Path]) -> list[Row]:
    """OpenVINO in fp32, in bf16 where the CPU has it, and in int8 quantized statically by NNCF."""
    missing = not_installed(*CONVERTER_PACKAGES)
    name = f"{'dense' if kind == 'dense' else 'our compact graph'}: OpenVINO"

    def row(precision: str, label: str, missing: str | None, *, static: bool = False) -> Row:
        suffix, calibration = ("-openvino-int8.xml", CALIBRATION) if static else ("-openvino.xml", 0)
        return Row(
            f"{kind}-openvino-{precision}",
            f"{name} {label}",
            shop,
            lambda: shop.converted(source(), suffix, _graphs.convert_openvino, calibration),
            precision=precision,
            engine="openvino",
            provider="openvino",
            # What int8 does not cover stays in fp32 on every CPU.
            options={"INFERENCE_PRECISION_HINT": "f32"} if static else {},
            bound=STATIC if static else None,
            missing=missing,
        )

    return [
        row("fp32", "fp32", missing),
        row("bf16", "bf16", missing or _why_no_bf16()),
        row("int8", "static int8", missing, static=True),
    ]


def not_installed(*packages: str) -> str | None:
    """Why a row cannot be run where packages are missing."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed: pip install 'compactor[peers]'" if absent else None


def _why_no_bf16() -> str | None:
    """Why bf16 cannot be measured here: OpenVINO would compute in fp32 without a word."""
    import openvino

    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return None if "BF16" in capabilities else "this CPU has no bf16"


def _ctranslate2_row(dense: Workshop) -> Row:
    """CTranslate2 runs the encoder alone, and knows no layer narrower than the others."""
    return Row(
        "dense-ctranslate2-int8",
        "dense: CTranslate2 int8, without the task's head",
        dense,
        lambda: dense.exported("ctranslate2-int8", _graphs.convert_ctranslate2, "int8"),
        precision="int8",
        engine="ctranslate2",
        missing=not_installed("ctranslate2"),
        adapt=with_head,
    )


def with_head(outputs: Arrays, shop: Workshop) -> Arrays:
    """The answers that an encoder's last state (B, S, D) stands for, by the head of the checkpoint."""
    from safetensors.numpy import load_file

    tensors = load_file(shop.checkpoint() / "model.safetensors")
    if "qa_outputs.weight" in tensors:
        logits = outputs["last_hidden_state"] @ tensors["qa_outputs.weight"].T + tensors["qa_outputs.bias"]
        return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}
    pooler = "bert.pooler.dense"
    pooled = np.tanh(outputs["last_hidden_state"][:, 0] @ tensors[f"{pooler}.weight"].T + tensors[f"{pooler}.bias"])
    return {"logits": pooled @ tensors["classifier.weight"].T + tensors["classifier.bias"]}


def render(result: Mapping[str, Any]) -> str:
    """The tables: times and speed of every row, then ours against each peer."""
    report, errors = result["report"], result["relative_error"]
    cases = [case["id"] for case in report["workload"]["cases"]]
    rows = []
    for variant in report["variants"]:
        if variant["status"] == "not run":
            continue
        size = variant["counters"]["file_bytes"]
        worst = max((error for error in errors.get(variant["id"], {}).values() if error is not None), default=None)
        rows.append(
            [
                variant["name"],
                "-" if size is None else bytes_text(size),
                *(f"{_record.time_cell(variant, case)} {_record.speed_cell(variant, case)}" for case in cases),
                "-" if worst is None else f"{worst:.1e}",
            ]
        )
    return _record.page(
        f"# {result['entry']['title']}: ours beside its peers",
        "Milliseconds: median of the processes' medians [p10, p90 of all samples], then × against "
        "the dense model in ONNX Runtime fp32 [95 % bootstrap interval; ≈: no significant difference]. "
        "Batch × length, random tokens without padding.",
        _record.markdown_table(["row", "file", *cases, "error"], rows),
        _record.markdown_table(["speed of ours int8 against", *cases], _gains(report, cases)),
        "`error`: root mean square of the difference from PyTorch in fp32 on the model with its zeros in place, as "
        "a share of the outputs'; the largest over the shapes. `stock`: the fastest of ONNX Runtime's own recipes "
        "on our compact graph.",
        *_record.remarks(report),
        *_record.provenance(report),
    )


def _gains(report: Mapping[str, Any], cases: Sequence[str]) -> list[list[str]]:
    """How many times faster ours is than each peer; a quotient of medians."""
    found = {variant["id"]: variant for variant in report["variants"]}

    def fastest(ids: Sequence[str], case: str) -> float | None:
        results = [result_of(found.get(id), case) for id in ids]
        return min((result["summary"]["median"] for result in results if result is not None), default=None)

    def gain(ids: Sequence[str], case: str) -> str:
        theirs, ours = fastest(ids, case), fastest([OURS], case)
        return "-" if theirs is None or ours is None else times(theirs / ours)

    return [[title, *(gain(ids, case) for case in cases)] for title, ids in PEERS.items()]


if __name__ == "__main__":
    sys.exit(main())
