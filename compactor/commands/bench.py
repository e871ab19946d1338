"""``compactor bench``: how fast each variant is here, how sure that is, and whether it became slower."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from compactor import commands
from compactor.benching.gate import Gate, Judged, judge_gate
from compactor.benching.server.urls import is_url, parse_url
from compactor.console import Console
from compactor.errors import MeasurementError, UsageError

PROVIDERS = ("cpu", "cuda", "tensorrt", "openvino", "torch")
_TIMES = ("variant", "case", ">before, ms", ">after, ms", "decided by", ">times as fast", ">95 % interval", "verdict")
_RATES = ("variant", ">before, 1/s", ">after, 1/s", ">times as high", "verdict")
_WITH_COMPARE = {"compare", "as_json", "quiet", "verbose"}
_OF_MODELS = {"providers", "threads", "batch", "metric", "spinning", "profile", "profile_layers"}
_RANKED = 6  # rounds from which on intervals come from ranks alone
_LARGEST_BATCH = 16_384
_LARGEST_LENGTH = 1_000_000
_LARGEST_BEAMS = 64


class _Command(click.Command):
    """Keeps what was typed, for the report: it says how to measure again."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does."""
        ctx.meta["typed"] = shlex.join([*ctx.command_path.split(), *args])
        return super().parse_args(ctx, args)


class _Target(click.Path):
    """A path; or a URL, which is left as it was typed."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A ``Path``, or the text of the URL."""
        return value if is_url(value) else super().convert(value, param, ctx)


class _Amount(click.FloatRange):
    """A number above 0 and up to a largest; ``nan``, which is neither below nor above anything, is none."""

    def __init__(self, largest: float) -> None:
        super().__init__(min=0, min_open=True, max=largest)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"'{value}' is not a number.", param, ctx)
        return number


def _sizes(largest: int) -> Callable[..., tuple[int, ...] | None]:
    """Reads positive whole numbers, separated by commas, each once: ``1,8``."""

    def read(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
        if value is None:
            return None
        sizes = []
        for text in map(str.strip, value.split(",")):
            if not text.isdecimal() or not 1 <= (size := int(text)) <= largest:
                raise click.BadParameter(f"'{text}' is not a whole number from 1 to {largest:,}.", ctx, param)
            sizes.append(size)
        return tuple(dict.fromkeys(sizes))

    return read


def _cpus(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """The logical CPUs that ``value`` names, as ``0,2`` or ``0-3``; this process may use them all."""
    if value is None:
        return None
    if not hasattr(os, "sched_getaffinity"):
        raise click.BadParameter("this system does not pin processes to CPUs.", ctx, param)
    usable = os.sched_getaffinity(0)
    found: set[int] = set()
    for text in map(str.strip, value.split(",")):
        first, dash, last = text.partition("-")
        ends = (first, last if dash else first)
        if not all(end.isdecimal() and len(end) < 6 for end in ends):
            raise click.BadParameter(f"'{text}' is neither a CPU nor a range such as 0-3.", ctx, param)
        named = set(range(int(ends[0]), int(ends[1]) + 1))
        if not named or not named <= usable:
            listed = ",".join(map(str, sorted(usable)))
            raise click.BadParameter(
                f"'{text}' is not within the CPUs that this process may use: {listed}.", ctx, param
            )
        found |= named
    return tuple(sorted(found))


def _providers(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """The providers in all ``values``, once each."""
    names = tuple(dict.fromkeys(name.strip() for value in values for name in value.split(",")))
    for name in names:
        if name not in PROVIDERS:
            raise click.BadParameter(f"'{name}' is not one of {', '.join(PROVIDERS)}.", ctx, param)
    return names


@click.command(cls=_Command, short_help="Measure speed and quality, with intervals and a verdict.")
@click.argument("targets", nargs=-1, type=_Target(), metavar="TARGET...")
@click.option(
    "--baseline",
    type=_Target(),
    metavar="TARGET",
    help="What the others are compared with; by default, the first that runs.",
)
@click.option(
    "--provider",
    "providers",
    multiple=True,
    default=("cpu",),
    show_default=True,
    callback=_providers,
    metavar="LIST",
    help=f"Where graphs run, separated by commas: {', '.join(PROVIDERS)}. Model directories run in PyTorch.",
)
@click.option("--threads", type=click.IntRange(1, 1024), metavar="N", help="Threads; by default, the usable cores.")
@click.option(
    "--batch",
    callback=_sizes(_LARGEST_BATCH),
    metavar="LIST",
    help="Batch sizes, such as 1,8; a server answers up to the largest at once.",
)
@click.option(
    "--seq", callback=_sizes(_LARGEST_LENGTH), metavar="LIST", help="Lengths of random inputs, such as 32,128."
)
@click.option("--lengths", type=click.Path(path_type=Path), metavar="FILE", help="Random inputs of these lengths.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Labelled texts, TSV or JSONL: real lengths, quality.",
)
@click.option(
    "--scenario",
    type=click.Choice(["single", "offline", "server"]),
    default="single",
    show_default=True,
    help="One request after the other, all at once, or at random times.",
)
@click.option("--qps", type=_Amount(1e6), metavar="N", help="Requests a second of the server.")
@click.option(
    "--p99-bound",
    "bound_ms",
    type=_Amount(1e7),
    metavar="MS",
    help="What the server's p99 must stay under.",
)
@click.option(
    "--duration",
    "duration_s",
    type=_Amount(86_400),
    metavar="S",
    help="Seconds to sample each case in each process.",
)
@click.option("--metric", metavar="LIST", help="accuracy, f1, ...; by default, the task's own.")
@click.option("--rounds", type=click.IntRange(1, 1000), metavar="N", help="How often each variant is started anew.")
@click.option("--quick", is_flag=True, help="3 shorter rounds: a look, not a result.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=17, show_default=True, help="Of all random numbers.")
@click.option("--affinity", callback=_cpus, metavar="LIST", help="Logical CPUs to run on, such as 0,2 or 0-3.")
@click.option("--spinning/--no-spinning", default=True, show_default=True, help="Let idle threads wait busily.")
@click.option("--profile", is_flag=True, help="Say where the time goes, by operator.")
@click.option("--profile-layers", is_flag=True, help="Say it by layer too.")
@click.option(
    "--new-tokens",
    type=click.IntRange(1, _LARGEST_LENGTH),
    metavar="N",
    help="Tokens that an encoder-decoder writes; by default 32.",
)
@click.option(
    "--past",
    callback=_sizes(_LARGEST_LENGTH),
    metavar="LIST",
    help="Tokens before a timed step of a decoder; by default 16,64.",
)
@click.option("--beams", callback=_sizes(_LARGEST_BEAMS), metavar="LIST", help="Of a decoder's search; by default 1,4.")
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path), metavar="DIR", help="Write report.json, .md and .html."
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier report in DIR.")
@click.option(
    "--gate",
    metavar="LIST",
    help="End with 6 unless enough is kept and gained: answers=99.5,speed=1.5, percent of the baseline's answers and "
    "times as fast.",
)
@click.option("--allow-noisy", is_flag=True, help="Do not fail when the machine was too busy to be believed.")
@click.option(
    "--compare",
    nargs=2,
    type=click.Path(path_type=Path),
    metavar="A B",
    help="Measure nothing: is report B slower than report A?",
)
@commands.json_option
@commands.verbosity_options
@commands.debug_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    targets: tuple[Path | str, ...],
    data: Path | None,
    quick: bool,
    out: Path | None,
    gate: str | None,
    allow_noisy: bool,
    compare: tuple[Path, Path] | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Measure each TARGET: an artefact (every precision in it), an .onnx file, or a Hugging Face model directory.

    With --scenario server a TARGET may also be the URL of a running endpoint, such as
    http://127.0.0.1:8000/v2/models/NAME/infer.

    Every variant runs in fresh processes, in turn with the others, on the same inputs. Ratios come with a 95 %
    interval, and the whole with a verdict: exit code 6 when the machine was too busy to be believed, or when
    --compare finds that something became slower.
    """
    commands.refuse_both(quiet, verbose)
    console = Console(quiet=quiet, verbose=verbose)
    if compare is not None:
        _refuse_beside_compare(ctx)
        commands.require_packages("scipy", needed_by="--compare")
        _compare(console, *compare, as_json=as_json)
        return
    _refuse_contradictions(ctx)
    asked = None if gate is None else Gate.parse(gate)
    if asked is not None and asked.answers is not None and data is None:
        raise UsageError(
            "--gate asks for answers, and there are no texts", todo="add --data FILE, or leave out answers"
        )
    if quick or (options["rounds"] or _RANKED) < _RANKED:
        commands.require_packages("scipy", needed_by=f"an interval from fewer than {_RANKED} rounds")
    if out is not None:
        commands.require_packages("matplotlib", "jinja2", "scipy", needed_by="-o")
    if data is not None and not _only_urls(ctx):
        commands.require_packages("torchmetrics", needed_by="--data")
    if any(map(is_url, targets)):
        commands.require_packages("aiohttp", needed_by="the URL of an endpoint", extra="ray")
    with console.working() as progress:
        progress("loading libraries")
        from compactor.benching.bench import bench
        from compactor.reporting.terminal import print_summary

        # The other options are named as bench names them.
        report = bench(
            targets, data=data, quick=quick, out=out, **options, command=ctx.meta["typed"], progress=progress
        )
    if as_json:
        console.document(report)
    else:
        print_summary(console, report, out)
    if asked is not None and not report["interrupted"]:
        _pass_gate(console, judge_gate(report, asked), out, as_json=as_json)
    _end(report, out, allow_noisy=allow_noisy or quick)


def _pass_gate(console: Console, judged: list[Judged], out: Path | None, *, as_json: bool) -> None:
    """Say what was found at the gate; raises MeasurementError where it is not enough."""
    if not as_json:  # stdout holds the report alone
        for each in judged:
            console.line(str(each))
    failed = [each for each in judged if each.misses]
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise MeasurementError(f"{failed[0]}{more}", where=None if out is None else str(out))


def _end(report: dict[str, Any], out: Path | None, *, allow_noisy: bool) -> None:
    """Raise what the report is to end with, after all of it was shown."""
    if report["interrupted"]:
        raise KeyboardInterrupt
    where = None if out is None else str(out)
    if not any(variant["status"] == "measured" for variant in report["variants"]):
        why = next(variant["why"] for variant in report["variants"] if variant["status"] == "failed")
        raise MeasurementError(f"nothing could be measured: {why['what']}", where=why["where"], todo=why["todo"])
    verdict = report["verdict"]
    if not verdict["valid"] and not allow_noisy:
        more = f" (and {len(verdict['reasons']) - 1} more)" if len(verdict["reasons"]) > 1 else ""
        raise MeasurementError(
            f"the report is INVALID: {verdict['reasons'][0]}{more}",
            where=where,
            todo="measure again on a quiet machine; or accept the numbers with --allow-noisy",
        )


def _refuse_contradictions(ctx: click.Context) -> None:
    """Raise the usage error of options that do not go together, before anything is loaded."""
    given = ctx.params

    def refuse(unless: bool, message: str) -> None:
        if not unless:
            raise click.UsageError(message, ctx=ctx)

    server = given["scenario"] == "server"
    refuse(bool(given["targets"]), "Missing argument 'TARGET...'.")
    refuse(not (given["lengths"] and given["data"]), "--lengths and --data are two sources of lengths.")
    for option in ("lengths", "data"):
        refuse(not (given[option] and given["seq"]), f"--seq and --{option} are two sources of lengths.")
    refuse(given["metric"] is None or given["data"] is not None, "--metric needs labelled texts: add --data FILE.")
    refuse(given["qps"] is None or server, "--qps is for --scenario server.")
    refuse(given["bound_ms"] is None or server, "--p99-bound is for --scenario server.")
    refuse(not given["overwrite"] or given["out"] is not None, "--overwrite needs -o DIR.")
    urls = [target for target in given["targets"] if is_url(target)]
    if urls:
        for url in urls:
            parse_url(url)
        refuse(server, f"{urls[0]} is an endpoint, whose rate is measured: add --scenario server.")
        texts = given["data"] or given["lengths"]
        refuse(texts is not None, f"{urls[0]} is asked texts: add --data FILE.")
    if _only_urls(ctx):
        for param in ctx.command.params:
            typed = ctx.get_parameter_source(param.name or "") is ParameterSource.COMMANDLINE
            option = max(param.opts, key=len)
            what = "are no models that bench runs" if len(urls) > 1 else "is no model that bench runs"
            refuse(not (typed and param.name in _OF_MODELS), f"{option} is for models: {', '.join(urls)} {what}.")
    refuse(not is_url(given["baseline"]), f"{given['baseline']} is an endpoint, and no baseline.")
    if given["out"] is not None:
        places = [path.resolve() for path in (*given["targets"], given["baseline"]) if isinstance(path, Path)]
        refuse(given["out"].resolve() not in places, "-o names a TARGET: give the report a folder of its own.")


def _only_urls(ctx: click.Context) -> bool:
    """Whether nothing is measured but endpoints."""
    targets = ctx.params["targets"]
    return bool(targets) and all(map(is_url, targets)) and ctx.params["baseline"] is None


def _refuse_beside_compare(ctx: click.Context) -> None:
    for param in ctx.command.params:
        name = param.name or ""
        if name not in _WITH_COMPARE and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            what = "TARGETs" if name == "targets" else max(param.opts, key=len)
            raise click.UsageError(f"--compare reads two reports and measures nothing: leave out {what}.", ctx=ctx)


def _compare(console: Console, before: Path, after: Path, *, as_json: bool) -> None:
    """Print what became slower or faster from one report to the next; a slowdown is an error."""
    with console.working() as progress:
        progress("reading the reports")
        from compactor.benching.report import load_report

        reports = load_report(before), load_report(after)
        progress("comparing")
        from compactor.benching.comparing import compare

        comparison = compare(*reports)
    if as_json:
        console.document(comparison)
    else:
        _print_comparison(console, comparison)
    if comparison["slower"]:
        slower = [row for row in (*comparison["rows"], *comparison["server"]) if row["verdict"] == "slower"]
        more = f" (and {len(slower) - 1} more)" if len(slower) > 1 else ""
        case = f" on {slower[0]['case']}" if "case" in slower[0] else ""
        raise MeasurementError(f"{slower[0]['name']} became slower{case}{more}", where=str(after))


def _print_comparison(console: Console, comparison: dict[str, Any]) -> None:
    if comparison["rows"]:
        console.table(_TIMES, [_comparison_row(row) for row in comparison["rows"]])
    if comparison["server"]:
        console.table(_RATES, [_rates_row(row) for row in comparison["server"]])
    console.line()
    for note in comparison["notes"]:
        console.line(note)


def _comparison_row(row: dict[str, Any]) -> tuple[str, ...]:
    from compactor.reporting.numbers import digits

    found = row["speedup"] if row["decided_by"] == "speed-up" else row["time"]
    interval = "-" if found["low"] is None else f"{found['low']:.3f} to {found['high']:.3f}"
    before, after = digits(row["before_ms"]), digits(row["after_ms"])
    change = f"{found['value']:.3f}"
    return row["name"], row["case"], before, after, row["decided_by"] or "-", change, interval, row["verdict"]


def _rates_row(row: dict[str, Any]) -> tuple[str, ...]:
    from compactor.reporting.numbers import digits

    before, after = ("none" if row[key] is None else digits(row[key]) for key in ("before_qps", "after_qps"))
    return row["name"], before, after, "-" if row["value"] is None else f"{row['value']:.3f}", row["verdict"]
