"""What int8 does to answers and to time: our two kinds of scales, the usual tools, and layers chosen by data.

    python benchmarks/int8_answers.py [--embedder MODEL_DIR --pairs FILE] [--writer MODEL_DIR --reports FILE]
                                      [--rounds 6] [--threads 2] [--work DIR]
                                      [--out benchmarks/results/int8-answers-NAME.json]

On the bundled classifier and its sentences, on a folder of sentence-transformers with pairs for its vectors, and on an
encoder-decoder with documents (``examples/make_summarizer.py`` makes both: its ``--out``, and ``data/test.jsonl`` in
its ``--work``). Times, answers and their paired differences are those of ``compactor bench``. *Dependence* is how far
the outputs of an example move between being alone and being among 31 others, as a share of the largest; of texts, the
share that is written otherwise. *Texts kept* are equal to fp32's in every character.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # so that it runs by its path, and not only with -m

import numpy as np

from benchmarks import _graphs, _int8_figure, _record, _run
from benchmarks._texts import Texts
from benchmarks._workshop import EXAMPLE, GRAPHS, SENTENCES, Given, say
from benchmarks.peers import CONVERTER_PACKAGES, not_installed
from compactor.benching.bench import carry_out
from compactor.benching.engines import open_engine
from compactor.benching.plan import Variant
from compactor.benching.preparing import make_plan
from compactor.benching.request import Request
from compactor.evaluation.datafiles import read_table
from compactor.evaluation.texts import DOCUMENTS
from compactor.reporting.rows import result_of
from compactor.runtime.answers import Written
from compactor.runtime.model import load

KIND = "compactor-int8-answers"
KEEP = 99.5
BLOCK = 128  # of weights that MatMulNBits gives a scale
BATCHES = (1, 8)
OPENVINO = "OpenVINO, static"
CALIBRATION = 300  # texts that static scales are taken from
BEAMS = 4  # of the encoder-decoder
_ALONE = 64  # texts that are looked at alone
_BESIDE = 32

Choose = Callable[[Sequence[Variant]], list[Variant]]


def main(argv: Sequence[str] | None = None) -> int:
    """Build, time, judge, and write what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--embedder", type=Path, help="a folder of sentence-transformers")
    parser.add_argument("--pairs", type=Path, help="a data file of queries and what they search")
    parser.add_argument("--writer", type=Path, help="an encoder-decoder")
    parser.add_argument("--reports", type=Path, help="a data file of documents and their summaries")
    _run.add_common_options(parser)
    args = parser.parse_args(argv)
    result: dict[str, Any] = {**_record.head(KIND, "int8_answers.py", argv), "models": {}}
    with _run.work_folder(args.work, "int8-answers-") as work:
        models: list[tuple[Callable[..., dict[str, Any] | None], Given, Path, Mapping[str, Any]]] = [
            (measure_encoder, Given(work, EXAMPLE), SENTENCES, {})
        ]
        if args.embedder is not None and args.pairs is not None:
            models.append((measure_encoder, Given(work, args.embedder), args.pairs, {"embed": True}))
        if args.writer is not None and args.reports is not None:
            models.append((measure_writer, Given(work, args.writer), args.reports, {}))
        if not args.build_only:
            _record.warn_if_busy()
        for measure, shop, data, options in models:
            found = measure(shop, data, options, args, result["command"])
            if found is None:
                continue
            for variant in found["report"]["variants"]:  # not where this machine keeps them
                variant["target"] = f"WORK/{Path(variant['target']).relative_to(work).as_posix()}"
            result["models"][shop.folder.name] = found
            if args.out is not None:
                _record.write_result(args.out, result, render(result))
                _int8_figure.draw(result, args.out.with_suffix(".svg"))
    if not args.build_only:
        print(render(result))
    return 0


def measure_encoder(
    shop: Given, data: Path, options: Mapping[str, Any], args: argparse.Namespace, command: str
) -> dict[str, Any] | None:
    """The report of a classifier or an embedder, and how much its outputs depend on others; None to build only."""
    graphs, static = build(shop, data, options), build_openvino(shop, data, options)
    if args.build_only:
        return None
    variants: list[Variant] = []

    def choose(found: Sequence[Variant]) -> list[Variant]:
        variants.extend([*found, static])
        return variants

    report = _measure(list(graphs.values()), data, args, command, choose)
    labels = [*graphs, OPENVINO]
    texts = Texts.read(shop.path, data)
    moved = {
        label: dependence(variant, texts)
        for label, variant in zip(labels, variants, strict=True)
        if variant.reason is None
    }
    return {"rows": labels, "report": report, "dependence": moved}


def measure_writer(
    shop: Given, data: Path, options: Mapping[str, Any], args: argparse.Namespace, command: str
) -> dict[str, Any] | None:
    """The report of an encoder-decoder, how many of its texts int8 keeps, and how many depend on others."""
    folders = {
        name: shop.exported(name, _graphs.export_ours, {**options, "int8": name}) for name in ("tensor", "token")
    }
    if args.build_only:
        return None

    def choose(found: Sequence[Variant]) -> list[Variant]:
        return [each for each in found if each.precision == "int8" or each.target == str(folders["tensor"])]

    report = _measure(list(folders.values()), data, args, command, choose, beams=[BEAMS])
    graphs = {
        "fp32": (folders["tensor"], "fp32"),
        "ours, tensor": (folders["tensor"], "int8"),
        "ours, token": (folders["token"], "int8"),
    }
    table = read_table(data)
    column = table.find(*DOCUMENTS)
    assert column is not None  # the harness has read it
    documents = table.texts(column)
    written, moved = {}, {}
    for label, (folder, precision) in graphs.items():
        say(f"writing {len(documents)} texts: {label}")
        model = load(folder, precision=precision, threads=args.threads, max_batch=_BESIDE)
        written[label] = _texts(model(documents))
        alone = _texts([model([document])[0] for document in documents[:_ALONE]])
        moved[label] = float(np.mean([one != other for one, other in zip(alone, written[label], strict=False)]))
    kept = {
        label: [sum(one == other for one, other in zip(texts, written["fp32"], strict=True)), len(documents)]
        for label, texts in written.items()
    }
    return {"rows": list(graphs), "report": report, "dependence": moved, "kept": kept}


def _texts(answers: Sequence[Any]) -> list[str]:
    assert all(isinstance(answer, Written) for answer in answers)
    return [answer.text for answer in answers]


def _measure(
    targets: Sequence[Path], data: Path, args: argparse.Namespace, command: str, choose: Choose, **more: Any
) -> dict[str, Any]:
    """``compactor bench`` of what ``choose`` makes of the variants that the targets stand for."""
    start = time.monotonic()
    batches = (1,) if "beams" in more else BATCHES
    request = Request(targets, batches=batches, data=data, threads=args.threads, rounds=args.rounds, **more)
    with tempfile.TemporaryDirectory(prefix="compactor-bench-") as temporary:
        plan = make_plan(request, Path(temporary), say)
        chosen = dataclasses.replace(plan.targets, variants=choose(plan.targets.variants))
        return carry_out(dataclasses.replace(plan, targets=chosen), command, say, start=start)


def build(shop: Given, data: Path, options: Mapping[str, Any]) -> dict[str, Path]:
    """The graphs by the name of their row; the first is fp32."""

    def graph(name: str, which: str = "int8", **more: Any) -> Path:
        made = shop.exported(name, _graphs.export_ours, {**options, **more})
        return Path(made) / "onnx" / GRAPHS[which]

    fp32 = graph("tensor", "fp32", int8="tensor")
    portable = _portable(shop, options)

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


def build_openvino(shop: Given, data: Path, options: Mapping[str, Any]) -> Variant:
    """Our compact graph quantized statically by NNCF, its scales from texts of ``data``; or why it is not there."""
    path, reason = shop.folder, not_installed(*CONVERTER_PACKAGES)
    if reason is None:
        batch_of = functools.partial(text_of, shop.path, data)
        try:
            path = shop.converted(
                _portable(shop, options), "-openvino-int8.xml", _graphs.convert_openvino, CALIBRATION, batch_of
            )
        except _graphs.BuildError as error:
            reason = str(error)
    return Variant(
        id="openvino-int8",
        name=OPENVINO,
        target=str(path),
        engine="openvino",
        provider="openvino",
        precision="int8",
        path=path,
        options={"INFERENCE_PRECISION_HINT": "f32"},  # what int8 does not cover stays in fp32 on every CPU
        reason=None if reason is None else f"not run: {reason}",
    )


def text_of(model: Path, data: Path, number: int) -> Mapping[str, Any]:
    """A batch of one of the texts of ``data``, by any number."""
    texts = _read(model, data)
    return texts.batch([number % len(texts)])


_read = functools.cache(Texts.read)


def _portable(shop: Given, options: Mapping[str, Any]) -> Path:
    """Our compact fp32 for other runtimes: attention spelled out, nothing packed."""
    portable = {**options, "target": "portable", "precision": ("fp32",)}
    return shop.exported("portable", _graphs.export_ours, portable) / "onnx" / GRAPHS["fp32"]


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


def dependence(variant: Variant, texts: Texts) -> float:
    """The largest move of an output between a text alone and among others, as a share of the largest output."""
    engine = open_engine(variant, threads=1, spinning=False)

    def run(rows: Sequence[int]) -> Any:
        return list(engine.run(engine.prepare(texts.batch(rows))).values())[-1]

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
            size, moved = variant["counters"]["file_bytes"], model["dependence"].get(label)
            file = "-" if size is None else f"{size / 1e6:.1f} MB"
            kept = [f"{same} of {count}" for same, count in [model["kept"][label]]] if "kept" in model else []
            rows.append([label, file, *speeds, *cells, *kept, "-" if moved is None else f"{moved:.1e}"])
        header = ["graph", "file", *cases, *_kinds(model), *(["texts kept"] if "kept" in model else []), "dependence"]
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
