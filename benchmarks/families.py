"""The encoders that people deploy today: ours beside PyTorch, plain export, optimum and OpenVINO, dense and pruned.

    python benchmarks/families.py [--only modernbert,esm-dense-ours] [--work DIR [--build-only]] [--rounds 8]
                                  [--threads 2] [--sentences 128] [--data FILE] [--optimum-python PATH] [--tiny]
                                  [--out benchmarks/results/families-NAME.json]

Random weights in the published sizes (``_family_models.py``). Each variant runs in a process of its own, in ABBA order,
a family after the other; after each the result is written. Families of which ``--only`` chooses nothing keep what
``--out`` holds of them. Our exports are timed while they are built: on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # so that it runs by its path, and not only with -m

from benchmarks import _families_page, _graphs, _record, _run
from benchmarks._families_page import SST2
from benchmarks._family_models import FAMILIES, Family, FamilyModel, random_example
from benchmarks._run import STATIC, Row, Run
from benchmarks._workshop import EXAMPLE, SENTENCES, parse_shapes, say
from benchmarks.peers import CALIBRATION, CONVERTER_PACKAGES, OLD_OPSET, not_installed
from compactor.benching.plan import Case
from compactor.benching.processes import run_worker
from compactor.benching.workload import describe_case, from_lengths, synthetic
from compactor.evaluation.datafiles import read_table
from compactor.evaluation.inputs import InputSpec
from compactor.evaluation.texts import tokenize

KIND = "compactor-families"
SHAPES = "1x128,8x128,1x512"
BATCH = 32  # of SST-2's sentences
CALIBRATION_LENGTH = 128
PROFILED = ("dense-plain-int8", "dense-ours-int8", "pruned-ours-int8")
_PROFILED_RUNS = 3


def main(argv: Sequence[str] | None = None, families: Sequence[Family] = FAMILIES) -> int:
    """Build, time, check, and write what came of it."""
    args = _parse(argv)
    how = _run.settings(args, scenario="offline")
    command = _run.command("families.py", argv)
    with _run.work_folder(args.work, "families-") as work:
        every = {
            family: make_rows(work, family, args.optimum_python)
            for family in (family.tiny if args.tiny else family for family in families)
        }
        chosen = {family: kept for family, rows in every.items() if (kept := choose(rows, args.only))}
        if not chosen:
            sys.exit(f"error: --only {','.join(args.only)} chooses nothing; there are {', '.join(map(_name, every))}")
        result: dict[str, Any] = {"schema": 1, "kind": KIND, "families": {}}
        if args.out is not None and args.out.exists():
            carry_over(result, json.loads(args.out.read_text(encoding="utf-8")))
        if not args.build_only:
            _record.warn_if_busy()
        for family, rows in chosen.items():
            cases, workload = make_cases(FamilyModel(work, family, pruned=False), args)
            if args.build_only:
                _run.build(rows, cases, how)
                continue
            found = _run.run(rows, cases, how)
            report = _record.make_report(
                f"{family.title}: dense and pruned",
                rows,
                found,
                baseline=rows[0].id,
                command=command,
                workload=workload,
                profiles=profile(rows, found),
            )
            result["families"][family.name] = describe(work, family, found, report)
            if args.out is not None:
                _record.write_result(args.out, result, _families_page.render(result))
            if found.measurements.interrupted:
                break
    if args.build_only:
        return 0
    print(_families_page.render(result))
    return 1 if _record.failures(entry["report"] for entry in result["families"].values()) else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        help="comma-separated beginnings of rows, such as esm or gte-dense; with the baseline of their family",
    )
    parser.add_argument("--tiny", action="store_true", help="two narrow layers of each: to try the whole way")
    parser.add_argument(
        "--data", type=Path, default=SENTENCES, help="sentences whose lengths are timed (default: the bundled SST-2)"
    )
    parser.add_argument(
        "--sentences", type=int, default=128, help="how many of them, 0 for none (default: %(default)s)"
    )
    parser.add_argument(
        "--optimum-python",
        default=os.environ.get("OPTIMUM_PYTHON"),
        help="an interpreter with optimum-onnx (default: $OPTIMUM_PYTHON)",
    )
    _run.add_run_options(parser, shapes=SHAPES)
    args = parser.parse_args(argv)
    if args.build_only and args.work is None:
        parser.error("--build-only needs --work")
    return args


def make_rows(work: Path, family: Family, optimum: str | None) -> list[Row]:
    """Every way to run a family that the tables compare; in front the baseline.

    Args:
        work: The folder of all models.
        family: Which.
        optimum: An interpreter with optimum-onnx; None where there is none.
    """
    dense, pruned = (FamilyModel(work, family, pruned=pruned) for pruned in (False, True))
    no_optimum = None if optimum else "no interpreter with optimum-onnx given: --optimum-python"

    def row(id: str, name: str, shop: FamilyModel, build: Any, precision: str, **fields: Any) -> Row:
        id, name = f"{family.name}-{shop.kind}-{id}", f"{shop.kind}: {name}"
        # The rounding of many layers of random weights adds up, and a random classifier has little to tell apart.
        return Row(id, name, shop, build, precision, bound=STATIC if precision == "int8" else None, **fields)

    def from_optimum() -> Path:
        return dense.exported("optimum", _graphs.export_optimum, optimum) / "model.onnx"

    def quantized(source: Any) -> Any:
        return lambda: dense.converted(source(), "-int8.onnx", _graphs.quantize)

    def openvino() -> Path:
        batch_of = functools.partial(random_example, dense.spec(), CALIBRATION_LENGTH)
        source = dense.plain(OLD_OPSET)
        return dense.converted(source, "-openvino-int8.xml", _graphs.convert_openvino, CALIBRATION, batch_of)

    def ours(shop: FamilyModel) -> list[Row]:
        return [
            row(f"ours-{each}", f"ours {each}", shop, functools.partial(shop.ours_in, each), each)
            for each in ("fp32", "int8")
        ]

    return [
        row("plain-fp32", "plain export, ONNX Runtime fp32", dense, dense.plain, "fp32"),
        row("torch", "PyTorch eager", dense, dense.checkpoint, "fp32", engine="torch", provider="torch"),
        row("plain-int8", "plain export, ONNX Runtime int8", dense, quantized(dense.plain), "int8"),
        row("optimum-fp32", "optimum, ONNX Runtime fp32", dense, from_optimum, "fp32", missing=no_optimum),
        row(
            *("optimum-int8", "optimum, ONNX Runtime int8", dense, quantized(from_optimum), "int8"), missing=no_optimum
        ),
        row(
            *("openvino-int8", "OpenVINO static int8", dense, openvino, "int8"),
            engine="openvino",
            provider="openvino",
            options={"INFERENCE_PRECISION_HINT": "f32"},  # what int8 does not cover stays in fp32 on every CPU
            missing=not_installed(*CONVERTER_PACKAGES),
        ),
        *ours(dense),
        *ours(pruned),
    ]


def choose(rows: Sequence[Row], only: Sequence[str] | None) -> list[Row]:
    """Those that ``--only`` names by their beginnings, with the baseline; none where it names none of them."""
    if only is None:
        return list(rows)
    found = [row for row in rows if row.id.removeprefix("tiny-").startswith(tuple(only))]
    return [row for row in rows if row is rows[0] or row in found] if found else []


def make_cases(shop: FamilyModel, args: argparse.Namespace) -> tuple[list[Case], dict[str, Any]]:
    """The inputs of a family, and the report's block about them: random ones, and such of the lengths of sentences."""
    spec, folder = shop.spec(), shop.work / f"inputs-{shop.family.name}"
    shapes = parse_shapes(args.shapes)
    block: dict[str, Any] = {"kind": "synthetic", **dict.fromkeys(("file", "sha256", "examples", "lengths"))}
    if spec.image is not None:
        cases = list(synthetic(folder, spec, batches=[batch for batch, _ in shapes]).cases)
    else:
        cases = [
            case
            for batch, length in shapes
            for case in synthetic(folder, spec, batches=[batch], seqs=[length], seed=length).cases
        ]
        if args.sentences:
            lengths = write_lengths(args.data, folder / "lengths.txt")
            real = from_lengths(folder, lengths, spec, batches=[BATCH], scenario="offline", limit=args.sentences)
            block = {**real.to_json(), "file": args.data.name}
            cases += [dataclasses.replace(case, id=SST2) for case in real.cases if not case.bucketed]
    return cases, {**block, "cases": [describe_case(case) for case in cases]}


def write_lengths(data: Path, path: Path) -> Path:
    """How many tokens each text of ``data`` has for the bundled tokenizer, one a line.

    The tokens themselves cannot be given to all families, whose vocabularies differ.
    """
    config = json.loads((EXAMPLE / "config.json").read_text(encoding="utf-8"))
    spec = InputSpec.from_config(config, task="text-classification", folder=EXAMPLE)
    lengths = tokenize(read_table(data), spec, labelled=False).examples.lengths
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(str, lengths)) + "\n", encoding="utf-8")
    return path


def profile(rows: Sequence[Row], found: Run) -> dict[str, list[dict[str, Any]]]:
    """Where the time goes in the rows of ``PROFILED``: a block for each case, by row."""
    profiles = {}
    for row, variant in zip(rows, found.variants, strict=True):
        measured = found.measurements.variants.get(row.id)
        if not row.id.endswith(PROFILED) or measured is None or measured.error is not None or not measured.load_ms:
            continue
        say(f"profiling: {row.name}")
        options = {"runs": _PROFILED_RUNS, "layers": True}
        result = run_worker("profile", variant, found.cases, found.how, profile=options)
        if "error" in result:
            say(f"no profile of {row.name}: {result['error']['what']}")
            continue
        profiles[row.id] = list(result["profile"].values())
    return profiles


def describe(work: Path, family: Family, found: Run, report: Mapping[str, Any]) -> dict[str, Any]:
    """What the result says of a family: its sizes, what exports took and left, errors, and the report."""
    shops = [FamilyModel(work, family, pruned=pruned) for pruned in (False, True)]
    return {
        "title": family.title,
        "planted": {"heads": [family.layers * size for size in family.heads]}
        | {"neurons": [family.layers * size for size in family.width]},
        "exports": {shop.kind: cost for shop in shops if (cost := shop.cost())},
        "relative_error": found.errors,
        "report": report,
    }


def carry_over(result: dict[str, Any], earlier: Mapping[str, Any]) -> None:
    """Keep what an earlier run found of families; those that are measured now replace it."""
    if earlier.get("kind") == KIND:
        result["families"] |= earlier["families"]


def _name(family: Family) -> str:
    return family.name.removeprefix("tiny-")


if __name__ == "__main__":
    sys.exit(main())
