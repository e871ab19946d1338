"""What each way of pruning costs in accuracy and gains in time: SST-2 with MiniLM, trained on this machine.

    python benchmarks/sst2.py --data FOLDER --work DIR [--steps 600] [--only hybrid,struct-0.30] [--build-only]
                              [--dense DIR] [--peer DIR] [--no-train] [--out benchmarks/results/sst2-NAME.json]

A fixed list of runs of ``compactor prune``, all of the same budget, from the same fine-tuned dense model, which is
their teacher too. FOLDER holds ``train.tsv``, ``dev.tsv`` and ``test.tsv``: runs learn from the first, are watched on
the head of the second, and are judged once on the third, where every difference is paired. Runs are kept in DIR and not
made again, unfinished ones are resumed, and the result is rewritten after each. A run that was not made is a row that
says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import shutil
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # so that it runs by its path, and not only with -m

from benchmarks import _graphs, _record, _run, _sst2_figure, _sst2_page, _training
from benchmarks._sst2_runs import DENSE, OTHERS, PEER, RUNS, Run, chosen_runs
from benchmarks._workshop import TASK, Given, parse_shapes, read_outputs, say, synthetic_cases
from compactor.benching.counters import file_bytes, model_hash
from compactor.benching.plan import Case, Settings, Variant
from compactor.benching.processes import run_worker
from compactor.benching.workload import Workload, from_data
from compactor.errors import CompactorError
from compactor.evaluation.answers import predict
from compactor.evaluation.inputs import InputSpec
from compactor.evaluation.quality import difference, evaluate
from compactor.trainer.config import PruneConfig
from compactor.trainer.records import RECORD

DEV_HEAD = 1000  # sentences that runs are watched on while they train
WAYS = {"fp32": ["fp32"], "int8": ["int8", "int8 alone"]}  # how graphs are asked: in batches, and one by one

_EVALUATIONS = 5  # in each run, with as many checkpoints
_LABELS = "0123456789"

UNMEASURED: dict[str, Any] = {"latency": None, "relative_error": {}}


@dataclasses.dataclass(frozen=True)
class Bench:
    """Where everything of one call lies.

    Attributes:
        work: Runs, graphs and answers, kept.
        data: ``train.tsv``, ``dev.tsv`` and ``test.tsv``.
        given: Models that are there already: a dense one to start from, a checkpoint that nn_pruning's own code made.
        common: The settings of all runs.
        dense_steps: Of the dense model, which has a budget of its own.
        threads: Of training and of every process.
    """

    work: Path
    data: Path
    given: Mapping[str, Path]
    common: Mapping[str, Any]
    dense_steps: int
    threads: int

    def config(self, run: Run) -> PruneConfig:
        """The settings of a run."""
        own = {name: run.budget * self.common[name] for name in ("steps", "eval_steps")}
        if run.id == DENSE:
            own = {"steps": self.dense_steps, "eval_steps": None}
        return PruneConfig(**{**self.common, **own, **run.settings})

    def folder(self, run: Run) -> Path:
        """Where a run is, or would be."""
        return self.given.get(run.id, self.work / "runs" / run.id)

    def shop(self, run: Run) -> Given:
        """Where its graphs are made; all kinds of runs may have their folder's name."""
        return Given(self.work / "graphs" / run.id, self.folder(run))

    def is_finished(self, run: Run) -> bool:
        """Whether it has been trained to its end; of a model that was given, whether it is there."""
        return (self.folder(run) / ("model.safetensors" if run.id in self.given else RECORD)).is_file()

    def read(self, run: Run, name: str = "config.json") -> dict[str, Any]:
        """One of its JSON files."""
        content: dict[str, Any] = json.loads((self.folder(run) / name).read_text(encoding="utf-8"))
        return content


def main(argv: Sequence[str] | None = None) -> int:
    """Train, judge, time, and write what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser)
    args = parser.parse_args(argv)
    if args.dense is not None and not (args.dense / "model.safetensors").is_file():
        parser.error(f"--dense: there is no finished model in {args.dense}")
    how = _run.settings(args)
    with _run.work_folder(args.work, "sst2-") as work:
        bench = Bench(
            work=work,
            data=args.data.resolve(),
            given={id: path.resolve() for id, path in ((DENSE, args.dense), (PEER, args.peer)) if path is not None},
            common=common_settings(args),
            dense_steps=args.dense_steps,
            threads=how.threads,
        )
        head = {
            **_record.head("compactor-sst2", "sst2.py", argv),
            "budget": {**bench.common, "dense_steps": bench.dense_steps, "threads": how.threads},
            "data": describe_data(bench.data),
        }
        measured = kept_measurement(args.out)
        failed: dict[str, str] = {}
        if not args.no_train:
            prepare(bench, args)
            for run in chosen_runs(args.only):
                if not bench.is_finished(run):
                    failed.update(train_or_say_why(bench, run))
                    publish(head | collect(bench, how, failed) | measured, args.out)
        result = head | collect(bench, how, failed) | measured
        if not args.build_only:
            publish(result, args.out)
            _record.warn_if_busy()
            measured = measure(bench, args, how, result["command"])
            result |= measured
        print(publish(result, args.out))
    report = measured["latency"]
    return 1 if failed or (report is not None and _record.failures([report])) else 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    parser.add_argument("--data", type=Path, required=True, help="folder with train.tsv, dev.tsv and test.tsv")
    _training.add_model_option(parser)
    parser.add_argument("--dense", type=Path, help="a fine-tuned dense model to start from, instead of making one")
    parser.add_argument("--peer", type=Path, help="a checkpoint of nn_pruning's own code, to compare with")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of each run (default: %(default)s)")
    parser.add_argument("--dense-steps", type=int, default=1250, help="of the dense model (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="sentences of a step (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of the weights (default: %(default)s)")
    parser.add_argument("--score-learning-rate", type=float, default=1e-2, help="of the scores (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=17, help="default: %(default)s")
    parser.add_argument("--only", help="train these runs, by their ids or how they begin, with commas")
    parser.add_argument("--no-train", action="store_true", help="judge and time what is in --work")
    _run.add_run_options(parser, shapes="1x32,32x32")


def common_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What all runs have in common. Embeddings, half of this model, are not pruned: they are left as they are."""
    return {
        "task": TASK,
        "steps": args.steps,
        "batch_size": args.batch,
        "learning_rate": args.learning_rate,
        "score_learning_rate": args.score_learning_rate,
        "freeze_embeddings": True,
        "seed": args.seed,
        "eval_steps": max(1, args.steps // _EVALUATIONS),
    }


def prepare(bench: Bench, args: argparse.Namespace) -> None:
    """What training needs: the head of the development set, and the model before fine-tuning."""
    bench.work.mkdir(parents=True, exist_ok=True)
    lines = (bench.data / "dev.tsv").read_text(encoding="utf-8").split("\n")
    (bench.work / "dev-head.tsv").write_text("\n".join(lines[: DEV_HEAD + 1]) + "\n", encoding="utf-8")
    if not bench.is_finished(RUNS[0]):
        _training.plain_model(bench.work, args.model)


def describe_data(folder: Path) -> dict[str, Any]:
    """Sentences and hash of each file."""
    found = {}
    for name in ("train.tsv", "dev.tsv", "test.tsv"):
        content = (folder / name).read_bytes()
        found[name] = {"sentences": content.count(b"\n") - 1, "sha256": hashlib.sha256(content).hexdigest()}
    return found


# Training


def train_or_say_why(bench: Bench, run: Run) -> dict[str, str]:
    """Make a run. Returns why it failed, by its id; nothing where it did not: hours of other runs are waiting."""
    first = next((each for each in RUNS if each.id == run.first), None)
    try:
        if run.id != DENSE and not bench.is_finished(RUNS[0]):
            raise CompactorError("not run: there is no dense model to start from")
        if first is not None and not bench.is_finished(first):
            raise CompactorError(f"not run: it goes on from {first.id}, which was not run")
        shutil.rmtree(bench.shop(run).folder, ignore_errors=True)  # of an earlier run of that name
        _training.train(
            run.id,
            bench.folder(run),
            bench.threads,
            model=bench.work / _training.NAME if run.id == DENSE else bench.folder(RUNS[0]),
            data=bench.data / "train.tsv",
            evaluation=bench.work / "dev-head.tsv",
            config=bench.config(run),
            first_run=None if first is None else bench.folder(first),
            command=f"python benchmarks/sst2.py --only {run.id}",
        )
    except CompactorError as error:
        say(f"{run.id}: {error}")
        return {run.id: error.what}
    except Exception as error:  # such as a process that was killed
        traceback.print_exc()
        return {run.id: f"{type(error).__name__}: {error}"}
    return {}


# Judging


def collect(bench: Bench, how: Settings, failed: Mapping[str, str]) -> dict[str, Any]:
    """A row for each run, of what is there: how it was trained, what is left of it, and what it answers."""
    if not bench.is_finished(RUNS[0]):
        return {"references": "", "rows": [_absent(run, failed.get(run.id)) for run in (*RUNS, OTHERS)]}
    workload = sentences(bench)
    assert workload.labelled is not None and workload.labelled.references is not None
    references = _digits(workload.labelled.references)
    rows, baseline = [], ""
    for run in (*RUNS, OTHERS):
        if not bench.is_finished(run):
            rows.append(_absent(run, failed.get(run.id)))
            continue
        if run.id == PEER and bench.read(run)["vocab_size"] != bench.read(RUNS[0])["vocab_size"]:
            rows.append(_absent(run, "not run: it reads other tokens than the dense model"))
            continue
        try:
            judged = judge(bench, run, workload, how)
        except CompactorError as error:
            say(f"{run.id}: {error}")
            rows.append(_absent(run, error.what))
            continue
        if run.id == DENSE:
            baseline = judged["answers"]["masked"]
        facts = {**describe_weights(bench.folder(run)), **describe_training(bench, run)}
        rows.append(make_row(run, facts, judged, references, baseline))
    return {"references": references, "rows": rows}


def _absent(run: Run, why: str | None) -> dict[str, Any]:
    """The row of a run that is not there, or cannot be judged."""
    why = why or f"not run: {'no checkpoint given: --peer' if run.id == PEER else 'it was not trained'}"
    status = "not run" if why.startswith("not run") else "failed"
    return {"id": run.id, "family": run.family, "status": status, "why": why.removeprefix("not run: ")}


def sentences(bench: Bench) -> Workload:
    """``test.tsv`` in batches of 32, and one by one."""
    spec = InputSpec.from_config(bench.read(RUNS[0]), task=TASK, folder=bench.folder(RUNS[0]))
    return from_data(bench.work / "sentences", bench.data / "test.tsv", spec, batches=[1])


def describe_training(bench: Bench, run: Run) -> dict[str, Any]:
    """What the record of its training says; nothing where it has none.

    ``settings`` are those that are not the trainer's defaults; ``other_settings`` names those that the run should not
    have had, such as fewer steps.
    """
    if not (bench.folder(run) / RECORD).is_file():
        return {}
    record = bench.read(run, RECORD)
    final, expected, usual = record["final"], bench.config(run).to_json(), PruneConfig().to_json()
    found = {
        "steps": record["steps"],
        "settings": {name: value for name, value in record["settings"].items() if value != usual.get(name)},
        "other_settings": [name for name, value in expected.items() if record["settings"].get(name) != value],
        "dev": final["metrics"],
        "lambda": final["lambda"],
        "seconds": final["seconds"],
        "warnings": record["warnings"],
    }
    if not final["layers"]:  # nothing was pruned, and nothing counted
        return found
    heads = [sum(layer["heads"]) for layer in final["layers"] if layer["heads"] is not None]
    counted = ("density", "density_attention", "density_feed_forward", "weights", "heads", "neurons")
    return {**found, **{name: final[name] for name in counted}, "heads_by_layer": heads}


def describe_weights(folder: Path) -> dict[str, Any]:
    """As much of the same as the weights themselves say."""
    from compactor.exporting.inspecting import AttentionSummary, FeedForwardSummary, inspect

    layers = inspect(folder).layers
    left = sum(layer.density * layer.weights[0] for layer in layers)
    everything = sum(layer.weights[0] for layer in layers)
    heads = [layer.heads for layer in layers if isinstance(layer, AttentionSummary)]
    widths = [layer.width for layer in layers if isinstance(layer, FeedForwardSummary)]
    return {
        "density": left / everything,
        "weights": [round(left), everything],
        **{
            name: [sum(after for _, after in changes), sum(before for before, _ in changes)]
            for name, changes in (("heads", heads), ("neurons", widths))
        },
        "heads_by_layer": [after for _, after in heads],
    }


def judge(bench: Bench, run: Run, workload: Workload, how: Settings) -> dict[str, Any]:
    """The answers of the masked model in PyTorch and of its graphs in ONNX Runtime, and the size of these; kept.

    Raises:
        CompactorError: It cannot be exported, or a graph cannot be run.
    """
    shop = bench.shop(run)
    digest = hashlib.sha256((bench.folder(run) / "model.safetensors").read_bytes()).hexdigest()
    kept = bench.work / "judged" / f"{run.id}.json"
    if kept.is_file():
        known: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        if known["sha256"] == digest:
            return known
        shutil.rmtree(shop.folder, ignore_errors=True)  # made of other weights
    assert workload.scoring is not None
    say(f"judging {run.id}")
    batches, one_by_one = workload.scoring, workload.cases[0]
    answers, sizes, graphs = {}, {}, {}
    with tempfile.TemporaryDirectory(prefix="sst2-answers-") as temporary:
        folder = Path(temporary)
        files = {batches.id: list(batches.files)}
        _graphs.in_fresh_process(_graphs.write_reference, shop.checkpoint(), files, folder / "masked")
        answers["masked"] = _read_answers(workload, folder / "masked", batches)
        for precision, ways in WAYS.items():
            graph = shop.graph(precision)
            variant = Variant(precision, precision, run.id, "onnxruntime", "cpu", precision, graph)
            cases = dict(zip(ways, (batches, one_by_one), strict=False))
            error = run_worker("outputs", variant, list(cases.values()), how, outputs=folder / precision).get("error")
            if error is not None:
                raise CompactorError(f"its {precision} graph does not run: {error['what']}", where=error["where"])
            sizes[precision], graphs[precision] = file_bytes(variant), model_hash(variant)
            answers |= {way: _read_answers(workload, folder / precision, case) for way, case in cases.items()}
    judged = {"sha256": digest, "answers": answers, "bytes": sizes, "graphs": graphs}
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(judged), encoding="utf-8")
    return judged


def _read_answers(workload: Workload, folder: Path, case: Case) -> str:
    """A digit for each sentence."""
    assert workload.labelled is not None
    return _digits(predict(workload.spec, workload.labelled, read_outputs(folder, case)))


def make_row(
    run: Run, facts: Mapping[str, Any], judged: Mapping[str, Any], references: str, baseline: str
) -> dict[str, Any]:
    """The row of a run that was made.

    Args:
        run: Which.
        facts: What is known of its training and its weights.
        judged: What ``judge`` gave.
        references: The right answers.
        baseline: The dense model's.
    """
    right = _labels(references)
    found = {}
    for way, text in judged["answers"].items():
        labels = _labels(text)
        found[way] = {
            "correct": sum(a == b for a, b in zip(labels, right, strict=True)),
            **evaluate("accuracy", labels, right),
            "difference": difference("accuracy", labels, _labels(baseline), right),
            "changed": sum(a != b for a, b in zip(text, judged["answers"]["masked"], strict=True)),
        }
    row = {"id": run.id, "family": run.family, "status": "measured", "why": None, **facts, "quality": found}
    return {**row, **{name: judged[name] for name in ("bytes", "graphs", "answers")}}


def _digits(labels: Sequence[Any]) -> str:
    return "".join(_LABELS[int(label)] for label in labels)


def _labels(text: str) -> list[int]:
    return [_LABELS.index(digit) for digit in text]


# Timing


def make_variants(bench: Bench) -> list[_run.Row]:
    """The dense model as anyone exports it, as we do, and int8 of every run that is there."""
    dense = bench.shop(RUNS[0])
    rows = [
        _run.Row("dense-plain", "dense: plain export, fp32", dense, dense.plain),
        _run.Row("dense-fp32", "dense: compactor fp32", dense, lambda: dense.graph("fp32")),
    ]
    for run in (*RUNS, OTHERS):
        if bench.is_finished(run):
            shop = bench.shop(run)
            build = functools.partial(shop.graph, "int8")
            # As lossy as int8 may be on random tokens: what it answers to sentences is judged apart.
            rows.append(_run.Row(f"{run.id}-int8", f"{run.id}: int8", shop, build, "int8", bound=_run.STATIC))
    return rows


def measure(bench: Bench, args: argparse.Namespace, how: Settings, command: str) -> dict[str, Any]:
    """Time all variants in one run."""
    if not bench.is_finished(RUNS[0]):
        return UNMEASURED
    rows = make_variants(bench)
    found = _run.run(rows, synthetic_cases(bench.work, parse_shapes(args.shapes)), how)
    report = _record.make_report("MiniLM on SST-2, pruned", rows, found, baseline="dense-plain", command=command)
    return {"latency": report, "relative_error": found.errors}


def kept_measurement(out: Path | None) -> dict[str, Any]:
    """What an earlier call measured, until this one measures again."""
    if out is not None and out.is_file():
        before = json.loads(out.read_text(encoding="utf-8"))
        if before.get("kind") == "compactor-sst2":
            return {name: before[name] for name in UNMEASURED}
    return UNMEASURED


def publish(result: Mapping[str, Any], out: Path | None) -> str:
    """Write what there is so far, and return its tables."""
    text = _sst2_page.render(result)
    if out is not None:
        _record.write_result(out, result, text)
        _sst2_figure.draw(result, out.with_suffix(".svg"))
    return text


if __name__ == "__main__":
    sys.exit(main())
