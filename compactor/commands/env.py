"""``compactor env``: what matters here for speed and support: versions, providers, instructions, cores, quota."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import TYPE_CHECKING, Any

import click

from compactor.commands import debug_option, json_option
from compactor.console import Console

if TYPE_CHECKING:
    from compactor.runtime.machine import MachineInfo

PACKAGES = ("compactor", "torch", "transformers", "onnx", "onnx_ir", "onnxruntime", "onnxruntime-gpu")


@click.command(short_help="Show versions, providers, instruction sets, cores and CPU quota.")
@json_option
@debug_option
def command(as_json: bool) -> None:
    """Show what this machine offers, for choosing a target and for reporting a problem.

    Reads versions from package metadata and the rest from the operating system; nothing leaves the machine.
    """
    from compactor.runtime.machine import describe_machine

    machine = describe_machine()
    report = collect(machine)
    if as_json:
        Console().document(report)
    else:
        Console().table(("what", "here"), _rows(report, machine))


def collect(machine: MachineInfo) -> dict[str, Any]:
    """The report as JSON values; what is unknown or not installed is ``None``."""
    from compactor.runtime.machine import describe_int8
    from compactor.runtime.providers import count_cuda_devices, installed_runtimes
    from compactor.runtime.threads import explain_threads

    plan = explain_threads(machine=machine)
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "providers": _providers(),
        "onnxruntime_conflict": len(installed_runtimes()) > 1,
        "cuda_devices": count_cuda_devices(),
        "machine": machine.to_json(),
        "int8": describe_int8(machine),
        "threads": {"planned": plan.threads, "reason": plan.reason},
    }


def _rows(report: dict[str, Any], machine: MachineInfo) -> list[tuple[str, str]]:
    """The report as people are shown it."""
    providers, threads = report["providers"], report["threads"]
    system = (machine.os, machine.kernel, machine.architecture, _virtualised(machine))
    return [
        *((name, version) for name, version in report["versions"].items() if version is not None),
        ("providers", "none: ONNX Runtime does not load" if providers is None else ", ".join(providers)),
        ("GPU", _gpu_advice(report)),
        ("system", " ".join(filter(None, system))),
        ("CPU", machine.cpu_model or "unknown"),
        ("instructions", "unknown" if machine.isa is None else ", ".join(machine.isa) or "none that matter"),
        ("int8", report["int8"]),
        ("cores", _cores(machine)),
        ("CPU quota", "none" if machine.cpu_quota is None else f"{machine.cpu_quota:g} CPUs"),
        ("memory", _memory(machine)),
        ("threads", f"{threads['planned']} ({threads['reason']})"),
    ]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _providers() -> list[str] | None:
    """Providers of the installed ONNX Runtime; None where it is missing or broken, which is worth reporting."""
    from compactor.runtime.providers import available_providers

    try:
        return available_providers()
    except (ImportError, AttributeError, OSError):  # two distributions unpacked over each other fail in odd ways
        return None


def _virtualised(machine: MachineInfo) -> str | None:
    return {True: "(virtualised)", False: "(bare metal)", None: None}[machine.virtualised]


def _cores(machine: MachineInfo) -> str:
    def count(value: int | None) -> str:
        return "unknown" if value is None else str(value)

    usable = f", {machine.affinity_cores} open to this process" if machine.affinity_cores is not None else ""
    return f"{count(machine.physical_cores)} physical, {count(machine.logical_cores)} logical{usable}"


def _memory(machine: MachineInfo) -> str:
    if machine.memory_bytes is None:
        return "unknown"
    limit = machine.memory_limit_bytes
    within = f", {limit / 2**30:.1f} GiB for this container" if limit is not None else ""
    return f"{machine.memory_bytes / 2**30:.1f} GiB{within}"


def _gpu_advice(report: dict[str, Any]) -> str:
    from compactor.runtime.providers import GPU_HINT

    if report["onnxruntime_conflict"]:
        return f"conflict: onnxruntime and onnxruntime-gpu fill the same folder, keep one; for the GPU one: {GPU_HINT}"
    if "CUDAExecutionProvider" in (report["providers"] or ()):
        return f"'cuda' is installed; GPUs that the driver shows: {report['cuda_devices']}"
    return f"'cuda' is not installed, and cannot be beside onnxruntime; to swap: {GPU_HINT}"
