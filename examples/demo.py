"""Export the bundled checkpoint and show what that gained: size, accuracy and latency, masked against compact and int8.

    python examples/demo.py [--checkpoint DIR] [--sentences TSV] [--out DIR] [--threads N]

Accuracy is over every sentence, in padded batches of 32 in file order. Each variant is measured in a process of its
own, because the thread pools of two models alive in one process disturb each other. The two masked variants keep their
zeros in place: one in PyTorch, one exported without compactor and run in ONNX Runtime as the others are. Speed-ups are
against the second, so they hold what compactor gained and not what ONNX Runtime gains by itself.
Exits with 1 if the compact model answers any sentence differently from the masked one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feeds = dict[str, NDArray[np.int64]]
Predict = Callable[[Feeds], NDArray[np.float32]]  # token ids to logits, (batch, labels)

HERE = Path(__file__).resolve().parent
BATCH = 32
WARM_UP = 3
SINGLE_SENTENCES = 100  # latency of one sentence: the median over this many, evenly spread over the file
ROUNDS = 3
ROUND_BUDGET_S = 4.0  # a round ends early after this long, should the machine be busy or slow
UNSTEADY = 1.15  # rounds further apart than this are warned of


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one variant answered, and how fast: the median over the rounds, and the slowest round by the fastest."""

    answers: list[int]
    single_ms: float
    batch_ms: float
    spread: float
    size_bytes: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo, or with ``--measure`` one variant of it. Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=HERE / "sst2-small", help="default: %(default)s")
    parser.add_argument("--sentences", type=Path, default=HERE / "sst2.tsv", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="replaced if there (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each variant (default: %(default)s)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        print(json.dumps(dataclasses.asdict(measure(args.measure, args))))
        return 0
    return demonstrate(args)


def demonstrate(args: argparse.Namespace) -> int:
    """Export, print what was removed, measure every variant and print the table."""
    import compactor

    print(f"Exporting {args.checkpoint.name}")
    start = time.perf_counter()
    manifest = compactor.export(args.checkpoint, args.out, overwrite=True, progress=_say).manifest
    print(f"Exported and verified in {time.perf_counter() - start:.0f} s.\n")

    print("What went")
    print_table(("layer", "kept", "of", "note"), list(layer_rows(manifest["layers"])))

    files = {stage["name"]: stage["file"] for stage in manifest["stages"]}
    variants = {
        "masked, PyTorch": "torch",
        "masked, plain export": "plain",
        "compact, fp32": f"onnx:{files['compact']}",
        "compact, int8": f"onnx:{files['int8']}",
    }
    labels = [label for _, label in read_sentences(args.sentences)]
    measured = {}
    for title, variant in variants.items():
        _say(f"measuring {title} on {len(labels)} sentences")
        measured[title] = measure_in_fresh_process(variant, args)

    masked, plain, compact = measured["masked, PyTorch"], measured["masked, plain export"], measured["compact, fp32"]
    rows = [result_row(title, result, masked, plain, labels) for title, result in measured.items()]
    print(f"\nWhat it gained ({len(labels)} sentences, {args.threads} threads, medians; × against the plain export)")
    print_table(("model", "size", "accuracy ± s.e.", "answers changed", "1 sentence", f"{BATCH} sentences"), rows)
    unsteady = [title for title, result in measured.items() if result.spread > UNSTEADY]
    if unsteady:
        print(f"  The machine was busy: the times of {'; '.join(unsteady)} varied by more than {UNSTEADY - 1:.0%}.")
    print(f"\nThe artefact is in {args.out.resolve()}\nAsk it what happened: compactor explain {args.out}")

    changed = count_changed(masked, compact)
    if changed:
        print(f"FAILED: compact differs from masked on {changed} sentences; it must not on any", file=sys.stderr)
    return 1 if changed else 0


def layer_rows(layers: list[dict[str, Any]]) -> Iterator[tuple[str, str, str, str]]:
    """One row of text for each sublayer of the manifest."""
    for layer in layers:
        if layer["kind"] == "attention":
            before, after = layer["heads"]
            uniform = layer.get("uniform_heads", 0)
            note = f"{uniform} of them a plain average (no live query-key channel)" if uniform else ""
            yield layer["path"], f"{after} heads", str(before), note
        else:
            before, after = layer["width"]
            yield layer["path"], f"{after} neurons", str(before), ""


def result_row(title: str, result: Measured, masked: Measured, plain: Measured, labels: list[int]) -> tuple[str, ...]:
    """The row of one variant in the result table; answers are compared with ``masked``, times with ``plain``."""
    correct = sum(answer == label for answer, label in zip(result.answers, labels, strict=True))
    accuracy = correct / len(labels)
    error = math.sqrt(accuracy * (1 - accuracy) / len(labels))
    return (
        title,
        f"{result.size_bytes / 1e6:.1f} MB",
        f"{100 * accuracy:.2f} ± {100 * error:.2f} % ({correct})",
        "-" if result is masked else str(count_changed(masked, result)),
        f"{result.single_ms:6.2f} ms {plain.single_ms / result.single_ms:5.1f}×",
        f"{result.batch_ms:7.1f} ms {plain.batch_ms / result.batch_ms:5.1f}×",
    )


def count_changed(masked: Measured, other: Measured) -> int:
    """How many sentences ``other`` answers differently from the masked model."""
    return sum(a != b for a, b in zip(masked.answers, other.answers, strict=True))


def measure_in_fresh_process(variant: str, args: argparse.Namespace) -> Measured:
    """Run this file again with ``--measure`` and read what it printed."""
    command = [sys.executable, __file__, "--measure", variant, "--threads", str(args.threads), "--out", str(args.out)]
    command += ["--checkpoint", str(args.checkpoint), "--sentences", str(args.sentences)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def measure(variant: str, args: argparse.Namespace) -> Measured:
    """Score and time one variant: ``torch``, ``plain`` or ``onnx:FILE``, a file of the artefact."""
    if variant == "torch":
        predict, size = open_masked_torch(args.checkpoint, args.threads)
    elif variant == "plain":
        predict, size = open_plain_export(args.checkpoint, args.threads)
    else:
        predict, size = open_onnx(args.out / variant.removeprefix("onnx:"), args.threads)

    sentences = [sentence for sentence, _ in read_sentences(args.sentences)]
    encode = open_tokenizer(args.checkpoint)
    batches = [encode(sentences[start : start + BATCH]) for start in range(0, len(sentences), BATCH)]
    step = max(1, len(sentences) // SINGLE_SENTENCES)
    singles = [encode([sentence]) for sentence in sentences[::step]]

    answers = [int(answer) for batch in batches for answer in predict(batch).argmax(axis=-1)]
    single_ms = round_medians_ms(predict, singles)
    batch_ms = round_medians_ms(predict, batches)
    spread = max(max(rounds) / min(rounds) for rounds in (single_ms, batch_ms))
    return Measured(answers, statistics.median(single_ms), statistics.median(batch_ms), spread, size)


def round_medians_ms(predict: Predict, inputs: list[Feeds]) -> list[float]:
    """For each round over ``inputs``, the median time of one call in milliseconds; a short warm-up comes first."""
    for feeds in inputs[:WARM_UP]:
        predict(feeds)
    medians = []
    for _ in range(ROUNDS):
        times: list[float] = []
        for feeds in inputs:
            start = time.perf_counter()
            predict(feeds)
            times.append(time.perf_counter() - start)
            if sum(times) > ROUND_BUDGET_S:
                break
        medians.append(1e3 * statistics.median(times))
    return medians


def open_onnx(path: Path, threads: int) -> tuple[Predict, int]:
    """An ONNX file in an ONNX Runtime session."""
    from compactor.runtime.sessions import open_session

    session = open_session(path, threads=threads)
    names = {entry.name for entry in session.get_inputs()}

    def predict(feeds: Feeds) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run(["logits"], {k: v for k, v in feeds.items() if k in names})[0]
        return logits

    return predict, path.stat().st_size


def load_masked_model(checkpoint: Path) -> Any:
    """The masked model in PyTorch, float32, its zeros in place."""
    import transformers

    from compactor.checkpoint import read_checkpoint

    source = read_checkpoint(checkpoint)
    config = transformers.AutoConfig.for_model(**source.config)
    model = transformers.AutoModelForSequenceClassification.from_config(config).float().eval()
    model.load_state_dict({name: tensor.float() for name, tensor in source.tensors.items()})
    return model


def open_masked_torch(checkpoint: Path, threads: int) -> tuple[Predict, int]:
    """The masked model as PyTorch runs it."""
    import torch

    torch.set_num_threads(threads)
    model = load_masked_model(checkpoint)

    def predict(feeds: Feeds) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = model(**{k: torch.from_numpy(v) for k, v in feeds.items()}).logits.numpy()
            return logits

    return predict, sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())


def open_plain_export(checkpoint: Path, threads: int) -> tuple[Predict, int]:
    """The masked model exported as it is, without compactor, in ONNX Runtime."""
    import torch

    model = load_masked_model(checkpoint)
    model.config.return_dict = False
    ids = torch.ones((2, 8), dtype=torch.int64)
    feeds = {"input_ids": ids, "attention_mask": ids.clone(), "token_type_ids": ids.clone()}
    axes = {0: torch.export.Dim("batch_size"), 1: torch.export.Dim("sequence_length")}
    shapes = {name: dict(axes) for name in feeds}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.onnx on its own axis names and on torchvision
        logging.disable(logging.WARNING)
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            model,
            (),
            path,
            kwargs=feeds,
            dynamo=True,
            opset_version=23,
            dynamic_shapes=shapes,
            output_names=["logits"],
            external_data=False,
            verbose=False,
        )
        return open_onnx(path, threads)


def open_tokenizer(folder: Path) -> Callable[[list[str]], Feeds]:
    """A function from sentences to one right-padded batch of token ids."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer.enable_truncation(config["max_position_embeddings"])
    tokenizer.enable_padding(pad_id=config["pad_token_id"])

    def encode(sentences: list[str]) -> Feeds:
        encodings = tokenizer.encode_batch(sentences)
        return {
            "input_ids": np.array([encoding.ids for encoding in encodings], dtype=np.int64),
            "attention_mask": np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64),
            "token_type_ids": np.array([encoding.type_ids for encoding in encodings], dtype=np.int64),
        }

    return encode


def read_sentences(path: Path) -> list[tuple[str, int]]:
    """The sentences of a ``sentence<TAB>label`` file with a header, and their labels."""
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")[1:]
    return [(sentence, int(label)) for sentence, label in (line.rsplit("\t", 1) for line in lines)]


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print ``rows`` in aligned columns under ``header``."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, ["-" * width for width in widths], *rows):
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
