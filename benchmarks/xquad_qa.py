"""Does pruning work on extractive question answering? A short run on XQuAD, split by article.

    python benchmarks/xquad_qa.py --data xquad.en.json --work DIR [--steps 200] [--target-density 0.5]
                                  [--out benchmarks/results/xquad-qa.json]

Two of three articles are learned, the third is answered: first a dense model is fine-tuned, then a hybrid one is pruned
with it as teacher. Hundreds of questions are far too few for a good score, so none is claimed: what the result shows is
that the loss falls, that exact match and F1 (those of SQuAD's own script, by torchmetrics) come from whole texts in
overlapping windows, and that the density goes where it should. Runs are kept in DIR and not made again.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # so that it runs by its path, and not only with -m

from benchmarks import _record, _run, _training
from compactor.reporting.numbers import percent, score
from compactor.runtime.threads import explain_threads
from compactor.trainer.config import PruneConfig
from compactor.trainer.records import RECORD

DENSE, HYBRID = "dense", "hybrid"
TASK = "question-answering"
SEED = 17
METRICS = ("exact_match", "squad_f1")

_EVALUATIONS = 4
_SHOWN = 10  # lines of a loss curve

Article = Mapping[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Split, train both, and write what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="questions in SQuAD's form")
    _training.add_model_option(parser)
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each run (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="windows of a step (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of the weights (default: %(default)s)")
    parser.add_argument("--target-density", type=float, default=0.5, help="of the hybrid model (default: %(default)s)")
    parser.add_argument("--max-length", type=int, default=384, help="tokens of a window (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of training (default: one for each core)")
    parser.add_argument("--work", type=Path, help="keep runs here (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="result, JSON; its tables are written beside it")
    args = parser.parse_args(argv)
    threads = explain_threads(args.threads).threads
    with _run.work_folder(args.work, "xquad-qa-") as work:
        sizes = write_split(args.data, work)
        plain = _training.plain_model(work, args.model)
        head = _record.head("compactor-xquad-qa", "xquad_qa.py", argv)
        result: dict[str, Any] = {**head, "threads": threads, "data": sizes, "runs": {}}
        for name, config in configs(args).items():
            folder, teacher = work / "runs" / name, None if name == DENSE else work / "runs" / DENSE
            if not (folder / RECORD).is_file():
                _training.train(
                    name,
                    folder,
                    threads,
                    model=teacher or plain,  # the hybrid one starts from its teacher
                    data=work / "train.json",
                    evaluation=work / "eval.json",
                    config=config,
                    teacher=teacher,
                    command="python benchmarks/xquad_qa.py",
                )
            result["runs"][name] = describe(json.loads((folder / RECORD).read_text(encoding="utf-8")))
            table = render(result)
            if args.out is not None:
                _record.write_result(args.out, result, table)
    print(table)
    return 0


def configs(args: argparse.Namespace) -> dict[str, PruneConfig]:
    """Of both runs."""
    dense = PruneConfig(
        method=DENSE,
        task=TASK,
        steps=args.steps,
        batch_size=args.batch,
        learning_rate=args.learning_rate,
        max_length=args.max_length,
        stride=min(128, args.max_length // 3),
        freeze_embeddings=True,
        seed=SEED,
        eval_steps=max(1, args.steps // _EVALUATIONS),
    )
    return {DENSE: dense, HYBRID: dense.changed(method=HYBRID, target_density=args.target_density)}


def write_split(data: Path, work: Path) -> dict[str, dict[str, int]]:
    """``train.json`` and ``eval.json`` in ``work``, and how much is in them."""
    work.mkdir(parents=True, exist_ok=True)
    articles = json.loads(data.read_text(encoding="utf-8"))["data"]
    sizes = {}
    for name, part in zip(("train", "eval"), split(articles), strict=True):
        content = {"version": "1.1", "data": part}
        (work / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        paragraphs = [paragraph for article in part for paragraph in article["paragraphs"]]
        questions = sum(len(paragraph["qas"]) for paragraph in paragraphs)
        sizes[name] = {"articles": len(part), "paragraphs": len(paragraphs), "questions": questions}
    return sizes


def split(articles: Sequence[Article]) -> tuple[list[Article], list[Article]]:
    """Two of three articles, and the rest: no paragraph of an article that is learned is asked about."""
    order = list(range(len(articles)))
    random.Random(SEED).shuffle(order)
    cut = round(len(order) * 2 / 3)
    learned, asked = ([articles[i] for i in sorted(part)] for part in (order[:cut], order[cut:]))
    return learned, asked


def describe(record: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's record what the tables and a reader need."""
    names = ("density", "heads", "neurons", "lambda", "seconds", "metrics", "teacher_metrics")
    final = {name: record["final"][name] for name in names}
    kept = ("steps", "settings", "log", "evaluations", "final", "notes", "warnings")
    return {name: final if name == "final" else record[name] for name in kept}


def render(result: Mapping[str, Any]) -> str:
    """How it went, in the end and on the way."""
    rows = [_summary(name, run) for name, run in result["runs"].items()]
    header = ["run", "loss, first to last", "exact match", "F1", "linear weights", "heads", "neurons", "minutes"]
    parts = [
        "# Extractive question answering on XQuAD (English)",
        "Learned: {train[articles]} articles, {train[questions]} questions. Asked: {eval[articles]} others, "
        "{eval[questions]} questions.".format(**result["data"])
        + " So few questions make no good model: the scores are no claim.",
        _record.markdown_table(header, rows),
    ]
    for name, run in result["runs"].items():
        parts += [f"## {name}, step by step", _curve(run)]
        parts += [f"- {said}" for said in (*run["notes"], *run["warnings"])]
    parts += [
        "Loss: of the task, without the distillation. Scores on the way are those of the masks of then.",
        f"{result['threads']} threads. {_record.machine_line(result)}",
        f"`{result['command']}`",
    ]
    return _record.page(*parts)


def _summary(name: str, run: Mapping[str, Any]) -> list[str]:
    final, losses = run["final"], [line["task_loss"] for line in run["log"] if line["task_loss"] is not None]
    loss = f"{losses[0]:.2f} to {losses[-1]:.2f}" if losses else "-"
    found = [final["metrics"][key] for key in METRICS]
    left = [percent(1.0), "all", "all"]
    if final["heads"][1]:  # something was pruned
        counts = (f"{alive:,} of {count:,}" for alive, count in (final["heads"], final["neurons"]))
        left = [percent(final["density"]), *counts]
    scores = [score(metric["value"], metric["se"]) for metric in found]
    return [name, loss, *scores, *left, f"{final['seconds'] / 60:.0f}"]


def _curve(run: Mapping[str, Any]) -> str:
    """Some lines of the log, with what the evaluation of that step said."""
    log, judged = run["log"], {evaluation["step"]: evaluation["metrics"] for evaluation in run["evaluations"]}
    some = {round(i * (len(log) - 1) / max(1, _SHOWN - 1)) for i in range(_SHOWN)}
    rows = []
    for index, line in enumerate(log):
        if index in some or line["step"] in judged:
            losses = ("-" if line[name] is None else f"{line[name]:.3f}" for name in ("task_loss", "distillation_loss"))
            density = "-" if line["density"] is None else percent(line["density"])
            metrics = judged.get(line["step"], {})
            scores = (percent(metrics[key]) if key in metrics else "" for key in METRICS)
            rows.append([str(line["step"]), *losses, density, *scores])
    return _record.markdown_table(["step", "loss", "distillation", "linear weights", "exact match", "F1"], rows)


if __name__ == "__main__":
    sys.exit(main())
