"""What is to be measured, with the request's gaps filled: targets, inputs, how long, and what a server must bear."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compactor.benching.parts import QUICK_SOURCE, SOURCE
from compactor.benching.plan import Settings
from compactor.benching.processes import Say, run_worker
from compactor.benching.request import Request
from compactor.benching.server.endpoints import CLOCK_NOTE, Texts, check_endpoint, lone_ms, read_texts, write_items
from compactor.benching.targets import Targets, resolve_targets
from compactor.benching.workload import Workload, from_texts, plan_workload
from compactor.errors import UsageError
from compactor.runtime.sampling import Clock
from compactor.runtime.threads import explain_threads

_BATCHES = (1, 8)
_ROUNDS = {"single": 8, "offline": 8, "server": 2}
_QUICK_ROUNDS = {"single": 3, "offline": 3, "server": 1}
_CLOCK = Clock(warm_up_s=0.3, warm_up_calls=2, measure_s=1.0, min_samples=3, max_samples=2000)
_PASS_CLOCK = Clock(warm_up_s=0.3, warm_up_calls=1, measure_s=1.0, min_samples=2, max_samples=200)
_QUICK_S = 0.3
_SERVE_S = 10.0
_QUICK_SERVE_S = 3.0
_TIMED: Mapping[str, int] = {"single": 128, "offline": 512, "server": 4096}  # examples of a file that are timed
_QUICK_TIMED = 64
_TIMED_GENERATED, _QUICK_TIMED_GENERATED = 16, 4  # of them, where each is written a text for
_BOUND = 5.0  # of the server scenario, in medians of the baseline's lone request


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is decided before anything is measured.

    Attributes:
        request: With the sizes that were left open.
        settings: How to measure.
        targets: What is measured.
        texts: What the endpoints are asked; None without endpoints.
        workload: The inputs.
        folder: Where files go while it is measured.
    """

    request: Request
    settings: Settings
    targets: Targets
    texts: Texts | None
    workload: Workload
    folder: Path


def make_plan(request: Request, folder: Path, say: Say) -> Plan:
    """Read the targets, ask the endpoints, and write the inputs to ``folder``.

    Raises:
        CompactorError: As ``bench`` does.
    """
    settings = plan_settings(request)
    say("reading the targets")
    targets = resolve_targets(
        request.targets, urls=request.urls, baseline=request.baseline, providers=request.providers
    )
    request = fill_sizes(request, targets)
    texts = ask_endpoints(request, targets, say)
    say("writing the inputs")
    workload = _write_inputs(folder / "inputs", request, targets, texts)
    return Plan(request, settings, targets, texts, workload, folder)


def fill_sizes(request: Request, targets: Targets) -> Request:
    """The request with the sizes that were left open, which depend on the models.

    Raises:
        UsageError: It asks for something that these models do not do.
    """
    if not targets.generates:
        asked = {"--new-tokens": request.new_tokens, "--past": request.pasts, "--beams": request.beams}
        for option in (option for option, value in asked.items() if value is not None):
            raise UsageError(
                f"{option} is for encoder-decoders, and these models write no text", todo=f"leave out {option}"
            )
        return dataclasses.replace(request, batches=request.batches or _BATCHES)
    if request.scenario == "server":
        raise UsageError(
            "encoder-decoders have no server scenario here: texts of one batch do not end together",
            todo="leave out --scenario server",
        )
    source = QUICK_SOURCE if request.quick else SOURCE
    usual = (source if targets.max_length is None else min(source, targets.max_length),)
    return dataclasses.replace(request, batches=request.batches or (1,), seqs=request.seqs or usual)


def _write_inputs(folder: Path, request: Request, targets: Targets, texts: Texts | None) -> Workload:
    """The inputs, once it is known that every target takes them."""
    limits = (_QUICK_TIMED, _TIMED[request.scenario])
    if targets.generates:
        limits = (_QUICK_TIMED_GENERATED, _TIMED_GENERATED)
    limit = limits[0 if request.quick else 1]
    if not targets.own and texts is not None:
        return from_texts(texts.path, texts.sizes, limit)
    workload = plan_workload(folder, request, targets, limit=limit)
    targets.refuse_other_shapes(workload.cases)
    return workload


def plan_settings(request: Request) -> Settings:
    """How to measure: the request, with its gaps filled.

    Raises:
        UsageError: The number of threads or rounds is below one.
    """
    if request.rounds is not None and request.rounds < 1:
        raise UsageError(f"expected at least 1 round, got {request.rounds}")
    try:
        plan = explain_threads(request.threads)
    except ValueError as error:
        raise UsageError(str(error)) from error
    clock = _PASS_CLOCK if request.scenario == "offline" else _CLOCK
    seconds = request.duration_s if request.scenario != "server" else None
    if seconds is not None or request.quick:
        clock = dataclasses.replace(clock, measure_s=_QUICK_S if seconds is None else seconds)
    rounds = request.rounds or (_QUICK_ROUNDS if request.quick else _ROUNDS)[request.scenario]
    return Settings(
        scenario=request.scenario,
        threads=plan.threads,
        threads_reason=plan.reason,
        affinity=request.affinity,
        spinning=request.spinning,
        rounds=rounds,
        clock=clock,
        seed=request.seed,
        quick=request.quick,
    )


def ask_endpoints(request: Request, targets: Targets, say: Say) -> Texts | None:
    """What the endpoints are asked, once it is known that they answer; None without endpoints.

    Raises:
        UsageError: There are no texts, an endpoint does not answer as it should, or the scenario is not for it.
    """
    if not request.urls:
        return None
    where = request.urls[0].text
    if request.scenario != "server":
        raise UsageError(
            f"an endpoint is measured by its rate, and not in the {request.scenario} scenario",
            where=where,
            todo="add --scenario server, or leave out the URL",
        )
    file = request.data or request.lengths
    if file is None:
        raise UsageError(
            "an endpoint is asked texts, and there are none", where=where, todo="add --data FILE with texts"
        )
    if not targets.own and request.metric is not None:
        raise UsageError("quality is not measured over HTTP", where=where, todo="leave out --metric")
    texts = read_texts(file, targets.task)
    for url in request.urls:
        say(f"asking {url.label}")
        check_endpoint(url, texts)
    return texts


def plan_server(plan: Plan, notes: list[str], say: Say) -> dict[str, Any] | None:
    """The block of the server scenario; None in the others. ``notes`` are told what the reader should know of it."""
    request, workload = plan.request, plan.workload
    if request.scenario != "server":
        return None
    bound = request.bound_ms
    if bound is None:
        bound = _BOUND * _lone_request_ms(plan, say)
        notes.append(
            f"The bound of {bound:.1f} ms is {_BOUND:g} times the median of a request alone; --p99-bound sets another."
        )
    file = None
    if plan.texts is not None:
        assert workload.rows is not None  # there are texts
        file = write_items([plan.texts.items[row] for row in workload.rows], plan.folder / "texts.json")
        notes.append(CLOCK_NOTE)
    return {
        "queries": None if workload.queries is None else str(workload.queries),
        "texts": None if file is None else str(file),
        "max_batch": max(request.batches or _BATCHES),
        "qps": request.qps,
        "duration_s": request.duration_s or (_QUICK_SERVE_S if request.quick else _SERVE_S),
        "bound_ms": bound,
        "seed": request.seed,
    }


def _lone_request_ms(plan: Plan, say: Say) -> float:
    """The median of one request after the other, of the baseline or else the first variant that can answer.

    An endpoint is asked only where there is nothing else.

    Raises:
        UsageError: None can.
    """
    request, targets = plan.request, plan.targets
    if not targets.own and plan.texts is not None:
        say(f"one request at a time: {request.urls[0].label}")
        return lone_ms(request.urls[0], plan.texts, _CLOCK.measure_s)
    alone = dataclasses.replace(request, scenario="single", batches=(1,), metric=None, quick=True)
    workload = _write_inputs(plan.folder / "alone", alone, targets, None)
    clock = dataclasses.replace(_CLOCK, measure_s=_QUICK_S)
    settings = dataclasses.replace(plan.settings, scenario="single", clock=clock)
    error = "none can run"
    for variant in sorted(targets.own, key=lambda variant: variant.id != targets.baseline):
        if variant.reason is not None:
            continue
        say(f"one request at a time: {variant.name}")
        found = run_worker("time", variant, workload.cases, settings)
        if "error" not in found:
            samples: list[float] = [sample for case in found["cases"].values() for sample in case["samples_ms"]]
            return statistics.median(samples)
        error = found["error"]["what"]
    raise UsageError(f"no variant could answer a single request: {error}", todo="see the targets, one at a time")
