"""``compactor bench`` from its options to its report: what runs, on what, how often, and what is written."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compactor.benching.assembling import Extras, assemble
from compactor.benching.card import machine_card
from compactor.benching.counters import file_bytes, model_hash, parameters
from compactor.benching.judging import describe_agreements, find_agreements, judge_quality
from compactor.benching.plan import Case, Scenario, Variant
from compactor.benching.preparing import Plan, make_plan, plan_server
from compactor.benching.processes import Measurements, Say, measure, run_worker
from compactor.benching.report import REPORT_NAME, dump_report
from compactor.benching.request import Request
from compactor.benching.server.urls import is_url, parse_url
from compactor.errors import OutputError, UsageError, as_output_error

_PROFILE_RUNS = 10
_PEAK = {"size": 2048, "seconds": 1.0}


def bench(
    targets: Sequence[str | Path],
    *,
    baseline: str | Path | None = None,
    providers: Sequence[str] = ("cpu",),
    threads: int | None = None,
    batch: Sequence[int] | None = None,
    seq: Sequence[int] | None = None,
    lengths: str | Path | None = None,
    data: str | Path | None = None,
    scenario: Scenario = "single",
    qps: float | None = None,
    duration_s: float | None = None,
    bound_ms: float | None = None,
    metric: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    quick: bool = False,
    rounds: int | None = None,
    seed: int = 17,
    affinity: Sequence[int] | None = None,
    spinning: bool = True,
    profile: bool = False,
    profile_layers: bool = False,
    new_tokens: int | None = None,
    past: Sequence[int] | None = None,
    beams: Sequence[int] | None = None,
    command: str = "",
    progress: Say | None = None,
) -> dict[str, Any]:
    """Measure, and return the report; an interrupt gives a report of what was measured until then.

    Args:
        targets: Artefact folders, graphs, model directories; for the server scenario also URLs of endpoints.
        baseline: What the others are compared with; the first variant where it is None.
        providers: ``cpu``, ``cuda``, ``openvino``, ``torch``.
        threads: Of each variant; one for each usable core where it is None.
        batch: Batch sizes; None takes 1 and 8, for an encoder-decoder 1.
        seq: Lengths of random inputs; None takes those of 32, 128 and 384 that the models take, of an encoder-decoder's
            source 128.
        lengths: A file of lengths for random inputs.
        data: A file of labelled text.
        scenario: ``single``, ``offline`` or ``server``.
        qps: The rate of the server scenario; None searches for the highest.
        duration_s: Of one probe of the server scenario; in the others, of sampling each case in each process.
        bound_ms: What the server's high percentile must stay under.
        metric: The quality metric; the task's own where it is None and there are labels.
        out: A folder for ``report.json``, ``report.md`` and ``report.html``.
        overwrite: Replace a report that is there.
        quick: Fewer rounds and shorter ones: a look, not a result.
        rounds: How often each variant is started anew.
        seed: Of the inputs, the arrivals and the bootstrap.
        affinity: Logical CPUs to pin the processes to.
        spinning: Let idle threads wait busily.
        profile: Say where the time goes, by operator.
        profile_layers: And by layer.
        new_tokens: Tokens that an encoder-decoder writes; 32 where it is None.
        past: Numbers of tokens before a step of its decoder; 16 and 64 where it is None.
        beams: Of its search; 1 and 4 where it is None.
        command: What the report says one should type to get it again.
        progress: Told what is going on.

    Raises:
        ModelDirectoryError: A target is damaged, or cannot be measured.
        UsageError: The request contradicts itself or its targets.
        ProviderUnavailableError: The only provider asked for is not here.
        OutputError: There is a report in ``out``, or it cannot be written.
    """
    folder = None if out is None else Path(out)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise OutputError("the output is a file", where=str(folder), todo="give a folder")
    if folder is not None and (folder / REPORT_NAME).exists() and not overwrite:
        raise OutputError(
            "there is a report already", where=str(folder), todo="choose another folder, or pass --overwrite"
        )
    if is_url(baseline):
        raise UsageError("an endpoint is no baseline", where=baseline, todo="give the URL as a TARGET")
    request = Request(
        targets=[Path(target) for target in targets if not is_url(target)],
        urls=list(dict.fromkeys(parse_url(target) for target in targets if is_url(target))),
        baseline=None if baseline is None else Path(baseline),
        providers=providers,
        threads=threads,
        batches=batch,
        seqs=seq,
        lengths=None if lengths is None else Path(lengths),
        data=None if data is None else Path(data),
        scenario=scenario,
        qps=qps,
        duration_s=duration_s,
        bound_ms=bound_ms,
        metric=metric,
        rounds=rounds,
        quick=quick,
        seed=seed,
        affinity=affinity,
        spinning=spinning,
        profile=profile or profile_layers,
        profile_layers=profile_layers,
        new_tokens=new_tokens,
        pasts=past,
        beams=beams,
    )
    report = _bench(request, command, progress or (lambda _: None))
    if folder is not None:
        _write_report(report, folder)
    return report


def _bench(request: Request, command: str, say: Say) -> dict[str, Any]:
    """The flow: targets and inputs, then all that is measured of them."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="compactor-bench-") as temporary:
        return carry_out(make_plan(request, Path(temporary), say), command, say, start=start)


def carry_out(plan: Plan, command: str, say: Say, *, start: float) -> dict[str, Any]:
    """Measure what was planned, and all that stands beside the times.

    Args:
        plan: The targets and inputs. Variants may have been added to those that the targets stand for.
        command: What the report says one should type to get it again.
        say: Told what is going on.
        start: Of the whole run, by ``time.monotonic``.

    Returns:
        The report.
    """
    targets, workload = plan.targets, plan.workload
    extras = Extras(
        layers=targets.layers,
        ledgers=list(targets.ledgers),
        machine=machine_card(),
        notes=[*targets.notes, *workload.notes],
    )
    for variant in targets.own:
        extras.counters[variant.id] = {
            "file_bytes": file_bytes(variant),
            "parameters": parameters(variant),
            "sha256": model_hash(variant),
        }
    serve = plan_server(plan, extras.notes, say)
    kept = plan.folder / "kept" if targets.generates else None
    measurements = measure(targets.variants, workload.cases, plan.settings, say=say, serve=serve, outputs=kept)
    if kept is not None:
        extras.agreements = find_agreements(kept, workload.cases, targets.baseline)
        names = {variant.id: variant.name for variant in targets.variants}
        extras.notes.extend(describe_agreements(names, extras.agreements, names.get(targets.baseline or "", "")))
    if not measurements.interrupted:
        try:
            _find_extras(plan, extras, measurements, say)
        except KeyboardInterrupt:
            say("interrupted: keeping what is measured so far")
            measurements.interrupted = True
    return assemble(
        title=targets.title,
        command=command,
        variants=targets.variants,
        baseline=targets.baseline,
        cases=workload.cases if serve is None else [],
        workload=workload.to_json(),
        settings=plan.settings,
        measurements=measurements,
        extras=extras,
        duration_s=time.monotonic() - start,
        metric=workload.metric,
        serve=serve,
    )


def _write_report(report: dict[str, Any], folder: Path) -> None:
    """Write ``report.json``, and the two pages made from it."""
    from compactor.reporting.page import write_reports

    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = dump_report(report)  # before the old one is touched
        (folder / REPORT_NAME).write_text(text, encoding="utf-8")
        write_reports(report, folder)
    except OSError as error:
        raise as_output_error(error, folder) or error from error


def _find_extras(plan: Plan, extras: Extras, measurements: Measurements, say: Say) -> None:
    """What stands beside the times and needs the variants to run once more: quality, multiply-adds, profiles, peak."""
    able = [
        variant
        for variant in plan.targets.own
        if variant.id in measurements.variants and measurements.variants[variant.id].error is None
    ]
    if plan.workload.scoring is not None:
        extras.quality = _measure_quality(plan, plan.workload.scoring, able, extras.notes, say)
    for variant in able:
        _count_and_profile(plan, variant, extras, say)
    if not plan.targets.own:
        return
    say("measuring the machine's peak")
    provider = "cuda" if "cuda" in plan.request.providers else "cpu"
    found = run_worker("peak", None, [], plan.settings, peak={**_PEAK, "provider": provider})
    if "error" in found:
        extras.notes.append(f"The machine's peak could not be measured: {found['error']['what']}.")
    else:
        extras.peak = found["peak"]


def _measure_quality(
    plan: Plan, scoring: Case, variants: Sequence[Variant], notes: list[str], say: Say
) -> dict[str, dict[str, Any]]:
    """The ``quality`` block of each variant."""
    outputs = {}
    for variant in variants:
        say(f"answering {plan.workload.examples} examples: {variant.name}")
        kept = plan.folder / "outputs" / variant.id
        found = run_worker("outputs", variant, [scoring], plan.settings, outputs=kept)
        if "error" in found:
            notes.append(f"{variant.name} failed to answer all examples: {found['error']['what']}.")
        else:
            outputs[variant.id] = [kept / f"{scoring.id}.{i}.npz" for i in range(len(scoring.files))]
    say("judging the answers")
    return judge_quality(plan.workload, outputs, baseline=plan.targets.baseline, notes=notes)


def _count_and_profile(plan: Plan, variant: Variant, extras: Extras, say: Say) -> None:
    """Multiply-adds of each case, and where the time of each goes."""
    if variant.engine not in ("torch", "onnxruntime"):
        return
    say(f"counting multiply-adds: {variant.name}")
    request, cases = plan.request, plan.workload.cases
    if variant.engine == "torch":
        found = run_worker("macs", variant, cases, plan.settings)
        if "error" not in found:
            extras.macs[variant.id] = found["macs"]
        return
    block = {"runs": _PROFILE_RUNS if request.profile else 1, "layers": request.profile_layers}
    found = run_worker("profile", variant, cases, plan.settings, profile=block)
    if "error" in found:
        extras.notes.append(f"{variant.name} could not be profiled: {found['error']['what']}.")
        return
    extras.notes.extend(f"{variant.name}: {note}" for note in found["notes"])
    profiles: dict[str, dict[str, Any]] = found["profile"]
    counted = {case: entry.pop("macs") for case, entry in profiles.items()}
    extras.macs[variant.id] = {case: macs for case, macs in counted.items() if macs is not None}
    if request.profile or variant.provider != "cpu":
        # The first case's profile; of an encoder-decoder, the first one of each kind of part.
        shown: dict[object, dict[str, Any]] = {}
        for case in cases:
            if case.id in profiles:
                shown.setdefault(case.part and case.part.kind, profiles[case.id])
        extras.profiles[variant.id] = list(shown.values())
