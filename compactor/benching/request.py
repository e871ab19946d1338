"""What was asked of ``compactor bench``, with its gaps filled: the inputs, how long, and what a server must bear."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compactor.benching.parts import QUICK_SOURCE, SOURCE, Sizes
from compactor.benching.plan import Scenario, Settings
from compactor.benching.processes import Say, run_worker
from compactor.benching.server.endpoints import CLOCK_NOTE, Texts, check_endpoint, lone_ms, read_texts, write_items
from compactor.benching.server.urls import Url
from compactor.benching.targets import Targets
from compactor.benching.workload import Workload, from_texts, plan_workload
from compactor.errors import UsageError
from compactor.runtime.sampling import Clock
from compactor.runtime.threads import explain_threads

BATCHES = (1, 8)

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
class Request:
    """The arguments of ``bench`` that say what to measure; see there."""

    targets: Sequence[Path]
    urls: Sequence[Url] = ()
    baseline: Path | None = None
    providers: Sequence[str] = ("cpu",)
    threads: int | None = None
    batches: Sequence[int] | None = None
    seqs: Sequence[int] | None = None
    lengths: Path | None = None
    data: Path | None = None
    scenario: Scenario = "single"
    qps: float | None = None
    duration_s: float | None = None
    bound_ms: float | None = None
    metric: str | None = None
    rounds: int | None = None
    quick: bool = False
    seed: int = 17
    affinity: Sequence[int] | None = None
    spinning: bool = True
    profile: bool = False
    profile_layers: bool = False
    new_tokens: int | None = None
    pasts: Sequence[int] | None = None
    beams: Sequence[int] | None = None


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
        return dataclasses.replace(request, batches=request.batches or BATCHES)
    if request.scenario == "server":
        raise UsageError(
            "encoder-decoders have no server scenario here: texts of one batch do not end together",
            todo="leave out --scenario server",
        )
    source = QUICK_SOURCE if request.quick else SOURCE
    usual = (source if targets.max_length is None else min(source, targets.max_length),)
    return dataclasses.replace(request, batches=request.batches or (1,), seqs=request.seqs or usual)


def plan_inputs(folder: Path, request: Request, targets: Targets, texts: Texts | None = None) -> Workload:
    """The inputs, written to ``folder``, once it is known that every target takes them.

    Args:
        folder: Where the files go.
        request: What was asked for.
        targets: What is measured.
        texts: What the endpoints are asked; None without endpoints.
    """
    sizes = Sizes(request.new_tokens, request.pasts, request.beams, request.quick) if targets.generates else None
    limits = (_QUICK_TIMED, _TIMED[request.scenario])
    if targets.generates:
        limits = (_QUICK_TIMED_GENERATED, _TIMED_GENERATED)
    limit = limits[0 if request.quick else 1]
    if not targets.own and texts is not None:
        return from_texts(texts.path, texts.sizes, limit)
    workload = plan_workload(
        folder,
        targets,
        scenario=request.scenario,
        batches=request.batches or BATCHES,
        seqs=request.seqs,
        lengths=request.lengths,
        data=request.data,
        metric=request.metric,
        limit=limit,
        seed=request.seed,
        sizes=sizes,
    )
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


def plan_server(
    folder: Path,
    request: Request,
    targets: Targets,
    workload: Workload,
    settings: Settings,
    texts: Texts | None,
    notes: list[str],
    say: Say,
) -> dict[str, Any] | None:
    """The block of the server scenario; None in the others."""
    if request.scenario != "server":
        return None
    bound = request.bound_ms
    if bound is None:
        bound = _BOUND * _lone_request_ms(folder, request, targets, settings, texts, say)
        notes.append(
            f"The bound of {bound:.1f} ms is {_BOUND:g} times the median of a request alone; --p99-bound sets another."
        )
    file = None
    if texts is not None:
        assert workload.rows is not None  # there are texts
        file = write_items(texts.choose(workload.rows), folder / "texts.json")
        notes.append(CLOCK_NOTE)
    return {
        "queries": None if workload.queries is None else str(workload.queries),
        "texts": None if file is None else str(file),
        "max_batch": max(request.batches or BATCHES),
        "qps": request.qps,
        "duration_s": request.duration_s or (_QUICK_SERVE_S if request.quick else _SERVE_S),
        "bound_ms": bound,
        "seed": request.seed,
    }


def _lone_request_ms(
    folder: Path, request: Request, targets: Targets, settings: Settings, texts: Texts | None, say: Say
) -> float:
    """The median of one request after the other, of the baseline or else the first variant that can answer.

    An endpoint is asked only where there is nothing else.

    Raises:
        UsageError: None can.
    """
    if not targets.own and texts is not None:
        say(f"one request at a time: {request.urls[0].label}")
        return lone_ms(request.urls[0], texts, _CLOCK.measure_s)
    alone = dataclasses.replace(request, scenario="single", batches=(1,), metric=None, quick=True)
    workload = plan_inputs(folder / "alone", alone, targets)
    settings = dataclasses.replace(settings, scenario="single", clock=dataclasses.replace(_CLOCK, measure_s=_QUICK_S))
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
