"""What token packing gains on real sentences: SST-2's 872 in file order, in padded batches of 32, int8.

    python benchmarks/sst2_packing.py [--threads 2] [--rounds 5] [--out benchmarks/results/NAME.json]

On two models: a random BERT with the sizes of an entry of the paper, and the bundled example checkpoint. One sample is
the time of all sentences. Tokenization is not on the clock.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # so that it runs by its path, and not only with -m

import numpy as np

from benchmarks import _graphs, _measure, _report, plant

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
EXAMPLE = EXAMPLES / "sst2-small-hybrid"
SENTENCES = EXAMPLES / "sst2.tsv"
BATCH = 32
CASE = "sst2"
TOLERANCE = 0.1  # of int8 on a random model; see paper_shapes.py


def main(argv: Sequence[str] | None = None) -> int:
    """Build, time, check and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    plant.add_entry_options(parser)
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--passes", type=int, default=2, help="samples in each round (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="build here and keep it (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="result, JSON; a table is written beside it")
    args = parser.parse_args(argv)
    run = _report.describe_run(sys.argv if argv is None else ["benchmarks/sst2_packing.py", *argv])
    _report.warn_if_busy(run["load_before"])
    entry = plant.chosen_entry(args)
    with tempfile.TemporaryDirectory(prefix="sst2-packing-") as temporary:
        folder = (args.work or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        result = {"run": run, **compare(folder, entry, args)}
    table = render(result)
    print(table)
    wrong = [f"{model}, {kind}" for model, kinds in result["models"].items() for kind in kinds if kinds[kind]["wrong"]]
    if wrong:
        _report.say(f"FAILED, nothing recorded: outputs too far from PyTorch's: {', '.join(wrong)}")
        return 1
    if args.out is not None:
        _report.write_result(args.out, result, table)
    return 0


def compare(folder: Path, entry: plant.Entry, args: argparse.Namespace) -> dict[str, Any]:
    """Export both models packed and not, and time them. Returns all but the description of the run."""
    cases = {CASE: write_batches(folder)}
    counts = count_positions(cases[CASE])
    planted = folder / "pruned-classifier"
    _report.say(f"planting {entry.title}")
    _graphs.in_fresh_process(plant.plant, planted, entry, task="text-classification")
    variants, references = [], {}
    for title, checkpoint in {entry.title: planted, "the example checkpoint": EXAMPLE}.items():
        for kind, pack in {"packed": True, "unpacked": False}.items():
            _report.say(f"exporting {title}, {kind}")
            out = folder / f"{checkpoint.name}-{kind}"
            manifest = _graphs.in_fresh_process(_graphs.export_ours, checkpoint, out, {"pack": pack})
            if checkpoint is planted:
                plant.check_sizes(entry, manifest["layers"])
            model = out / "onnx" / "model_quantized.onnx"
            variants.append(_measure.Variant(f"{title}: {kind}", model, title, TOLERANCE))
        _report.say(f"running {title} in PyTorch")
        _graphs.in_fresh_process(_graphs.write_reference, checkpoint, cases, folder / "reference")
        files = [folder / "reference" / f"{CASE}.{i}.npz" for i in range(len(cases[CASE]))]
        references[title] = {CASE: [dict(np.load(file)) for file in files]}

    clock = _measure.Clock(warm_up_s=0, warm_up_calls=1, measure_s=0, min_samples=args.passes, max_samples=args.passes)
    measured = _measure.measure(variants, cases, threads=args.threads, rounds=args.rounds, clock=clock, say=_report.say)
    models: dict[str, dict[str, Any]] = {}
    for variant in variants:
        found = measured[variant.name]
        error = _measure.relative_errors(references[variant.reference], found.outputs)[CASE]
        models.setdefault(variant.reference, {})[variant.name.rpartition(": ")[2]] = {
            "bytes": variant.model.stat().st_size,
            "engine": found.engine,
            "relative_error": error,
            "wrong": not error <= variant.tolerance,
            "rounds_ms": found.rounds_ms[CASE],
        }
    return {
        "threads": args.threads,
        "clock": dataclasses.asdict(clock) | {"rounds": args.rounds},
        "workload": {
            "sentences": counts[0],
            "batch": BATCH,
            "real_positions": counts[1],
            "padded_positions": counts[2],
        },
        "models": models,
    }


def render(result: Mapping[str, Any]) -> str:
    """The table: sentences per second, packed and not."""
    workload, clock = result["workload"], result["clock"]
    rows = []
    for title, kinds in result["models"].items():
        found = {kind: _measure.summarise(entry["rounds_ms"]) for kind, entry in kinds.items()}
        speed = {kind: 1e3 * workload["sentences"] / summary.median for kind, summary in found.items()}
        spread = max(summary.spread for summary in found.values())
        gain = speed["packed"] / speed["unpacked"]
        rows.append([title, f"{speed['unpacked']:.0f}", f"{speed['packed']:.0f}", f"{gain:.2f}×", f"{spread:.0%}"])
    padding = 1 + workload["padded_positions"] / workload["real_positions"]
    return "\n\n".join(
        [
            f"# Token packing on SST-2, int8, batches of {workload['batch']} in file order",
            f"{workload['sentences']} sentences, {padding:.2f} positions for each real token, "
            f"{result['threads']} threads. Sentences per second: {clock['rounds']} rounds, the median of the medians "
            f"of {clock['max_samples']} passes.",
            _report.markdown_table(["model", "unpacked", "packed", "gain", "spread"], rows),
            _report.machine_line(result),
        ]
    )


def write_batches(folder: Path) -> list[Path]:
    """Write the sentences as padded batches, in file order, and return the files."""
    from tokenizers import Tokenizer

    lines = SENTENCES.read_text(encoding="utf-8").rstrip("\n").split("\n")[1:]
    sentences = [line.rsplit("\t", 1)[0] for line in lines]
    config = json.loads((EXAMPLE / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(EXAMPLE / "tokenizer.json"))
    tokenizer.enable_padding(pad_id=config["pad_token_id"])
    tokenizer.enable_truncation(config["max_position_embeddings"])
    files = []
    for start in range(0, len(sentences), BATCH):
        encodings = tokenizer.encode_batch(sentences[start : start + BATCH])
        path = folder / f"batch-{start // BATCH}.npz"
        np.savez(
            path,
            input_ids=np.array([encoding.ids for encoding in encodings]),
            attention_mask=np.array([encoding.attention_mask for encoding in encodings]),
            token_type_ids=np.array([encoding.type_ids for encoding in encodings]),
        )
        files.append(path)
    return files


def count_positions(files: Sequence[Path]) -> tuple[int, int, int]:
    """Sentences, real positions and padded positions of batches."""
    masks = [np.load(file)["attention_mask"] for file in files]
    real = sum(int(mask.sum()) for mask in masks)
    return sum(len(mask) for mask in masks), real, sum(mask.size for mask in masks) - real


if __name__ == "__main__":
    sys.exit(main())
