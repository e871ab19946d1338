"""The paper's table 4 on this machine: pruned BARTs, dense against compact, one forward pass and whole generations.

    python benchmarks/bart.py --work DIR [--build-only | --no-build] [--only base-3.4,large-3.5] [--rounds 8]
                              [--threads 2] [--out benchmarks/results/bart-NAME.json]

Shapes are planted in random weights (``_bart_shapes.py``, which says by which rules) and exported by ``compactor
export``, the dense models too: the baseline is our own export of a model in which there is nothing to remove. Each
variant runs in a process of its own, in ABBA order; the result is written again after every round. ``--only`` leaves
the other models out, as rows that say so; a size of which nothing is chosen keeps what an earlier run wrote to
``--out``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # so that it runs by its path, and not only with -m

import numpy as np

from benchmarks import _bart_page, _graphs, _record, _run
from benchmarks._bart_shapes import PLANS, Plan, check_sizes, plant_bart
from benchmarks._generation import FORWARD, GENERATE, Workload, measure_variant, profile_step, write_reference
from benchmarks._run import Row, Run
from benchmarks._workshop import Arrays, Workshop, read_arrays, relative_error, say
from compactor.benching.plan import Case, Settings
from compactor.benching.processes import Measured, Measurements, abba
from compactor.runtime.sampling import Clock

PRECISIONS = ("fp32", "int8")
ARTEFACT = "ours-cpu"
NO_BUILD = "not built, and --no-build was given"


@dataclasses.dataclass(frozen=True)
class Bart(Workshop):
    """A random BART with the sizes of a plan.

    Attributes:
        plan: The sizes.
    """

    plan: Plan

    @property
    def folder(self) -> Path:
        """Where everything of this model goes."""
        return self.work / f"bart-{self.plan.name}"

    def checkpoint(self) -> Path:
        """The random model, with its zeros."""
        return self.once("checkpoint", lambda path: _graphs.in_fresh_process(plant_bart, path, self.plan))

    def check_sizes(self, manifest: Mapping[str, Any]) -> None:
        """Assert that an artefact has the sizes of the plan."""
        check_sizes(self.plan, manifest["layers"])

    def artefact(self) -> Path:
        """The folder of our export."""
        return self.ours().parent

    def answers(self, inputs: Path, workload: Workload) -> Path:
        """What PyTorch gives: logits of the forward pass, tokens of the generation."""
        name = f"reference-{workload.source}-{workload.tokens}-{workload.beams}.npz"
        return self.exported(name, write_reference, inputs, workload)


def main(argv: Sequence[str] | None = None, plans: Sequence[Plan] = PLANS) -> int:
    """Build, time, check, and write what came of it."""
    args = _parse(argv, plans)
    workload = Workload(args.source, args.tokens, args.beams)
    how = _run.settings(args, clock=Clock(warm_up_s=0.0, warm_up_calls=1, measure_s=0.0, min_samples=args.samples))
    with _run.work_folder(args.work, "bart-") as work:
        rows = make_rows(
            [Bart(work, plan) for plan in plans], args.only, build=not args.no_build, with_torch=not args.no_torch
        )
        chosen = [row for row in rows if row.missing is None]
        if not chosen:
            sys.exit("error: there is nothing to measure: no model that was chosen is built")
        inputs = write_inputs(work, workload, min(shop_of(row).plan.size.vocabulary for row in chosen))
        for row in chosen:
            row.make()
        for shop in dict.fromkeys(map(shop_of, chosen)):
            shop.answers(inputs, workload)
        if args.build_only:
            return 0
        _record.warn_if_busy()
        result: dict[str, Any] = {"schema": 1, "kind": "compactor-bart", "workload": dataclasses.asdict(workload)}
        result |= {"plans": [plan.to_json() for plan in plans], "reports": {}, "details": {}}
        if args.out is not None and args.out.exists():
            _carry_over(result, json.loads(args.out.read_text(encoding="utf-8")))
        command = _run.command("bart.py", argv)
        for size in dict.fromkeys(shop_of(row).plan.size.name for row in chosen):
            mine = [row for row in rows if shop_of(row).plan.size.name == size]

            def record(found: Run, details: dict[str, Any], size: str = size, mine: Sequence[Row] = mine) -> None:
                result["reports"][size] = _record.make_report(
                    f"BART-{size}: the paper's table 4", mine, found, baseline=f"{size}-dense-fp32", command=command
                )
                result["details"][size] = details
                if args.out is not None:
                    _record.write_result(args.out, result, _bart_page.render(result))

            measure_rows(mine, inputs, workload, how, record)
    print(_bart_page.render(result))
    return 1 if _record.failures(result["reports"].values()) else 0


def _parse(argv: Sequence[str] | None, plans: Sequence[Plan]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=int, default=512, help="tokens of the input (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=62, help="tokens to write (default: %(default)s)")
    parser.add_argument("--beams", type=int, default=4, help="of the search (default: %(default)s)")
    parser.add_argument(
        "--only", type=lambda text: text.split(","), help="models, such as base-3.4; with the dense one of their size"
    )
    parser.add_argument("--no-torch", action="store_true", help="leave out PyTorch, which takes most of the time")
    parser.add_argument("--no-build", action="store_true", help="measure what is built, and say what is not")
    parser.add_argument(
        "--samples", type=int, default=3, help="of each case in each process, at least (default: %(default)s)"
    )
    _run.add_common_options(parser)
    args = parser.parse_args(argv)
    known = [plan.name for plan in plans]
    for name in args.only or ():
        if name not in known:
            parser.error(f"--only: there is no '{name}'; there are {', '.join(known)}")
    if args.work is None and (args.no_build or args.build_only):
        parser.error("--build-only and --no-build need --work")
    if args.build_only and args.no_build:
        parser.error("--build-only and --no-build exclude each other")
    return args


def make_rows(shops: Sequence[Bart], only: Sequence[str] | None, *, build: bool, with_torch: bool = True) -> list[Row]:
    """Each model in both precisions, the dense ones also in PyTorch; in front the dense one of each size.

    Args:
        shops: The models.
        only: Names of those that are chosen; None chooses all. The dense one of their size comes along.
        build: Whether what is missing is built.
        with_torch: Whether PyTorch is measured too.
    """
    sizes = {shop.plan.size.name for shop in shops if only is None or shop.plan.name in only}
    rows = []
    for shop in shops:
        plan, missing = shop.plan, None
        name = f"BART-{plan.size.name} {'dense' if plan.factor == 1 else f'{plan.factor}×'}"
        name += " with half-empty heads" if plan.half_empty is not None else ""
        if not (only is None or plan.name in only or (plan.factor == 1 and plan.size.name in sizes)):
            missing = "it was not chosen (--only)"
        elif not (build or (shop.folder / ARTEFACT).exists()):
            missing = NO_BUILD
        if plan.factor == 1:
            unwanted = missing or (None if with_torch else "it was left out (--no-torch)")
            id, title = f"{plan.name}-torch", f"{name}: PyTorch eager fp32"
            rows.append(Row(id, title, shop, shop.checkpoint, engine="torch", provider="torch", missing=unwanted))
        rows += [
            Row(
                f"{plan.name}-{precision}", f"{name}: ours {precision}", shop, shop.artefact, precision, missing=missing
            )
            for precision in PRECISIONS
        ]
    return rows


def shop_of(row: Row) -> Bart:
    """Whose a row of ``make_rows`` is."""
    assert isinstance(row.shop, Bart)
    return row.shop


def write_inputs(work: Path, workload: Workload, vocabulary: int) -> Path:
    """One random text without padding, and the tokens that the forward pass is given."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"inputs-{workload.source}-{workload.tokens}-{vocabulary}.npz"
    random = np.random.default_rng(workload.source)
    least = min(_graphs.VOCABULARY_FLOOR, vocabulary // 2)
    ids, targets = (random.integers(least, vocabulary, (1, count)) for count in (workload.source, workload.tokens))
    np.savez(path, ids=ids, targets=targets)
    return path


def measure_rows(
    rows: Sequence[Row],
    inputs: Path,
    workload: Workload,
    how: Settings,
    record: Callable[[Run, dict[str, Any]], None],
) -> None:
    """Time, check and profile the rows of one size.

    Args:
        rows: Of which those are measured that nothing is missing of.
        inputs: What ``write_inputs`` wrote.
        workload: What is asked.
        how: Rounds, threads and clock.
        record: Gets what there is after every round: the run, and by row ``parts`` (the split of a generation, one of
            each process), ``steps`` (the profile of a step), ``errors`` (``relative_error`` of the logits) and
            ``tokens`` (how many of the generated ones are PyTorch's, from the first one on).
    """
    start = time.monotonic()
    cases = [
        Case(name, 1, workload.source, (inputs,), 1, workload.tokens, workload.tokens) for name in (FORWARD, GENERATE)
    ]
    found = Run([row.make() for row in rows], cases, how)
    variants = {variant.id: variant for variant in found.variants}
    able = {row.id: row for row in rows if row.missing is None}
    measurements = found.measurements = Measurements({name: Measured() for name in able})
    details: dict[str, Any] = {"parts": {}, "steps": {}, "errors": {}, "tokens": {}}
    record(found, details)  # what cannot be written fails now, and not after hours
    with tempfile.TemporaryDirectory(prefix="bart-answers-") as temporary:
        try:
            for number, order in enumerate(abba(list(able), how.rounds)):
                for name in order:
                    row, measured = able[name], measurements.variants[name]
                    if measured.error is not None:
                        continue
                    say(f"round {number + 1} of {how.rounds}: {row.name}")
                    answers = Path(temporary) / f"{name}.npz" if number == 0 else None
                    asked = (row.engine, variants[name].path, row.precision, inputs, workload, how, answers)
                    result = _in_process(measure_variant, *asked)
                    if isinstance(result, str):
                        measured.error = {"what": result, "where": None, "todo": None}
                        say(f"{row.name} failed: {result}")
                        continue
                    measured.add(result)
                    details["parts"].setdefault(name, []).append(result["parts"])
                    if answers is not None:
                        reference = read_arrays(shop_of(row).answers(inputs, workload))
                        check(row, measured, reference, read_arrays(answers), details)
                found.duration_s = time.monotonic() - start
                record(found, details)
            for name, row in able.items():
                if row.engine != "torch" and measurements.variants[name].error is None:
                    say(f"profiling a step: {row.name}")
                    result = _in_process(profile_step, variants[name].path, row.precision, workload, how.threads)
                    if not isinstance(result, str):
                        details["steps"][name] = result
        except KeyboardInterrupt:
            say("interrupted: keeping what is measured so far")
            measurements.interrupted = True
    found.duration_s = time.monotonic() - start
    record(found, details)


def check(row: Row, measured: Measured, reference: Arrays, got: Arrays, details: dict[str, Any]) -> None:
    """Compare what a row gave with PyTorch's. One that is wrong gets an error in its measurement."""
    error = relative_error([{"logits": reference["logits"]}], [{"logits": got["logits"]}])
    error = error if np.isfinite(error) else float("inf")
    details["tokens"][row.id] = agreement(reference["tokens"], got["tokens"])
    if error <= row.tolerance:
        details["errors"][row.id] = error
    else:
        what = f"its logits are off PyTorch's by {error:.2g}, more than {row.tolerance:g}"
        _run.mark_wrong(row, measured, what)


def agreement(expected: Any, got: Any) -> int:
    """How many tokens are the same, from the first one on; the one that every generation starts with does not count."""
    same = expected[0, : got.shape[1]] == got[0, : expected.shape[1]]
    return int(np.argmin(same) if not same.all() else len(same)) - 1


def _carry_over(result: dict[str, Any], earlier: Mapping[str, Any]) -> None:
    """Keep what an earlier run found of sizes; those that are measured now replace it."""
    if earlier.get("kind") == result["kind"] and earlier.get("workload") == result["workload"]:
        result["reports"] |= earlier["reports"]
        result["details"] |= earlier["details"]


def _in_process(function: Callable[..., dict[str, Any]], *args: Any, **kwargs: Any) -> dict[str, Any] | str:
    """What ``function`` returns in a new process, or how it failed."""
    try:
        return _graphs.in_fresh_process(function, *args, **kwargs)
    except BrokenProcessPool:
        return "the process was ended from outside: out of memory is the usual reason"
    except Exception as error:  # a row that says so; the others go on
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main())
