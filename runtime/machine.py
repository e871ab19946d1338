"""What this machine offers a graph: instructions, caches, cores, the container's CPU quota, memory, GPUs.

Everything is read from files under ``root`` with the standard library alone; what cannot be read, on macOS or
Windows for instance, is ``None``, which always means *unknown* and never *absent*. Only the GPUs are asked for, of
NVIDIA's own tool: a machine without the tool has none that could be used.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Instruction sets that decide which matrix kernels ONNX Runtime picks, as Linux spells them.
RELEVANT_ISA = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8",  # x86
    "asimddp", "i8mm", "sve",  # ARM
)  # fmt: skip

_NO_MEMORY_LIMIT = 1 << 60  # cgroup v1 writes "no limit" as a huge page-aligned number
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_PATIENCE_S = 20  # nvidia-smi wakes the GPUs first

# What the firmware calls the maker of a virtual machine, and what the kernel then takes its clock from.
_FIRMWARE = {
    "amazon ec2": "Amazon EC2",
    "google": "Google Compute Engine",
    "microsoft corporation": "Microsoft Hyper-V",
    "vmware": "VMware",
    "innotek gmbh": "VirtualBox",
    "xen": "Xen",
    "qemu": "QEMU/KVM",
    "parallels": "Parallels",
}
_CLOCKS = {"kvm-clock": "KVM", "hyperv_clocksource": "Microsoft Hyper-V", "xen": "Xen"}


@dataclasses.dataclass(frozen=True)
class CacheInfo:
    """One cache of the first core."""

    level: int
    type: str  # "Data", "Instruction" or "Unified"
    bytes: int | None
    shared_by: int | None  # logical CPUs


@dataclasses.dataclass(frozen=True)
class GpuInfo:
    """One GPU that the driver shows."""

    name: str
    memory_bytes: int | None
    driver: str | None


@dataclasses.dataclass(frozen=True)
class MachineInfo:
    """One machine as this process sees it; ``None`` means unknown, for quota and limit also *none set*."""

    os: str
    kernel: str | None
    architecture: str
    cpu_model: str | None
    isa: tuple[str, ...] | None
    caches: tuple[CacheInfo, ...] | None
    physical_cores: int | None
    logical_cores: int | None
    affinity_cores: int | None  # logical CPUs this process may run on
    affinity_physical_cores: int | None  # physical cores behind those
    cpu_quota: float | None  # CPUs' worth of time the container may use
    memory_bytes: int | None
    memory_limit_bytes: int | None  # the container's
    virtualised: bool | None
    hypervisor: str | None  # its name; None also where there is none

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        fields = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def describe_machine(root: Path = Path("/")) -> MachineInfo:
    """Describe the machine whose ``/proc`` and ``/sys`` lie under ``root``."""
    cpuinfo = _read_cpuinfo(root)
    flags = _flags(cpuinfo)
    affinity = _affinity()
    core_of = _physical_core_of_each_cpu(root, cpuinfo)
    virtualised = _virtualised(root, flags)
    physical = len(set(core_of.values())) or None
    return MachineInfo(
        os=platform.system(),
        kernel=platform.release() or None,
        architecture=platform.machine(),
        cpu_model=_cpu_model(cpuinfo),
        isa=None if flags is None else tuple(name for name in RELEVANT_ISA if name in flags),
        caches=_caches(root),
        physical_cores=physical,
        logical_cores=os.cpu_count(),
        affinity_cores=None if affinity is None else len(affinity),
        affinity_physical_cores=_cores_within(affinity, core_of),
        cpu_quota=_cpu_quota(root),
        memory_bytes=_memory_bytes(root),
        memory_limit_bytes=_memory_limit(root),
        virtualised=virtualised,
        hypervisor=None if virtualised is False else _hypervisor(root),
    )


def describe_gpus() -> tuple[GpuInfo, ...] | None:
    """The GPUs that ``nvidia-smi`` lists; none without that tool, None where it fails."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=_PATIENCE_S)
    except FileNotFoundError:
        return ()
    except (OSError, subprocess.SubprocessError):
        return None
    return tuple(_gpu(line) for line in done.stdout.splitlines() if line.strip())


def describe_int8(machine: MachineInfo) -> str:
    """Which int8 kernels will be fast on ``machine``, in one sentence."""
    if machine.isa is None:
        return "The instruction set is unknown here, so measure before choosing int8."
    isa = set(machine.isa)
    if "amx_int8" in isa:
        return "Fast, through AMX tile products (signed weights, dynamic activations)."
    if isa & {"avx512_vnni", "avx_vnni"}:
        return "Fast, through VNNI dot products (signed weights, dynamic activations)."
    if "i8mm" in isa:
        return "Fast, through the i8mm matrix instructions."
    if "asimddp" in isa:
        return "Fast, through dot-product instructions; i8mm, which is faster still, is missing."
    if isa & {"avx2", "avx512f"}:
        return (
            "A modest gain, without VNNI dot products: 16-bit sums saturate here, except of weights that are quantized"
            " for it, as compactor's are."
        )
    return "Slow, as this CPU has no 8-bit dot products: prefer fp32."


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _read_int(path: Path) -> int | None:
    try:
        return int(_read(path) or "")
    except ValueError:
        return None


# CPU model, instruction set, cores


def _read_cpuinfo(root: Path) -> list[dict[str, str]]:
    """The records of ``/proc/cpuinfo`` that describe a processor, one dictionary each."""
    records = []
    for block in (_read(root / "proc/cpuinfo") or "").split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines())
        record = {key.strip(): value.strip() for key, separator, value in pairs if separator}
        if record:
            records.append(record)
    return records


def _flags(cpuinfo: list[dict[str, str]]) -> set[str] | None:
    """Instruction sets that every processor has: x86 says ``flags``, ARM says ``Features``."""
    listed = [record.get("flags", record.get("Features")) for record in cpuinfo]
    found = [set(line.split()) for line in listed if line is not None]
    return set.intersection(*found) if found else None


def _cpu_model(cpuinfo: list[dict[str, str]]) -> str | None:
    for key in ("model name", "Hardware", "Model"):
        for record in cpuinfo:
            if record.get(key):
                return record[key]
    return platform.processor() or None


def _affinity() -> set[int] | None:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return None


def _physical_core_of_each_cpu(root: Path, cpuinfo: list[dict[str, str]]) -> dict[int, str]:
    """A name for the physical core behind each logical CPU; empty when unknown."""
    topology = {}
    for cpu in (root / "sys/devices/system/cpu").glob("cpu[0-9]*"):
        siblings = _read(cpu / "topology/thread_siblings_list")
        if siblings is not None and cpu.name[3:].isdigit():
            topology[int(cpu.name[3:])] = siblings.strip()
    if topology:
        return topology
    return {
        int(record["processor"]): f"{record.get('physical id', '0')}:{record['core id']}"
        for record in cpuinfo
        if record.get("processor", "").isdigit() and "core id" in record
    }


def _cores_within(affinity: set[int] | None, core_of: dict[int, str]) -> int | None:
    if affinity is None or not affinity <= core_of.keys():
        return None
    return len({core_of[cpu] for cpu in affinity})


def _caches(root: Path) -> tuple[CacheInfo, ...] | None:
    """The caches of the first CPU, from the nearest to the farthest."""
    found = []
    for folder in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index[0-9]*")):
        level, kind = _read_int(folder / "level"), (_read(folder / "type") or "").strip()
        if level is not None and kind:
            shared = _count_cpus(_read(folder / "shared_cpu_list") or "")
            found.append(CacheInfo(level, kind, _size(_read(folder / "size")), shared))
    return tuple(sorted(found, key=lambda cache: (cache.level, cache.type))) or None


def _size(text: str | None) -> int | None:
    """Bytes of ``32K``."""
    found = re.fullmatch(r"(\d+)([KMG]?)", (text or "").strip())
    return int(found[1]) * _UNITS[found[2]] if found else None


def _count_cpus(listed: str) -> int | None:
    """How many CPUs ``0-3,8`` names."""
    ranges = re.findall(r"(\d+)(?:-(\d+))?", listed)
    return sum(int(last or first) - int(first) + 1 for first, last in ranges) or None


def _gpu(line: str) -> GpuInfo:
    """A line such as ``NVIDIA H200, 143771, 570.86.15``: name, MiB, driver."""
    name, memory, driver = [*(field.strip() for field in line.rsplit(",", 2)), "", ""][:3]
    return GpuInfo(name, int(memory) * 2**20 if memory.isdigit() else None, driver or None)


def _memory_bytes(root: Path) -> int | None:
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _virtualised(root: Path, flags: set[str] | None) -> bool | None:
    if flags is None:
        return None
    if "hypervisor" in flags or (root / "proc/device-tree/hypervisor").exists():
        return True
    # Only x86 guests carry the flag, so its absence says nothing on ARM.
    return False if "fpu" in flags else None


def _hypervisor(root: Path) -> str | None:
    """What the guest is told about its host: by Xen itself, by the firmware, or by the clocks on offer."""
    if (_read(root / "sys/hypervisor/type") or "").strip() == "xen":
        return "Xen"
    firmware = (_read(root / "sys/class/dmi/id/sys_vendor") or "").strip().lower()
    for vendor, name in _FIRMWARE.items():
        if firmware.startswith(vendor):
            return name
    offered = _read(root / "sys/devices/system/clocksource/clocksource0/available_clocksource") or ""
    clocks = (name for clock, name in _CLOCKS.items() if any(word.startswith(clock) for word in offered.split()))
    return next(clocks, None)


# Container limits. A limit may be set on any group between ours and the top; the tightest one holds.


def _cpu_quota(root: Path) -> float | None:
    quotas = []
    for group in _control_groups(root, "cpu"):
        quota, _, period = (_read(group / "cpu.max") or "max").strip().partition(" ")  # v2: "150000 100000"
        if quota.isdigit() and period.isdigit():
            quotas.append(int(quota) / int(period))
        limit, window = _read_int(group / "cpu.cfs_quota_us"), _read_int(group / "cpu.cfs_period_us")  # v1
        if limit is not None and limit > 0 and window:
            quotas.append(limit / window)
    return min(quotas, default=None)


def _memory_limit(root: Path) -> int | None:
    limits = [
        limit
        for group in _control_groups(root, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")  # v2, v1
        if (limit := _read_int(group / name)) is not None and limit < _NO_MEMORY_LIMIT
    ]
    return min(limits, default=None)


def _control_groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups this process is in, innermost first, for v2 and for v1 ``controller``."""
    mounts = _control_group_mounts(root)
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        unified = not controllers
        if not unified and controller not in controllers.split(","):
            continue
        for kind, options, mounted, mount_point in mounts:
            if kind != ("cgroup2" if unified else "cgroup") or not (unified or controller in options):
                continue
            top = root / mount_point.lstrip("/")
            inner = path.removeprefix(mounted.rstrip("/")).strip("/")  # a container may see only its own subtree
            group = top.joinpath(*(part for part in inner.split("/") if part not in ("", "..")))
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))


def _control_group_mounts(root: Path) -> list[tuple[str, list[str], str, str]]:
    """(file system, options, mounted subtree, mount point) of each control-group mount."""
    mounts = []
    for line in (_read(root / "proc/self/mountinfo") or "").splitlines():
        place, _, source = line.partition(" - ")
        fields, origin = place.split(), source.split()
        if len(fields) > 4 and len(origin) > 2 and origin[0] in ("cgroup", "cgroup2"):
            mounts.append((origin[0], origin[2].split(","), fields[3], fields[4]))
    return mounts
