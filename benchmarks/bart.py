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
from benchmarks._generation import (
    FORWARD,
    GENERATE,
    Workload,
    measure_variant,
    profile_step,
    write_reference,
)
from benchmarks._workshop import Workshop, read_arrays, relative_error, say
from compactor.benching.plan import Case, Settings, Variant
from compactor.benching.processes import Measured, Measurements, abba
from compactor.runtime.sampling import Clock

PRECISIONS = ("fp32", "int8")
TOLERANCES = {"fp32": _run.EXACT, "int8": _run.LOOSE}
ARTEFACT = "ours-cpu"
NO_BUILD = "not built, and --no-build was given"


@dataclasses.dataclass(frozen=True)
class Bart(Workshop):
    """A random BART with the sizes of a plan.

    Attributes:
        work: The folder of all models.
        plan: The sizes.
    """

    work: Path
    plan: Plan

    @property
    def folder(self) -> Path:
        """Where everything of this model goes."""
        return self.work / f"bart-{self.plan.name}"

    @property
    def built(self) -> bool:
        """Whether nothing is left to build."""
        return (self.folder / ARTEFACT).exists()

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
        return self.once(
            f"reference-{workload.source}-{workload.tokens}-{workload.beams}.npz",
            lambda path: _graphs.in_fresh_process(write_reference, self.checkpoint(), inputs, workload, path),
        )


@dataclasses.dataclass(frozen=True)
class Row:
    """A variant and whose it is.

    Attributes:
        shop: The model.
        engine: ``onnxruntime`` or ``torch``.
        precision: ``fp32`` or ``int8``.
        missing: Why it is not run; None where it is.
    """

    shop: Bart
    engine: str
    precision: str
    missing: str | None = None

    @property
    def id(self) -> str:
        """Unique within a run."""
        return f"{self.shop.plan.name}-{'torch' if self.engine == 'torch' else self.precision}"

    @property
    def name(self) -> str:
        """For tables."""
        how = "PyTorch eager fp32" if self.engine == "torch" else f"ours {self.precision}"
        return f"{title(self.shop.plan)}: {how}"

    def make(self) -> Variant:
        """Build it."""
        path = Path()
        if self.missing is None:
            path = self.shop.checkpoint() if self.engine == "torch" else self.shop.artefact()
        return Variant(
            id=self.id,
            name=self.name,
            target=self.shop.folder.name,
            engine="torch" if self.engine == "torch" else "onnxruntime",
            provider="torch" if self.engine == "torch" else "cpu",
            precision=self.precision,
            path=path,
            reason=None if self.missing is None else f"not run: {self.missing}",
        )


@dataclasses.dataclass
class Found:
    """What came of the rows of one size.

    Attributes:
        measurements: For the harness's report.
        parts: The split of a generation, one of each process, by row.
        steps: The profile of a step, by row.
        errors: ``relative_error`` of the logits, by row.
        tokens: How many of the generated tokens are PyTorch's, from the first one on, by row.
        duration_s: Of the measurement.
    """

    measurements: Measurements
    parts: dict[str, list[dict[str, float]]] = dataclasses.field(default_factory=dict)
    steps: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    errors: dict[str, float] = dataclasses.field(default_factory=dict)
    tokens: dict[str, int] = dataclasses.field(default_factory=dict)
    duration_s: float = 0.0


def main(argv: Sequence[str] | None = None, plans: Sequence[Plan] = PLANS) -> int:
    """Build, time, check, and write what came of it."""
    args = _parse(argv, plans)
    workload = Workload(args.source, args.tokens, args.beams)
    with tempfile.TemporaryDirectory(prefix="bart-") as temporary:
        work = (args.work or Path(temporary)).resolve()
        shops = [Bart(work, plan) for plan in plans]
        rows = make_rows(shops, args.only, build=not args.no_build, with_torch=not args.no_torch)
        chosen = [row for row in rows if row.missing is None]
        if not chosen:
            sys.exit("error: there is nothing to measure: no model that was chosen is built")
        inputs = write_inputs(work, workload, min(row.shop.plan.size.vocabulary for row in chosen))
        for row in chosen:
            row.make()
        for shop in dict.fromkeys(row.shop for row in chosen):
            shop.answers(inputs, workload)
        if args.build_only:
            return 0
        how = _settings(args)
        _record.warn_if_busy()
        command = _run.command_line(_run.script_argv(argv, "bart.py"))
        result: dict[str, Any] = {"schema": 1, "kind": "compactor-bart", "workload": dataclasses.asdict(workload)}
        result |= {"plans": [plan.to_json() for plan in plans], "reports": {}, "details": {}}
        if args.out is not None and args.out.exists():
            _carry_over(result, json.loads(args.out.read_text(encoding="utf-8")))
        for size in dict.fromkeys(row.shop.plan.size.name for row in chosen):
            mine = [row for row in rows if row.shop.plan.size.name == size]

            def record(found: Found, size: str = size, mine: Sequence[Row] = tuple(mine)) -> None:
                result["reports"][size] = make_report(size, mine, inputs, workload, how, found, command)
                result["details"][size] = {
                    field.name: getattr(found, field.name)
                    for field in dataclasses.fields(Found)
                    if field.name not in ("measurements", "duration_s")
                }
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


def _settings(args: argparse.Namespace) -> Settings:
    clock = Clock(warm_up_s=0.0, warm_up_calls=1, measure_s=0.0, min_samples=args.samples)
    return _run.settings(args, clock=clock)


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
        if not (only is None or plan.name in only or (plan.factor == 1 and plan.size.name in sizes)):
            missing = "it was not chosen (--only)"
        elif not (build or shop.built):
            missing = NO_BUILD
        if plan.factor == 1:
            unwanted = missing or (None if with_torch else "it was left out (--no-torch)")
            rows.append(Row(shop, "torch", "fp32", unwanted))
        rows += [Row(shop, "onnxruntime", precision, missing) for precision in PRECISIONS]
    return rows


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
    rows: Sequence[Row], inputs: Path, workload: Workload, how: Settings, record: Callable[[Found], None]
) -> None:
    """Time, check and profile the rows of one size; ``record`` gets what there is after every round."""
    start = time.monotonic()
    variants = {row.id: row.make() for row in rows}
    able = {row.id: row for row in rows if row.missing is None}
    found = Found(Measurements({name: Measured() for name in able}))
    record(found)  # what cannot be written fails now, and not after hours
    with tempfile.TemporaryDirectory(prefix="bart-answers-") as temporary:
        try:
            for number, order in enumerate(abba(list(able), how.rounds)):
                for name in order:
                    measured = found.measurements.variants[name]
                    if measured.error is not None:
                        continue
                    say(f"round {number + 1} of {how.rounds}: {able[name].name}")
                    answers = Path(temporary) / f"{name}.npz"
                    result = _in_process(
                        measure_variant,
                        able[name].engine,
                        variants[name].path,
                        able[name].precision,
                        inputs,
                        workload,
                        threads=how.threads,
                        clocks={FORWARD: how.clock, GENERATE: how.clock},
                        answers=answers if number == 0 else None,
                    )
                    if isinstance(result, str):
                        measured.error = {"what": result, "where": None, "todo": None}
                        say(f"{able[name].name} failed: {result}")
                        continue
                    measured.add(result)
                    found.parts.setdefault(name, []).append(result["parts"])
                    if number == 0:
                        check(able[name], inputs, workload, answers, found)
                found.duration_s = time.monotonic() - start
                record(found)
            for name, row in able.items():
                if row.engine != "torch" and found.measurements.variants[name].error is None:
                    say(f"profiling a step: {row.name}")
                    result = _in_process(profile_step, variants[name].path, row.precision, workload, how.threads)
                    if not isinstance(result, str):
                        found.steps[name] = result
        except KeyboardInterrupt:
            say("interrupted: keeping what is measured so far")
            found.measurements.interrupted = True
    found.duration_s = time.monotonic() - start
    record(found)


def check(row: Row, inputs: Path, workload: Workload, answers: Path, found: Found) -> None:
    """Compare what a row gave with PyTorch. One that is wrong gets an error in its measurement."""
    reference, got = read_arrays(row.shop.answers(inputs, workload)), read_arrays(answers)
    error = relative_error([{"logits": reference["logits"]}], [{"logits": got["logits"]}])
    error = error if np.isfinite(error) else float("inf")
    found.tokens[row.id] = agreement(reference["tokens"], got["tokens"])
    tolerance = TOLERANCES[row.precision]
    if error <= tolerance:
        found.errors[row.id] = error
        return
    what = f"its logits are off PyTorch's by {error:.2g}, more than {tolerance:g}"
    say(f"{row.name} failed: {what}")
    found.measurements.variants[row.id].error = {
        "what": what,
        "where": None,
        "todo": "its times are not worth quoting",
    }


def agreement(expected: Any, got: Any) -> int:
    """How many tokens are the same, from the first one on; the one that every generation starts with does not count."""
    same = expected[0, : got.shape[1]] == got[0, : expected.shape[1]]
    return int(np.argmin(same) if not same.all() else len(same)) - 1


def make_report(
    size: str, rows: Sequence[Row], inputs: Path, workload: Workload, how: Settings, found: Found, command: str
) -> dict[str, Any]:
    """The harness's report of one size."""
    cases = [
        Case(name, 1, workload.source, (inputs,), 1, workload.tokens, workload.tokens) for name in (FORWARD, GENERATE)
    ]
    run = _run.Run([row.make() for row in rows], found.measurements, {}, found.duration_s)
    return _record.make_report(
        f"BART-{size}: the paper's table 4",
        rows,  # type: ignore[arg-type] # of the rows it reads their ids
        baseline=f"{size}-dense-fp32",
        cases=cases,
        how=how,
        found=run,
        command=command,
    )


def title(plan: Plan) -> str:
    """For tables: size, and what was done to it."""
    if plan.factor == 1:
        return f"BART-{plan.size.name} dense"
    how = " with half-empty heads" if plan.half_empty is not None else ""
    return f"BART-{plan.size.name} {plan.factor}×{how}"


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
