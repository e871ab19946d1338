"""How to measure it again: the machine, the settings, and what exactly each variant was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compactor.reporting.numbers import bytes_text, count, digits
from compactor.reporting.rows import Report, is_server, only_endpoints

_SCENARIOS = {
    "single": "single stream: one batch after the other",
    "offline": "offline: all batches at once",
    "server": "server: Poisson arrivals, latency from the scheduled arrival",
}
_INPUTS = {
    "synthetic": "token inputs drawn at random",
    "lengths": "token inputs drawn at random, of recorded lengths",
}


def machine_rows(report: Report) -> list[tuple[str, str]]:
    """The machine card: what it is, in words; what is unknown is left out."""
    machine = report["machine"]
    load, gpus, virtual = machine.get("load_before"), machine.get("gpus"), machine.get("virtualised")
    hypervisor = f" ({machine['hypervisor']})" if machine.get("hypervisor") else ""
    changed = ", with changes that are not committed" if machine.get("dirty") else ""
    rows = [
        ("CPU", machine.get("cpu_model")),
        ("instruction sets", ", ".join(machine.get("isa") or ())),
        ("cores", _cores(machine)),
        ("caches", "; ".join(map(_cache, machine.get("caches") or ()))),
        ("memory", _memory(machine)),
        ("virtual machine", None if virtual is None else f"yes{hypervisor}" if virtual else "no"),
        ("system", " ".join(str(machine[key]) for key in ("os", "kernel", "architecture") if machine.get(key))),
        *(("GPU", _gpu(gpu)) for gpu in gpus or ()),
        ("GPU", "none" if gpus == [] else None),
        ("load before the start", None if load is None else digits(load)),
        *((f"peak, {precision}", _peak(peak)) for precision, peak in (report["peak"] or {}).items()),
        ("versions", ", ".join(f"{name} {version}" for name, version in (machine.get("versions") or {}).items())),
        ("commit", f"{machine['commit']}{changed}" if machine.get("commit") else None),
    ]
    return [(name, str(text)) for name, text in rows if text]


def reproduce_rows(report: Report) -> list[tuple[str, str]]:
    """How it was measured: all that one needs beside the command."""
    settings, duration_s, clock = report["settings"], report["duration_s"], report["settings"]["clock"]
    pinned = f"pinned to CPUs {', '.join(map(str, settings['affinity']))}" if settings["affinity"] else "not pinned"
    spinning = "idle threads spin" if settings["spinning"] else "idle threads sleep"
    threads = f"{settings['threads']} ({settings['threads_reason']}); {pinned}; {spinning}"
    rounds = f"{settings['rounds']}, each variant in a new process each time, order {settings['order']}"
    if settings["quick"]:
        rounds += "; a quick run, cut down for a first look"
    samples = (
        f"at least {clock['warm_up_s']:g} s and {clock['warm_up_calls']} calls of warm-up, then "
        f"{clock['measure_s']:g} s of samples (at least {clock['min_samples']}, at most "
        f"{clock['max_samples']:,}) in each process and case"
    )
    return [
        ("client", pinned) if only_endpoints(report) else ("threads", threads),
        ("inputs", _inputs(report["workload"])),
        ("rounds", rounds),
        ("scenario", _SCENARIOS[settings["scenario"]]),
        *([] if is_server(report) else [("clock", samples)]),
        ("on the clock", _on_the_clock(report)),
        ("seed", str(settings["seed"])),
        ("took", f"{duration_s / 60:.1f} min" if duration_s >= 120 else f"{duration_s:.0f} s"),
    ]


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
    limit = machine.get("memory_limit_bytes")
    limited = "" if limit is None else f", limited to {bytes_text(limit)}"
    return "" if machine.get("memory_bytes") is None else f"{bytes_text(machine['memory_bytes'])}{limited}"


def _gpu(gpu: Mapping[str, Any]) -> str:
    memory = f", {bytes_text(gpu['memory_bytes'])}" if gpu.get("memory_bytes") else ""
    driver = f", driver {gpu['driver']}" if gpu.get("driver") else ""
    return f"{gpu['name']}{memory}{driver}"


def _on_the_clock(report: Report) -> str:
    if not is_server(report):
        return (
            "arrays in host memory in, arrays in host memory out, any device finished; not tokenizing, padding or "
            "reading files"
        )
    parts = []
    if any(row["engine"] != "http" for row in report["variants"]):
        parts.append("waiting in the queue, batching, arrays in host memory in, arrays in host memory out")
    if any(row["engine"] == "http" for row in report["variants"]):
        parts.append(
            "of endpoints, from when a request is due to its whole answer: tokenizing, HTTP and the network too"
        )
    return "; ".join(parts)


def _peak(peak: Mapping[str, Any]) -> str:
    return (
        f"{count(peak['macs_per_s'])}MAC/s (one {peak['size']}³ matrix product, {peak['engine']} on "
        f"{peak['provider']}, {peak['threads']} threads)"
    )


def _inputs(workload: Mapping[str, Any]) -> str:
    lengths = workload["lengths"]
    text = _INPUTS.get(workload["kind"], "labelled examples")
    if workload["file"] is not None:
        text += f" from {workload['file']}"
    if workload["examples"] is not None:
        text += f", {workload['examples']:,} examples"
    if lengths is not None:
        text += ", {min:g} to {max:g} tokens (median {median:g}, p90 {p90:g})".format(**lengths)
    if workload["sha256"] is not None:
        text += f"; sha256 {workload['sha256']}"
    return f"{text}; the same for every variant"


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_plain(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_plain, value))
    return str(value)
