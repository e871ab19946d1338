"""The tables of a report, as text: the page and the Markdown show the same cells.

A cell without a measurement says why in words; it is never a number and never empty.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from compactor.reporting.numbers import bytes_text, count, digits, percent, points, rate, score, with_interval
from compactor.reporting.words import (
    NO_DIFFERENCE,
    Report,
    Row,
    absence,
    baseline_row,
    bound_words,
    describe_workload,
    is_server,
    measured,
    metric_name,
    metric_of,
    only_endpoints,
    part_of,
    profiles_of,
    result_of,
)

_LEAST_SHARE = 1e-4  # of the largest output: less is rounding

Tone = Literal["", "good", "bad", "muted", "code"]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: What it says.
        tone: How it looks; the text says the same without it.
        note: A second line, in small type.
        absent: Whether it stands for the missing numbers of the rest of its row.
    """

    text: str
    tone: Tone = ""
    note: str = ""
    absent: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows in groups, each group under a heading of its own.

    Attributes:
        id: For links, unique on a page.
        title: What it shows.
        columns: Names; one that starts with ``>`` holds numbers.
        groups: Heading (None for none) and rows.
        caption: How to read it.
    """

    id: str
    title: str
    columns: tuple[str, ...]
    groups: tuple[tuple[str | None, tuple[tuple[Cell, ...], ...]], ...]
    caption: str = ""

    def __bool__(self) -> bool:
        return any(rows for _, rows in self.groups)


def result_tables(report: Report) -> list[Table]:
    """What a decision needs: speed, then what it costs."""
    tables = [server_table(report) if is_server(report) else speed_table(report)]
    if not only_endpoints(report):
        tables.append(cost_table(report))
    return [table for table in tables if table]


def speed_table(report: Report) -> Table:
    """Times, ratios and rates of each variant, case by case."""
    results = [result for row in measured(report) for result in row["results"]]
    with_p99 = any(result["summary"]["p99"] is not None for result in results)
    with_macs = any(result["macs_per_s"] is not None for result in results)
    with_share = any(result["share_of_peak"] is not None for result in results)
    with_agreement = any(result.get("agreement") is not None for result in results)
    base = baseline_row(report)
    columns = ["variant", ">median, ms", ">p10 to p90", ">p95"]
    columns += [">p99"] * with_p99
    columns += [">against the baseline"] * (report["baseline"] is not None)
    columns += [">outputs differ in"] * with_agreement
    columns += [">examples/s", ">tokens/s"]
    columns += [">MAC/s"] * with_macs + [">of the peak"] * with_share

    def cells(row: Row, case: Mapping[str, Any]) -> tuple[Cell, ...]:
        result = result_of(row, case["id"])
        if row["status"] != "measured":
            return (_name(report, row), Cell(absence(row), "muted", absent=True))
        if result is None:
            return (_name(report, row), Cell("not run: interrupted before this case", "muted", absent=True))
        summary, throughput = result["summary"], result["throughput"]
        found = [
            _name(report, row),
            Cell(digits(summary["median"])),
            Cell(f"{digits(summary['p10'])} to {digits(summary['p90'])}"),
            Cell(digits(summary["p95"])),
        ]
        if with_p99:
            found.append(Cell(digits(summary["p99"])) if summary["p99"] is not None else Cell("too few", "muted"))
        if report["baseline"] is not None:
            found.append(_ratio(report, row, base, result))
        if with_agreement:
            found.append(_agreement(report, row, result))
        found += [Cell(rate(throughput["examples_per_s"])), Cell(rate(throughput["tokens_per_s"]))]
        if with_macs:
            found.append(_rate_of_macs(result["macs_per_s"]))
        if with_share:
            share = result["share_of_peak"]
            found.append(Cell("not measured", "muted") if share is None else Cell(percent(share)))
        return tuple(found)

    groups = tuple(
        (f"{case['id']}: {describe_workload(report, case)}", tuple(cells(row, case) for row in report["variants"]))
        for case in report["workload"]["cases"]
    )
    sample = (
        "all batches of the case, one after the other" if report["settings"]["scenario"] == "offline" else "one batch"
    )
    caption = (
        f"A sample is {sample}. The median is that of the processes' medians. A ratio is the baseline's median over "
        "the row's: above 1× is faster; in brackets its bootstrap 95 % interval over processes and samples."
    )
    if with_p99:
        caption += " A p99 takes 1,000 samples."
    if any(part_of(case) is not None for case in report["workload"]["cases"]):
        caption += (
            " Tokens are those written, batch × new tokens whatever the beams; the encoder's are those of the source."
        )
    if with_agreement:
        caption += (
            " Outputs differ from the baseline's, on the same inputs, in so many texts, or by so much of the largest "
            "state or logit."
        )
    if with_share:
        caption += " The peak is one large matrix product in the row's precision, measured in the same run."
    return Table("speed", "Speed", tuple(columns), groups, caption)


def server_table(report: Report) -> Table:
    """The highest rate of each variant, and the latency there."""
    found = [row["server"] for row in measured(report)]
    if found:
        columns: tuple[str, ...] = (
            "variant",
            f">highest rate with {bound_words(found[0])}, 1/s",
        )
    else:
        columns = ("variant", ">highest rate, 1/s")
    columns += (">p50, ms", ">p90, ms", ">p99, ms", ">mean batch")
    rows: list[tuple[Cell, ...]] = []
    for row in report["variants"]:
        server = row["server"]
        if row["status"] != "measured" or server is None:
            words = absence(row) if row["status"] != "measured" else "not run: interrupted"
            rows.append((_name(report, row), Cell(words, "muted", absent=True)))
            continue
        best = next((probe for probe in server["probes"] if probe["qps"] == server["best_qps"]), None)
        if best is None:
            rows.append((_name(report, row), Cell(server["note"] or "none of the rates tried", "muted", absent=True)))
        else:
            rows.append(
                (
                    _name(report, row),
                    Cell(rate(best["qps"]), note=server["note"] or ""),
                    Cell(digits(best["p50_ms"])),
                    Cell(digits(best["p90_ms"])),
                    _p99(best),
                    _mean_batch(best),
                )
            )
    caption = (
        "Poisson arrivals with a fixed seed; latency counts from the scheduled arrival, waiting in the queue included."
    )
    return Table("server-rates", "Highest rate under the bound", columns, ((None, tuple(rows)),), caption)


def probe_tables(report: Report) -> list[Table]:
    """Every rate that was tried, a table for each variant."""
    columns = (
        ">offered, 1/s",
        ">achieved, 1/s",
        ">queries",
        ">p50, ms",
        ">p90, ms",
        ">p99, ms",
        ">max, ms",
        ">mean batch",
        "within the bound",
    )
    tables = []
    for index, row in enumerate(row for row in measured(report) if row["server"] is not None):
        rows = tuple(
            (
                Cell(rate(probe["qps"])),
                Cell(rate(probe["achieved_qps"])),
                Cell(f"{probe['queries']:,}"),
                _latency(probe["p50_ms"]),
                _latency(probe["p90_ms"]),
                _p99(probe),
                _latency(probe["max_ms"]),
                _mean_batch(probe),
                _within_the_bound(probe),
            )
            for probe in sorted(row["server"]["probes"], key=lambda probe: probe["qps"])
        )
        tables.append(Table(f"probes-{index}", f"Rates tried: {row['name']}", columns, ((None, rows),)))
    return tables


def cost_table(report: Report) -> Table:
    """What each variant needs and gives: file, memory, start, quality."""
    metrics = list(
        dict.fromkeys(name for row in report["variants"] if row["quality"] for name in row["quality"]["metrics"])
    )
    compared = any(metric["difference"] is not None for row in report["variants"] for metric in _metrics(row).values())
    with_changed = compared and any(
        metric["difference"]["changed"] is not None
        for row in report["variants"]
        for metric in _metrics(row).values()
        if metric["difference"] is not None
    )
    columns = ["variant", ">file", ">parameters"]
    for name in metrics:
        columns.append(f">{metric_name(name)}")
        columns += [">difference, points"] * compared
    columns += [">answers changed"] * with_changed
    columns += [">peak memory", ">load, ms"]
    columns += [">first answer, ms"] * (not is_server(report))

    def cells(row: Row) -> tuple[Cell, ...]:
        counters = row["counters"]
        size = counters["file_bytes"]
        found = [
            _name(report, row),
            _unknown() if size is None else Cell(bytes_text(size)),
            _unknown() if counters["parameters"] is None else Cell(count(counters["parameters"])),
        ]
        if row["status"] != "measured":
            return (*found, Cell(absence(row), "muted", absent=True))
        for name in metrics:
            metric = metric_of(row, name)
            found.append(
                Cell("not measured", "muted") if metric is None else Cell(score(metric["value"], metric["se"]))
            )
            if compared:
                found.append(_difference(report, row, metric))
        if with_changed:
            found.append(_changed(report, row))
        peak, before = counters["peak_rss_bytes"], counters["rss_before_bytes"]
        if peak is None:
            found.append(Cell("not measured", "muted"))
        else:
            found.append(
                Cell(bytes_text(peak), note=f"{bytes_text(before)} before loading" if before is not None else "")
            )
        found.append(
            Cell(digits(statistics.median(row["load_ms"]))) if row["load_ms"] else Cell("not measured", "muted")
        )
        if not is_server(report):
            first = row["results"][0]["first_ms"] if row["results"] else []
            found.append(Cell(digits(statistics.median(first))) if first else Cell("not measured", "muted"))
        return tuple(found)

    caption = "Load and first answer are medians over processes, each new. Peak memory is that of the whole process."
    if metrics:
        caption = "Quality ± standard error. " + caption
        if compared:
            caption = "Differences are paired, example by example, with the baseline. " + caption
    title = "Size, quality, memory" if metrics else "Size and memory"
    return Table("cost", title, tuple(columns), ((None, tuple(cells(row) for row in report["variants"])),), caption)


def layer_table(report: Report) -> Table:
    """Heads and neurons of each layer, before and after."""
    layers = report["layers"] or []
    rows = tuple(
        (
            Cell(layer["name"]),
            _before_after(layer["heads_before"], layer["heads_after"]),
            _before_after(layer["neurons_before"], layer["neurons_after"]),
        )
        for layer in layers
    )
    return Table("layers", "Kept in each layer", ("layer", ">heads", ">FFN neurons"), ((None, rows),))


def profile_tables(report: Report) -> list[Table]:
    """Where the time goes, by operator and by layer, a table for each profiled variant."""
    tables = []
    profiles = [(row, *pair) for row in report["variants"] for pair in profiles_of(report, row)]
    for index, (row, name, profile) in enumerate(profiles):
        rows: tuple[tuple[Cell, ...], ...] = tuple(
            (
                Cell(operator["name"]),
                Cell(operator["provider"]),
                Cell(f"{operator['count']:,}"),
                Cell(digits(operator["ms"])),
                Cell(percent(operator["share"])),
                Cell(count(operator["macs"])) if operator["macs"] else Cell("none", "muted"),
            )
            for operator in profile["operators"]
        )
        columns = ("operator", "runs on", ">nodes", ">ms a run", ">share", ">MACs")
        runs = f"{profile['runs']} run{'s' * (profile['runs'] != 1)}"
        caption = f"Case {profile['case']}, {runs}, by ONNX Runtime's profiler, which slows them a little."
        caption += _search_words(report, row, profile)
        tables.append(Table(f"operators-{index}", f"Operators: {name}", columns, ((None, rows),), caption))
        if profile["layers"]:
            rows = tuple(
                (Cell(layer["name"]), Cell(digits(layer["ms"])), Cell(percent(layer["share"])))
                for layer in profile["layers"]
            )
            tables.append(Table(f"time-{index}", f"Layers: {name}", ("layer", ">ms a run", ">share"), ((None, rows),)))
    return tables


def machine_rows(report: Report) -> list[tuple[str, str]]:
    """The machine card: what it is, in words; what is unknown is left out."""
    machine = report["machine"]
    rows: list[tuple[str, str]] = []

    def add(name: str, text: object) -> None:
        if text not in (None, "", []):
            rows.append((name, str(text)))

    add("CPU", machine.get("cpu_model"))
    add("instruction sets", ", ".join(machine.get("isa") or ()))
    add("cores", _cores(machine))
    add("caches", "; ".join(_cache(cache) for cache in machine.get("caches") or ()))
    add("memory", _memory(machine))
    virtual = machine.get("virtualised")
    if virtual is not None:
        hypervisor = f" ({machine['hypervisor']})" if machine.get("hypervisor") else ""
        add("virtual machine", f"yes{hypervisor}" if virtual else "no")
    add("system", " ".join(str(machine[key]) for key in ("os", "kernel", "architecture") if machine.get(key)))
    for gpu in machine.get("gpus") or ():
        memory = f", {bytes_text(gpu['memory_bytes'])}" if gpu.get("memory_bytes") else ""
        driver = f", driver {gpu['driver']}" if gpu.get("driver") else ""
        add("GPU", f"{gpu['name']}{memory}{driver}")
    if machine.get("gpus") == []:
        add("GPU", "none")
    if machine.get("load_before") is not None:
        add("load before the start", digits(machine["load_before"]))
    for precision, peak in (report["peak"] or {}).items():
        add(
            f"peak, {precision}",
            f"{count(int(peak['macs_per_s']))}MAC/s (one {peak['size']}³ matrix product, {peak['engine']} on "
            f"{peak['provider']}, {peak['threads']} threads)",
        )
    add("versions", ", ".join(f"{name} {version}" for name, version in (machine.get("versions") or {}).items()))
    if machine.get("commit"):
        add("commit", f"{machine['commit']}{', with changes that are not committed' if machine.get('dirty') else ''}")
    return rows


def reproduce_rows(report: Report) -> list[tuple[str, str]]:
    """How it was measured: all that one needs beside the command."""
    settings, workload, clock = report["settings"], report["workload"], report["settings"]["clock"]
    pinned = f"pinned to CPUs {', '.join(map(str, settings['affinity']))}" if settings["affinity"] else "not pinned"
    spinning = "idle threads spin" if settings["spinning"] else "idle threads sleep"
    threads = f"{settings['threads']} ({settings['threads_reason']}); {pinned}; {spinning}"
    rows = [
        ("client", pinned) if only_endpoints(report) else ("threads", threads),
        ("inputs", _inputs(workload)),
        (
            "rounds",
            f"{settings['rounds']}, each variant in a new process each time, order {settings['order']}"
            + ("; a quick run, cut down for a first look" if settings["quick"] else ""),
        ),
    ]
    if is_server(report):
        rows.append(("scenario", "server: Poisson arrivals, latency from the scheduled arrival"))
        remote = {row["engine"] == "http" for row in report["variants"]}
        clock_of = {
            False: "waiting in the queue, batching, arrays in host memory in, arrays in host memory out",
            True: "of endpoints, from when a request is due to its whole answer: tokenizing, HTTP and the network too",
        }
        rows.append(("on the clock", "; ".join(clock_of[kind] for kind in sorted(remote))))
    else:
        scenario = (
            "offline: all batches at once"
            if settings["scenario"] == "offline"
            else "single stream: one batch after the other"
        )
        rows.append(("scenario", scenario))
        rows.append(
            (
                "clock",
                f"at least {clock['warm_up_s']:g} s and {clock['warm_up_calls']} calls of warm-up, then "
                f"{clock['measure_s']:g} s of samples (at least {clock['min_samples']}, at most "
                f"{clock['max_samples']:,}) in each process and case",
            )
        )
        rows.append(
            (
                "on the clock",
                "arrays in host memory in, arrays in host memory out, any device finished; not tokenizing, padding or "
                "reading files",
            )
        )
    rows.append(("seed", str(settings["seed"])))
    rows.append(
        (
            "took",
            f"{report['duration_s'] / 60:.1f} min" if report["duration_s"] >= 120 else f"{report['duration_s']:.0f} s",
        )
    )
    return rows


def variant_rows(report: Report) -> list[tuple[str, str]]:
    """What exactly each row was: target, file, hash, engine and its versions."""
    rows = []
    for row in report["variants"]:
        parts = [f"target {row['target']}"]
        if row["file"] is not None:
            parts.append(f"file {row['file']}")
        if row["engine"] == "http":
            parts.append("an endpoint that ran already, over HTTP")
        else:
            parts.append(f"{row['engine']} on {row['provider']}, {row['precision']}")
        parts += [f"{name} {_plain(value)}" for name, value in row["environment"].items()]
        if row["sha256"] is not None:
            parts.append(f"sha256 {row['sha256']}")
        rows.append((row["name"], "; ".join(parts)))
    return rows


def _name(report: Report, row: Row) -> Cell:
    return Cell(row["name"], note="baseline" if row["id"] == report["baseline"] else "")


def _ratio(report: Report, row: Row, base: Row | None, result: Mapping[str, Any]) -> Cell:
    ratio = result["ratio"]
    if ratio is None:
        return Cell("baseline" if row["id"] == report["baseline"] else "no baseline", "muted")
    if ratio["verdict"] == NO_DIFFERENCE:
        return Cell(NO_DIFFERENCE, "muted", note=with_interval(ratio))
    tone: Tone = {"faster": "good", "slower": "bad"}.get(ratio["verdict"], "muted")  # type: ignore[assignment]
    return Cell(with_interval(ratio), tone, note=ratio["verdict"])


def _agreement(report: Report, row: Row, result: Mapping[str, Any]) -> Cell:
    found = result.get("agreement")
    if found is None:
        return Cell("baseline" if row["id"] == report["baseline"] else "not compared", "muted")
    if found["texts"] is not None:
        different = found["texts"] - found["same_texts"]
        return Cell(f"{different} of {found['texts']} texts") if different else Cell("no token", "good")
    if found["max_abs_diff"] is None:
        return Cell("not comparable", "bad")
    share = found["max_abs_diff"] / found["max_abs"] if found["max_abs"] else found["max_abs_diff"]
    return Cell(f"{100 * share:.2g} %" if share >= _LEAST_SHARE else f"below {100 * _LEAST_SHARE:g} %")


def _search_words(report: Report, row: Row, profile: Mapping[str, Any]) -> str:
    """How much of the time of a generated text is spent in the graphs; nothing about other cases."""
    case = next((case for case in report["workload"]["cases"] if case["id"] == profile["case"]), None)
    result = result_of(row, profile["case"])
    part = None if case is None else part_of(case)
    if case is None or part is None or part["kind"] != "generate" or case["batches"] > 1 or result is None:
        return ""
    return (
        f" {digits(profile['total_ms'])} ms are in operators, and the median of the case is "
        f"{digits(result['summary']['median'])} ms: the rest is the search, outside of the graphs."
    )


def _rate_of_macs(value: float | None) -> Cell:
    return Cell("not counted", "muted") if value is None else Cell(count(int(value)))


def _difference(report: Report, row: Row, metric: Mapping[str, Any] | None) -> Cell:
    if row["id"] == report["baseline"]:
        return Cell("baseline", "muted")
    if metric is None or metric["difference"] is None:
        return Cell("not measured", "muted")
    difference = metric["difference"]
    if difference["changed"] == 0:
        return Cell("none", note="the same answers")
    tone: Tone = {"better": "good", "worse": "bad"}.get(difference["verdict"], "")  # type: ignore[assignment]
    return Cell(points(difference), tone, note=difference["verdict"])


def _changed(report: Report, row: Row) -> Cell:
    if row["id"] == report["baseline"]:
        return Cell("baseline", "muted")
    for metric in _metrics(row).values():
        if metric["difference"] is not None and metric["difference"]["changed"] is not None:
            return Cell(f"{metric['difference']['changed']:,} of {metric['n']:,}")
    return Cell("not measured", "muted")


def _metrics(row: Row) -> Mapping[str, Any]:
    return row["quality"]["metrics"] if row["quality"] else {}


def _p99(probe: Mapping[str, Any]) -> Cell:
    return Cell("too few queries", "muted") if probe["p99_ms"] is None else Cell(digits(probe["p99_ms"]))


def _latency(milliseconds: float | None) -> Cell:
    return Cell("no answer", "muted") if milliseconds is None else Cell(digits(milliseconds))


def _mean_batch(probe: Mapping[str, Any]) -> Cell:
    """Of an endpoint nobody here sees it."""
    return _unknown() if probe["mean_batch"] is None else Cell(digits(probe["mean_batch"]))


def _within_the_bound(probe: Mapping[str, Any]) -> Cell:
    """Whether the rate held; where queries failed, how many of each kind."""
    failed = [
        f"{count:,} {name.replace('_', ' ')}"
        for name, count in (probe.get("statuses") or {}).items()
        if count and name != "ok"
    ]
    note = ", ".join(failed)
    if probe["saturated"]:
        return Cell("no: saturated", "bad", note=note)
    return Cell("yes", "good") if probe["ok"] else Cell("no", "bad", note=note)


def _unknown() -> Cell:
    return Cell("unknown", "muted")


def _before_after(before: int | None, after: int | None) -> Cell:
    if before is None and after is None:
        return Cell("none", "muted")  # such as the neurons of an attention
    if before is None or after is None:
        return _unknown()
    return Cell(
        f"{before:,} → {after:,}" if before != after else f"{before:,}", note=percent(after / before) if before else ""
    )


def _cores(machine: Mapping[str, Any]) -> str:
    parts = [
        f"{machine[key]} {words}"
        for key, words in (("physical_cores", "physical"), ("logical_cores", "logical"), ("affinity_cores", "usable"))
        if machine.get(key) is not None
    ]
    if parts and "cpu_quota" in machine:
        quota = machine["cpu_quota"]
        parts.append("no CPU quota" if quota is None else f"CPU quota {digits(quota)}")
    return ", ".join(parts)


def _cache(cache: Mapping[str, Any]) -> str:
    kind = "" if cache["type"] == "Unified" else f" {str(cache['type']).lower()}"
    shared = f", shared by {cache['shared_by']}" if (cache.get("shared_by") or 1) > 1 else ""
    return f"L{cache['level']}{kind} {cache['bytes'] / 1024:,.0f} KiB{shared}"


def _memory(machine: Mapping[str, Any]) -> str:
    if machine.get("memory_bytes") is None:
        return ""
    limit = machine.get("memory_limit_bytes")
    return bytes_text(machine["memory_bytes"]) + (f", limited to {bytes_text(limit)}" if limit is not None else "")


def _inputs(workload: Mapping[str, Any]) -> str:
    lengths = workload["lengths"]
    text = {
        "synthetic": "token inputs drawn at random",
        "lengths": "token inputs drawn at random, of recorded lengths",
    }.get(workload["kind"], "labelled examples")
    if workload["file"] is not None:
        text += f" from {workload['file']}"
    if workload["examples"] is not None:
        text += f", {workload['examples']:,} examples"
    if lengths is not None:
        text += (
            f", {lengths['min']:g} to {lengths['max']:g} tokens (median {lengths['median']:g}, p90 {lengths['p90']:g})"
        )
    if workload["sha256"] is not None:
        text += f"; sha256 {workload['sha256']}"
    return text + "; the same for every variant"


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_plain(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_plain, value))
    return str(value)
