"""Compare what a published pruned model's sizes gain: dense, ours, ONNX Runtime's own tools, OpenVINO.

    python benchmarks/paper_shapes.py [--f1 87.709] [--threads 2] [--shapes 1x32,1x128,8x128,1x384] [--rounds 5]
                                      [--openvino-python PATH] [--out benchmarks/results/NAME.json]

The sizes are planted in a random BERT (``plant.py``). Every variant is built, then timed in rounds, each time in a
process of its own; afterwards its outputs are compared with those of the PyTorch model. Inputs have no padding.
``--work DIR`` keeps what was built: later runs reuse it, except for ours, which is always built anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # so that it runs by its path, and not only with -m

import numpy as np

from benchmarks import _graphs, _measure, _report, plant

DENSE = "dense fp32"
OURS = "ours int8"
STOCK = ("stock: optimizer + quantizer", "stock: quantizer alone", "stock: quantizer on Attention")
OPENVINO = "OpenVINO static int8"
EXACT = 1e-4
INT8 = 0.1  # random weights make a harsh test; measured errors are 1 to 4 %
DENSE_OLD = "dense fp32, opset 18"
PLAIN_OPSET = 23  # with Attention: the faster baseline
OLD_OPSET = 18  # attention spelled out, as the usual exporters write it
_CALIBRATION = 32  # batches of 1 x 128
_NAMED = 8  # noisy cells that are named one by one

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Workshop:
    """Where things are built, and what is built already.

    Attributes:
        folder: Where to.
        entry: The sizes.
        openvino: An interpreter that has OpenVINO and NNCF; None leaves those variants out.
    """

    folder: Path
    entry: plant.Entry
    openvino: str | None

    def once(self, name: str, build: Callable[[Path], object]) -> Path:
        """The path of ``name``, built unless an earlier run did."""
        path = self.folder / name
        if not path.exists():
            _report.say(f"building {name}")
            partial = path.with_name(f"partial-{name}")
            build(partial)
            weights = partial.with_suffix(".bin")  # OpenVINO's
            if weights.exists():
                weights.rename(path.with_suffix(".bin"))
            partial.rename(path)
        return path

    def checkpoint(self, *, dense: bool) -> Path:
        """The random model, with the zeros or without."""
        return self.once(
            "dense" if dense else "pruned",
            lambda path: _graphs.in_fresh_process(plant.plant, path, self.entry, dense=dense),
        )

    def dense(self, opset: int = PLAIN_OPSET) -> Path:
        """The dense model as ``torch.onnx.export`` writes it."""
        model = self.checkpoint(dense=True)
        return self.once(
            "dense.onnx" if opset == PLAIN_OPSET else f"dense-{opset}.onnx",
            lambda path: _graphs.in_fresh_process(_graphs.export_plain, model, path, opset=opset),
        )

    def ours(self, **options: Any) -> Path:
        """The folder of our artefact, with its sizes checked."""
        model = self.checkpoint(dense=False)
        folder = self.folder / "-".join(["ours", *(f"{name}-{value}" for name, value in options.items())])
        _report.say(f"building {folder.name}")
        manifest = _graphs.in_fresh_process(_graphs.export_ours, model, folder, options)
        plant.check_sizes(self.entry, manifest["layers"])
        return folder / "onnx"

    def portable(self) -> Path | None:
        """Our compact fp32 with attention spelled out, as other tools know it; None where it is not."""
        path = self.once("portable", lambda path: self._export_portable(path)) / "onnx" / "model.onnx"
        return None if "Attention" in _graphs.operators(path) else path

    def compact(self) -> Path:
        """Our compact fp32 with ``Attention``, before any lowering."""
        model = self.checkpoint(dense=False)
        return self.once("compact.onnx", lambda path: _graphs.in_fresh_process(_graphs.export_compact, model, path))

    def quantized(self, source: Path) -> Path:
        """``source`` through ``quantize_dynamic``."""
        return self.once(
            f"{source.parts[len(self.folder.parts)].removesuffix('.onnx')}-int8.onnx",
            lambda path: _graphs.in_fresh_process(_graphs.quantize, source, path),
        )

    def fused(self, source: Path) -> Path:
        """``source`` through ``optimize_model``."""

        def build(path: Path) -> None:
            _report.say(f"fused: {_graphs.in_fresh_process(_graphs.fuse, source, path)}")

        return self.once("fused.onnx", build)

    def for_openvino(self, source: Path, name: str, calibration: Sequence[Path] = ()) -> Path | str:
        """``source`` converted, or why that failed."""
        if self.openvino is None:
            return "no interpreter given: --openvino-python"
        try:
            return self.once(name, lambda path: _convert(str(self.openvino), source, path, calibration))
        except _ConversionError as error:
            return str(error)

    def calibration(self) -> list[Path]:
        """Random batches for static quantization."""
        return [self.batch(f"calibration-{i}", 1, 128, seed=1000 + i) for i in range(_CALIBRATION)]

    def batch(self, name: str, batch: int, length: int, seed: int) -> Path:
        """A file with one random batch."""
        path = self.folder / f"{name}.npz"
        _graphs.write_batch(path, batch, length, vocabulary=plant.VOCABULARY, seed=seed)
        return path

    def _export_portable(self, path: Path) -> None:
        options = {"target": "portable", "precision": ["fp32"]}
        _graphs.in_fresh_process(_graphs.export_ours, self.checkpoint(dense=False), path, options)


class _ConversionError(Exception):
    """OpenVINO refused a graph."""


def _convert(python: str, source: Path, path: Path, calibration: Sequence[Path]) -> None:
    # OpenVINO insists on its suffix.
    failure = _graphs.prepare_openvino(python, source, path, calibration)
    if failure is not None:
        raise _ConversionError(failure)


def recipes(shop: Workshop) -> dict[str, Callable[[], _measure.Variant | str]]:
    """How to build each variant, by its name. One that cannot be built gives the reason instead."""

    def stock(name: str, path: Callable[[], Path | None]) -> _measure.Variant | str:
        found = path()
        if found is None:
            return "--target portable leaves Attention in the graph"
        return _measure.Variant(name, found, "pruned", INT8)

    def openvino(
        name: str, source: Path | None, file: str, *, static: bool, precision: str = "f32"
    ) -> _measure.Variant | str:
        found = shop.for_openvino(source or shop.compact(), file, shop.calibration() if static else ())
        if isinstance(found, str):
            return found
        reference = "dense" if name.startswith("dense") else "pruned"
        tolerance = INT8 if static or precision != "f32" else EXACT
        properties = {"INFERENCE_PRECISION_HINT": precision}
        return _measure.Variant(name, found, reference, tolerance, "openvino", shop.openvino, properties)

    def fused() -> Path | None:
        portable = shop.portable()
        return None if portable is None else shop.quantized(shop.fused(portable))

    def unfused() -> Path | None:
        portable = shop.portable()
        return None if portable is None else shop.quantized(portable)

    ours = functools.cache(shop.ours)

    return {
        DENSE: lambda: _measure.Variant(DENSE, shop.dense(), "dense", EXACT),
        DENSE_OLD: lambda: _measure.Variant(DENSE_OLD, shop.dense(OLD_OPSET), "dense", EXACT),
        "dense int8": lambda: _measure.Variant("dense int8", shop.quantized(shop.dense()), "dense", INT8),
        "ours fp32": lambda: _measure.Variant("ours fp32", ours() / "model.onnx", "pruned", EXACT),
        OURS: lambda: _measure.Variant(OURS, ours() / "model_quantized.onnx", "pruned", INT8),
        "ours int8, not packed": lambda: _measure.Variant(
            "ours int8, not packed", shop.ours(pack=False) / "model_quantized.onnx", "pruned", INT8
        ),
        STOCK[0]: lambda: stock(STOCK[0], fused),
        STOCK[1]: lambda: stock(STOCK[1], unfused),
        STOCK[2]: lambda: stock(STOCK[2], lambda: shop.quantized(shop.compact())),
        "OpenVINO fp32": lambda: openvino("OpenVINO fp32", shop.portable(), "openvino.xml", static=False),
        OPENVINO: lambda: openvino(OPENVINO, shop.portable(), "openvino-int8.xml", static=True),
        f"{OPENVINO}, rest bf16": lambda: openvino(
            f"{OPENVINO}, rest bf16", shop.portable(), "openvino-int8.xml", static=True, precision="bf16"
        ),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Build, time, check and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    plant.add_entry_options(parser)
    parser.add_argument("--threads", type=int, default=2, help="of each variant (default: %(default)s)")
    parser.add_argument("--shapes", default="1x32,1x128,8x128,1x384", help="batch x length (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--variants", help="comma-separated beginnings of names; all others are left out")
    parser.add_argument(
        "--also", action="append", default=[], metavar="NAME=FILE", help="time this graph of the pruned model too"
    )
    parser.add_argument(
        "--measure-s", type=float, default=1.0, help="time to sample each case in each round (default: %(default)s)"
    )
    parser.add_argument(
        "--openvino-python", default=find_openvino(), help="default: $OPENVINO_PYTHON, else this one where it has both"
    )
    parser.add_argument("--work", type=Path, help="keep built models here (default: a temporary folder)")
    parser.add_argument(
        "--out", type=Path, help="result, JSON; a table is written beside it (default: print the table only)"
    )
    args = parser.parse_args(argv)
    run = _report.describe_run(sys.argv if argv is None else ["benchmarks/paper_shapes.py", *argv])
    _report.warn_if_busy(run["load_before"])
    entry = plant.chosen_entry(args)
    with tempfile.TemporaryDirectory(prefix="paper-shapes-") as temporary:
        folder = args.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        result = {"run": run, **compare(Workshop(folder.resolve(), entry, args.openvino_python), args)}
    table = render(result)
    print(table)
    wrong = [f"{name} at {case}" for name, entry in result["variants"].items() for case in entry["wrong"]]
    if wrong:
        _report.say(f"FAILED, nothing recorded: outputs too far from PyTorch's: {', '.join(wrong)}")
        return 1
    if args.out is not None:
        _report.write_result(args.out, result, table)
    return 0


def compare(shop: Workshop, args: argparse.Namespace) -> dict[str, Any]:
    """Build and time the variants asked for. Returns all but the description of the run."""
    shapes = [parse_shape(text) for text in args.shapes.split(",")]
    variants, absent = [], {}
    for name, build in recipes(shop).items():
        if args.variants and not name.startswith(tuple(args.variants.split(","))):
            continue
        built = build()
        if isinstance(built, str):
            absent[name] = built
        else:
            variants.append(built)
    for text in args.also:
        name, _, file = text.partition("=")
        variants.append(_measure.Variant(name, Path(file), "pruned", INT8))

    cases = {f"{b}x{s}": [shop.batch(f"case-{b}x{s}", b, s, seed=b * 10_000 + s)] for b, s in shapes}
    clock = _measure.Clock(measure_s=args.measure_s)
    measured = _measure.measure(variants, cases, threads=args.threads, rounds=args.rounds, clock=clock, say=_report.say)
    references = {kind: _reference(shop, kind, cases) for kind in {variant.reference for variant in variants}}
    entries = {}
    for variant in variants:
        found = measured[variant.name]
        errors = _measure.relative_errors(references[variant.reference], found.outputs)
        entries[variant.name] = {
            "bytes": _size(variant.model),
            "engine": found.engine,
            "relative_error": errors,
            "tolerance": variant.tolerance,
            "wrong": [case for case, error in errors.items() if not error <= variant.tolerance],
            "rounds_ms": found.rounds_ms,
        }
    return {
        "entry": dataclasses.asdict(shop.entry) | {"title": shop.entry.title},
        "threads": args.threads,
        "clock": dataclasses.asdict(clock) | {"rounds": args.rounds},
        "cases": list(cases),
        "variants": entries,
        "absent": absent,
    }


def render(result: Mapping[str, Any]) -> str:
    """The tables: times, then what ours gains over the others."""
    cases, variants = result["cases"], result["variants"]
    summaries = {
        name: {case: _measure.summarise(entry["rounds_ms"][case]) for case in cases} for name, entry in variants.items()
    }
    rows = []
    for name, entry in variants.items():
        times = [_time_cell(summaries[name][case], summaries.get(DENSE, {}).get(case)) for case in cases]
        rows.append([name, f"{entry['bytes'] / 1e6:.0f} MB", *times, f"{max(entry['relative_error'].values()):.1e}"])
    rows += [[name, *["-"] * (len(cases) + 1), why] for name, why in result["absent"].items()]
    parts = [
        f"# {result['entry']['title']}",
        f"{result['threads']} threads, {result['clock']['rounds']} rounds, batch x length without padding. "
        f"Milliseconds: median of the rounds' medians [p10, p90 of all samples], × against {DENSE}.",
        _report.markdown_table(["variant", "file", *cases, "error"], rows),
        _report.markdown_table([f"speed of {OURS}", *cases], list(_gains(summaries, cases))),
        "`error`: root mean square of the difference from PyTorch in fp32, as a share of the outputs'. "
        "`stock`: the fastest of the stock recipes at each size.",
        _report.machine_line(result),
    ]
    spreads = {f"{name} at {case}": found.spread for name, entry in summaries.items() for case, found in entry.items()}
    noisy = [place for place, spread in spreads.items() if spread > _report.NOISY]
    if noisy:
        places = f"{len(noisy)} of {len(spreads)} cells" if len(noisy) > _NAMED else ", ".join(noisy)
        parts.append(f"Spread beyond {_report.NOISY:.0%}: {places}.")
    return "\n\n".join(parts)


def find_openvino() -> str | None:
    """An interpreter with OpenVINO and NNCF: the one the environment names, or this one where it has both."""
    here = all(importlib.util.find_spec(package) for package in ("openvino", "nncf"))
    return os.environ.get("OPENVINO_PYTHON") or (sys.executable if here else None)


def parse_shape(text: str) -> tuple[int, int]:
    """Batch and length of ``8x128``. Exits with a message where it is not that."""
    batch, _, length = text.partition("x")
    if not (batch.isdigit() and length.isdigit() and int(batch) and int(length)):
        sys.exit(f"error: expected a shape such as 8x128, got '{text}'")
    return int(batch), int(length)


def _gains(summaries: Mapping[str, Mapping[str, _measure.Summary]], cases: Sequence[str]) -> list[list[str]]:
    if OURS not in summaries:
        return []

    def row(title: str, names: Sequence[str]) -> list[str]:
        cells = []
        for case in cases:
            times = [summaries[name][case].median for name in names if name in summaries]
            cells.append(f"{min(times) / summaries[OURS][case].median:.2f}×" if times else "-")
        return [title, *cells]

    return [
        row("against dense fp32", [DENSE]),
        row("against dense int8", ["dense int8"]),
        row("against the stock recipe", STOCK),
        row(f"against {DENSE_OLD}", [DENSE_OLD]),
        row("against OpenVINO static int8", [OPENVINO]),
        row("against OpenVINO static int8, rest bf16", [f"{OPENVINO}, rest bf16"]),
    ]


def _time_cell(found: _measure.Summary, dense: _measure.Summary | None) -> str:
    ratio = "" if dense is None else f" {dense.median / found.median:.2f}×"
    return f"{found.median:.2f} [{found.p10:.2f}, {found.p90:.2f}]{ratio}"


def _reference(shop: Workshop, kind: str, cases: Mapping[str, Sequence[Path]]) -> dict[str, _measure.Outputs]:
    _report.say(f"running the {kind} model in PyTorch")
    folder = shop.folder / f"reference-{kind}"
    _graphs.in_fresh_process(_graphs.write_reference, shop.checkpoint(dense=kind == "dense"), cases, folder)
    return {
        name: [dict(np.load(folder / f"{name}.{i}.npz")) for i in range(len(files))] for name, files in cases.items()
    }


def _size(model: Path) -> int:
    files = [model, model.with_name(f"{model.name}_data"), model.with_suffix(".bin")]
    return sum(file.stat().st_size for file in files if file.exists())


if __name__ == "__main__":
    sys.exit(main())
