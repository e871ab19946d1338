"""Models of a promised speed, and what they answer: in one shot, trained gradually, and by the paper's methods.

    python benchmarks/speedup.py --data FOLDER --dense DIR --work DIR [--embedder DIR --pairs FILE] [--steps 600]
                                 [--only one-shot,gradual] [--build-only] [--out benchmarks/results/speedup-NAME.json]

FOLDER holds ``train.tsv``, ``dev.tsv`` and ``test.tsv`` of two labels; DIR a model that was fine-tuned on them, as
``benchmarks/sst2.py --only dense`` makes one. Every family is one call of ``compactor prune --speedup``; all share the
costs that the first one measured. Steps are counted from the dense model: a gradual model at 3x has had those of 2x as
well. It gets half of ``--steps`` for each target, so that at 3x it has as many in all as the others, which have
``--steps`` each (filled ones half as many again).

Speeds are those of int8 graphs, beside each other and the dense model's int8 export in one run. Answers are those of
the same graphs to ``test.tsv``, each held against the dense model's in fp32 and against hybrid's at the same speed.
With ``--embedder`` and ``--pairs``, questions in SQuAD's form, the vectors of two of three articles choose what goes,
and the first hits of the third are counted. Families are kept in --work and not made again, unfinished ones resumed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # so that it runs by its path, and not only with -m

from benchmarks import _graphs, _record, _run
from benchmarks._texts import Texts
from benchmarks._workshop import Given, say
from benchmarks.sst2 import DEV_HEAD
from benchmarks.xquad_qa import write_split
from compactor.benching.bench import bench
from compactor.evaluation.quality import difference, evaluate
from compactor.runtime.threads import explain_threads
from compactor.speedup.costs import COSTS, Load
from compactor.speedup.family import prune_to_speed
from compactor.speedup.promise import TOLERANCE, judge
from compactor.speedup.records import RECORD
from compactor.speedup.settings import SpeedSettings
from compactor.trainer.config import PruneConfig

KIND = "compactor-speedup-families"
DENSE = "dense"
TEXTS = 2_000  # of the training data, without their labels, for one shot
AGAINST = "hybrid"  # whose model of the same speed each is compared with, too
_SHAPE = (1, 128)


@dataclasses.dataclass(frozen=True)
class Family:
    """One call of ``compactor prune --speedup``.

    Attributes:
        id: Its folder, and what ``--only`` calls it.
        words: What it is.
        speedups: What is promised.
        training: What sets its training apart; None trains nothing.
        part: Its steps for each target, of ``--steps``.
        embeds: Whether it is of the model of vectors.
    """

    id: str
    words: str
    speedups: tuple[float, ...]
    training: Mapping[str, Any] | None = None
    part: float = 1.0
    embeds: bool = False


FAMILIES = (
    Family("one-shot", "no training, no labels", (1.5, 2.0, 3.0)),
    Family("gradual", "surgery, then training; again", (2.0, 3.0, 4.0), {"method": "tuned"}, part=0.5),
    Family("hybrid", "the paper's method, λ by time", (3.0,), {"method": "hybrid"}),
    Family("magnitude", "the largest norms", (3.0,), {"method": "magnitude"}),
    Family("hybrid-filled", "hybrid, then its heads filled", (3.0,), {"method": "hybrid-filled"}),
    Family(
        "gradual-answers",
        "gradual, by the teacher's answers alone",
        (2.0, 3.0),
        {"method": "tuned", "alpha_hidden": 0.0},
        part=0.5,
    ),
    Family("vectors", "no training, no labels", (1.5, 2.0), embeds=True),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the families, measure them beside each other, and write what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train.tsv, dev.tsv and test.tsv")
    parser.add_argument("--dense", type=Path, required=True, help="the fine-tuned model to start from")
    parser.add_argument("--embedder", type=Path, help="a folder of sentence-transformers")
    parser.add_argument("--pairs", type=Path, help="questions in SQuAD's form, for --embedder")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of a hybrid run (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of the weights (default: %(default)s)")
    parser.add_argument("--only", help="make these families, by their ids, with commas")
    _run.add_common_options(parser)
    args = parser.parse_args(argv)
    threads = explain_threads(args.threads).threads
    failed: dict[str, str] = {}
    with _run.work_folder(args.work, "speedup-") as work:
        prepare(work, args)
        for family in chosen_families(args.only, embeds=args.embedder is not None and args.pairs is not None):
            say(f"making {family.id}")
            try:
                _graphs.in_fresh_process(make, family, work, args, threads)
            except Exception as error:  # hours of other families are waiting
                traceback.print_exc()
                failed[family.id] = f"{type(error).__name__}: {error}"
        if args.build_only:
            return 1 if failed else 0
        _record.warn_if_busy()
        result = {**_record.head(KIND, "speedup.py", argv), "steps": args.steps, "failed": failed}
        made = [family for family in FAMILIES if (work / family.id / RECORD).is_file()]
        result |= {
            "families": {family.id: json.loads((work / family.id / RECORD).read_text()) for family in made},
            "sentences": measure([family for family in made if not family.embeds], work, args),
            "vectors": measure([family for family in made if family.embeds], work, args),
        }
        _record.publish(result, render(result), args.out)
    return 1 if failed else 0


def chosen_families(only: str | None, *, embeds: bool) -> list[Family]:
    """Those that ``--only`` names, in the order of the list. Exits where it names none."""
    names = None if only is None else [name.strip() for name in only.split(",")]
    for name in names or ():
        if name not in {family.id for family in FAMILIES}:
            sys.exit(f"error: no family is called '{name}'; there are: {', '.join(family.id for family in FAMILIES)}")
    return [family for family in FAMILIES if (names is None or family.id in names) and (embeds or not family.embeds)]


def prepare(work: Path, args: argparse.Namespace) -> None:
    """The texts of one shot, and the head of the development set; the articles whose vectors are looked at."""
    work.mkdir(parents=True, exist_ok=True)
    for name, source, count in (("texts.tsv", "train.tsv", TEXTS), ("dev-head.tsv", "dev.tsv", DEV_HEAD)):
        lines = (args.data / source).read_text(encoding="utf-8").split("\n")
        (work / name).write_text("\n".join(lines[: count + 1]) + "\n", encoding="utf-8")
    if args.pairs is not None:
        write_split(args.pairs, work)


def make(family: Family, work: Path, args: argparse.Namespace, threads: int) -> None:
    """One family, or what is left to do of it."""
    import torch

    torch.set_num_threads(threads)
    out = work / family.id
    if (out / RECORD).is_file():
        return
    shared = work / ("vectors" if family.embeds else "one-shot") / COSTS
    training = None
    if family.training is not None:
        steps = round(family.part * args.steps)
        training = PruneConfig(
            steps=steps,
            eval_steps=max(1, steps // 2),
            learning_rate=args.learning_rate,
            freeze_embeddings=True,
            **family.training,
        )
    batch, seq = _SHAPE
    prune_to_speed(
        args.embedder if family.embeds else args.dense,
        work / "train.json" if family.embeds else work / "texts.tsv" if training is None else args.data / "train.tsv",
        out,
        SpeedSettings(family.speedups, Load(batch, seq), costs=shared if shared.is_file() else None),
        evaluation=None if family.embeds else work / "dev-head.tsv",
        training=training,
        resume=training is not None and out.is_dir(),
        overwrite=training is None,
        command=f"python benchmarks/speedup.py --only {family.id}",
        progress=lambda message: say(f"{family.id}: {message}"),
    )
    for checkpoints in out.glob("**/checkpoints"):
        shutil.rmtree(checkpoints)


# Measuring


def measure(families: Sequence[Family], work: Path, args: argparse.Namespace) -> dict[str, Any] | None:
    """Speeds of all models in one run, and what they answer."""
    if not families:
        return None
    embeds = families[0].embeds
    whole = args.embedder if embeds else args.dense
    shops = {DENSE: Given(work / "graphs", whole)}
    for family in families:
        for member in json.loads((work / family.id / RECORD).read_text())["models"]:
            folder = work / family.id / member["name"]
            shops[f"{family.id}/{member['name']}"] = Given(work / "graphs" / family.id, folder)
    fp32 = shops[DENSE].graph("fp32")
    graphs = {name: shop.graph("int8") for name, shop in shops.items()}
    batch, seq = _SHAPE
    report = bench(
        list(graphs.values()),
        baseline=graphs[DENSE],
        batch=[batch],
        seq=[seq],
        rounds=args.rounds,
        threads=args.threads,
        progress=say,
    )
    found = judge_vectors({"fp32": fp32, **graphs}, work) if embeds else judge_labels(fp32, graphs, args)
    rows = []
    for name, path in graphs.items():
        variant = next(each for each in report["variants"] if Path(each["target"]) == path)
        speed = variant["results"][0]["ratio"] if variant["results"] else None
        rows.append({"id": name, "speed": speed, **found[name]})
    return {"rows": rows, "report": report}


def judge_labels(fp32: Path, graphs: Mapping[str, Path], args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Accuracy of each graph, and its difference from the dense model in fp32 and from hybrid at the same speed."""
    texts = Texts.read(args.dense, args.data / "test.tsv")
    right = [int(label) for label in texts.labelled.references or ()]
    answers = {name: texts.ask(path).tolist() for name, path in {"fp32": fp32, **graphs}.items()}
    found = {}
    for name, given in answers.items():
        rival = f"{AGAINST}/{name.rpartition('/')[2]}"
        found[name] = {
            "quality": evaluate("accuracy", given, right),
            "difference": None if name == "fp32" else difference("accuracy", given, answers["fp32"], right),
            "against": None
            if rival not in answers or rival == name
            else difference("accuracy", given, answers[rival], right),
        }
    return found


def judge_vectors(graphs: Mapping[str, Path], work: Path) -> dict[str, dict[str, Any]]:
    """Recall of the first hit, and its difference from the whole model in fp32."""
    _, metrics = judge(graphs, work / "eval.json", say)
    return {
        name: {"quality": found["recall@1"], "difference": found["recall@1"]["difference"], "against": None}
        for name, found in metrics.items()
    }


# Showing


def render(result: Mapping[str, Any]) -> str:
    """A table for each task."""
    parts = ["# Models of a promised speed"]
    for key, title, metric in (
        ("sentences", "SST-2: labels of 872 sentences", "accuracy"),
        ("vectors", "XQuAD: first hits of questions, a third of its articles", "recall@1"),
    ):
        found = result[key]
        if found is None:
            continue
        header = ["model", "promised", "speed", metric, "against fp32", f"against {AGAINST}", "steps"]
        rows = [_cells(row, result) for row in found["rows"]]
        parts += [f"## {title}", _record.markdown_table(header, rows), " ".join(_record.remarks(found["report"]))]
    parts += [f"{name}: {why}." for name, why in result["failed"].items()]
    parts += [
        "Speeds are int8 over the dense model's int8, 1x128, with 95 % intervals; `missed` is more than "
        f"{100 * TOLERANCE:.0f} % off. Differences are paired, in points, with their standard errors.",
        _record.machine_line(result),
        f"`{result['command']}`",
    ]
    return _record.page(*parts)


def _cells(row: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    name, _, member = row["id"].partition("/")
    speed, quality = row["speed"], row["quality"]
    promised, steps, shown = "", "", "1.00×"
    if member:
        target = next(model["target"] for model in result["families"][name]["models"] if model["name"] == member)
        promised = f"{target:g}×"
        training = result["families"][name]["training"]
        steps = "-" if training is None else str(training["steps"])
        if speed is not None:
            missed = " missed" if abs(speed["value"] / target - 1) > TOLERANCE else ""
            interval = "" if speed["low"] is None else f" [{speed['low']:.2f}, {speed['high']:.2f}]"
            shown = f"{speed['value']:.2f}×{interval}{missed}"
        else:
            shown = "-"
    return [
        name,
        promised,
        shown,
        f"{100 * quality['value']:.2f}",
        _apart(row["difference"]),
        _apart(row["against"]),
        steps,
    ]


def _apart(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    return f"{100 * found['value']:+.2f} ± {100 * found['se']:.2f}"


if __name__ == "__main__":
    sys.exit(main())
