"""How to measure it again: the machine, the settings, and what exactly each variant was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compactor.reporting.numbers import bytes_text, count, digits
from compactor.reporting.words import Report, is_server, only_endpoints


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
