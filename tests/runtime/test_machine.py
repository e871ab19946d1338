from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys

import pytest

from compactor.runtime.machine import (
    RELEVANT_ISA,
    CacheInfo,
    GpuInfo,
    describe_gpus,
    describe_int8,
    describe_machine,
)

X86 = "processor\t: {cpu}\nmodel name\t: Test CPU 9000\nflags\t\t: fpu avx2 {extra}\n\n"
ARM = "processor\t: {cpu}\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd asimddp i8mm {extra}\n\n"
V2_MOUNT = "30 24 0:26 {mounted} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "33 25 0:29 {mounted} /sys/fs/cgroup/cpu,cpuacct rw shared:15 - cgroup cgroup rw,cpu,cpuacct\n"


@pytest.fixture
def write(tmp_path):
    def write(path, text):
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    return write


def cpus(template, *extra):
    return "".join(template.format(cpu=cpu, extra=flags) for cpu, flags in enumerate(extra))


@pytest.mark.parametrize(
    ("cpuinfo", "isa"),
    [
        pytest.param(cpus(X86, "avx512f avx512_vnni sse"), ("avx2", "avx512f", "avx512_vnni"), id="x86"),
        pytest.param(
            cpus(X86, "avx_vnni amx_int8 avx512_bf16"), ("avx2", "avx_vnni", "avx512_bf16", "amx_int8"), id="amx"
        ),
        pytest.param(cpus(ARM, "sve"), ("asimddp", "i8mm", "sve"), id="arm"),
        pytest.param(cpus(X86, "avx_vnni", ""), ("avx2",), id="only-what-every-core-has"),
    ],
)
def test_reads_instruction_sets(write, tmp_path, cpuinfo, isa):
    write("proc/cpuinfo", cpuinfo)
    assert describe_machine(tmp_path).isa == isa


def test_reads_model_and_memory(write, tmp_path):
    write("proc/cpuinfo", cpus(X86, ""))
    write("proc/meminfo", "MemTotal:       16384 kB\nMemFree:  1 kB\n")
    machine = describe_machine(tmp_path)
    assert machine.cpu_model == "Test CPU 9000"
    assert machine.memory_bytes == 16 * 2**20


@pytest.mark.parametrize(
    ("cpuinfo", "virtualised"),
    [(cpus(X86, "hypervisor"), True), (cpus(X86, ""), False), (cpus(ARM, ""), None), ("", None)],
)
def test_tells_virtual_machines(write, tmp_path, cpuinfo, virtualised):
    write("proc/cpuinfo", cpuinfo)
    assert describe_machine(tmp_path).virtualised is virtualised


def test_reads_caches_of_the_first_core_from_the_nearest_on(write, tmp_path):
    caches = [
        (3, "Unified", "32768K", "0-3,8"),
        (1, "Instruction", "32K", "0"),
        (1, "Data", "48K", "0-1"),
        (2, "Unified", "2M", ""),
    ]
    for index, (level, kind, size, shared) in enumerate(caches):
        for name, text in (("level", level), ("type", kind), ("size", size), ("shared_cpu_list", shared)):
            write(f"sys/devices/system/cpu/cpu0/cache/index{index}/{name}", f"{text}\n")
    write("sys/devices/system/cpu/cpu0/cache/index4/level", "broken\n")
    assert describe_machine(tmp_path).caches == (
        CacheInfo(1, "Data", 48 * 2**10, 2),
        CacheInfo(1, "Instruction", 32 * 2**10, 1),
        CacheInfo(2, "Unified", 2 * 2**20, None),
        CacheInfo(3, "Unified", 32 * 2**20, 5),
    )


@pytest.mark.parametrize(
    ("path", "text", "hypervisor"),
    [
        ("sys/hypervisor/type", "xen\n", "Xen"),
        ("sys/class/dmi/id/sys_vendor", "Amazon EC2\n", "Amazon EC2"),
        ("sys/class/dmi/id/sys_vendor", "Microsoft Corporation\n", "Microsoft Hyper-V"),
        ("sys/class/dmi/id/sys_vendor", "QEMU\n", "QEMU/KVM"),
        ("sys/class/dmi/id/sys_vendor", "Dell Inc.\n", None),
        ("sys/devices/system/clocksource/clocksource0/available_clocksource", "tsc kvm-clock \n", "KVM"),
        (
            "sys/devices/system/clocksource/clocksource0/available_clocksource",
            "hyperv_clocksource_tsc_page tsc\n",
            "Microsoft Hyper-V",
        ),
    ],
)
def test_names_the_hypervisor(write, tmp_path, path, text, hypervisor):
    write("proc/cpuinfo", cpus(X86, "hypervisor"))
    write(path, text)
    assert describe_machine(tmp_path).hypervisor == hypervisor


def test_a_machine_of_its_own_has_no_hypervisor_whoever_made_it(write, tmp_path):
    write("proc/cpuinfo", cpus(X86, ""))
    write("sys/class/dmi/id/sys_vendor", "Microsoft Corporation\n")  # who also makes laptops
    assert describe_machine(tmp_path).hypervisor is None


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Puts a script of that name first on the search path, and nothing else."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def install(script):
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)

    return install


def test_lists_gpus(nvidia_smi):
    nvidia_smi('echo "NVIDIA H200, 143771, 570.86.15"; echo "Some, odd name, [N/A], 570.86.15"')
    assert describe_gpus() == (
        GpuInfo("NVIDIA H200", 143771 * 2**20, "570.86.15"),
        GpuInfo("Some, odd name", None, "570.86.15"),
    )


def test_asks_for_the_fields_that_it_reads(nvidia_smi):
    nvidia_smi('[ "$*" = "--query-gpu=name,memory.total,driver_version --format=csv,noheader,nounits" ] || exit 1')
    assert describe_gpus() == ()


def test_no_tool_means_no_gpu_and_a_failing_one_unknown(nvidia_smi):
    assert describe_gpus() == ()
    nvidia_smi("echo no devices; exit 9")
    assert describe_gpus() is None


def test_counts_physical_cores_from_the_topology(write, tmp_path, monkeypatch):
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        write(f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", siblings + "\n")
    write("sys/devices/system/cpu/cpufreq/policy", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2}, raising=False)

    machine = describe_machine(tmp_path)

    assert machine.physical_cores == 2
    assert (machine.affinity_cores, machine.affinity_physical_cores) == (2, 1)


def test_counts_physical_cores_from_cpuinfo_without_a_topology(write, tmp_path, monkeypatch):
    record = "processor : {}\nphysical id : {}\ncore id : {}\n\n"
    places = [(0, 0), (0, 0), (1, 0), (1, 1)]
    write("proc/cpuinfo", "".join(record.format(cpu, *place) for cpu, place in enumerate(places)))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)

    machine = describe_machine(tmp_path)

    assert machine.physical_cores == 3
    assert machine.affinity_physical_cores == 2


def test_affinity_outside_the_known_topology_is_unknown(write, tmp_path, monkeypatch):
    write("sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 7}, raising=False)
    assert describe_machine(tmp_path).affinity_physical_cores is None


def test_v2_quota_is_the_tightest_of_nested_groups(write, tmp_path):
    write("proc/self/cgroup", "0::/outer/middle/inner\n")
    write("proc/self/mountinfo", V2_MOUNT.format(mounted="/"))
    write("sys/fs/cgroup/outer/cpu.max", "150000 100000\n")
    write("sys/fs/cgroup/outer/middle/cpu.max", "max 100000\n")
    write("sys/fs/cgroup/outer/middle/inner/cpu.max", "400000 100000\n")
    assert describe_machine(tmp_path).cpu_quota == 1.5


def test_v2_quota_in_a_container_that_sees_its_group_as_the_top(write, tmp_path):
    write("proc/self/cgroup", "0::/\n")
    write("proc/self/mountinfo", V2_MOUNT.format(mounted="/"))
    write("sys/fs/cgroup/cpu.max", "200000 100000\n")
    assert describe_machine(tmp_path).cpu_quota == 2.0


@pytest.mark.parametrize("mounted", ["/docker/abc", "/"])
def test_v2_quota_where_only_a_subtree_of_the_host_is_mounted(write, tmp_path, mounted):
    write("proc/self/cgroup", "0::/docker/abc\n")
    write("proc/self/mountinfo", V2_MOUNT.format(mounted=mounted))
    write("sys/fs/cgroup/cpu.max", "50000 100000\n")
    assert describe_machine(tmp_path).cpu_quota == 0.5


def test_v2_quota_below_a_subtree_of_the_host(write, tmp_path):
    write("proc/self/cgroup", "0::/docker/abc/inner\n")
    write("proc/self/mountinfo", V2_MOUNT.format(mounted="/docker/abc"))
    write("sys/fs/cgroup/inner/cpu.max", "50000 100000\n")
    write("sys/fs/cpu.max", "10000 100000\n")  # above the mount, so no control group
    assert describe_machine(tmp_path).cpu_quota == 0.5


def test_v1_quota_is_the_tightest_of_nested_groups(write, tmp_path):
    write("proc/self/cgroup", "5:memory:/other\n4:cpu,cpuacct:/pod/box\n1:name=systemd:/\n")
    write("proc/self/mountinfo", V1_MOUNT.format(mounted="/"))
    for group, quota in (("pod", 300_000), ("pod/box", -1), ("other", 100_000)):
        write(f"sys/fs/cgroup/cpu,cpuacct/{group}/cpu.cfs_quota_us", f"{quota}\n")
        write(f"sys/fs/cgroup/cpu,cpuacct/{group}/cpu.cfs_period_us", "100000\n")
    assert describe_machine(tmp_path).cpu_quota == 3.0


@pytest.mark.parametrize("text", ["max 100000\n", "", "nonsense\n"])
def test_no_quota(write, tmp_path, text):
    write("proc/self/cgroup", "0::/\n")
    write("proc/self/mountinfo", V2_MOUNT.format(mounted="/") + "a broken line\n")
    write("sys/fs/cgroup/cpu.max", text)
    assert describe_machine(tmp_path).cpu_quota is None


@pytest.mark.parametrize(("text", "limit"), [("1073741824\n", 2**30), ("max\n", None)])
def test_v2_memory_limit(write, tmp_path, text, limit):
    write("proc/self/cgroup", "0::/box\n")
    write("proc/self/mountinfo", V2_MOUNT.format(mounted="/"))
    write("sys/fs/cgroup/box/memory.max", text)
    assert describe_machine(tmp_path).memory_limit_bytes == limit


@pytest.mark.parametrize(
    ("limits", "limit"),
    [
        pytest.param(["9223372036854771712", "2147483648"], 2**31, id="none-above"),
        pytest.param(["1073741824", "2147483648"], 2**30, id="tighter-above"),
        pytest.param(["9223372036854771712", "9223372036854771712"], None, id="the-number-that-means-none"),
    ],
)
def test_v1_memory_limit(write, tmp_path, limits, limit):
    write("proc/self/cgroup", "5:memory:/box\n")
    write("proc/self/mountinfo", "33 25 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n")
    for group, text in zip(("", "box/"), limits, strict=True):
        write(f"sys/fs/cgroup/memory/{group}memory.limit_in_bytes", text + "\n")
    assert describe_machine(tmp_path).memory_limit_bytes == limit


def test_everything_is_unknown_on_a_machine_without_proc(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(platform, "processor", lambda: "")
    machine = dataclasses.asdict(describe_machine(tmp_path))
    known = {name for name, value in machine.items() if value is not None}
    assert known == {"os", "kernel", "architecture", "logical_cores"}


def test_this_machine_is_described_as_json():
    machine = describe_machine()
    assert json.loads(json.dumps(machine.to_json())) == machine.to_json()
    assert set(machine.isa or ()) <= set(RELEVANT_ISA)


@pytest.mark.parametrize(
    ("isa", "words"),
    [
        (("avx2", "avx512f", "avx512_vnni", "amx_int8"), "AMX"),
        (("avx2", "avx512_vnni"), "VNNI dot products (signed"),
        (("avx2", "avx_vnni"), "VNNI dot products (signed"),
        (("avx2", "avx512f"), "modest"),
        (("asimddp", "i8mm"), "i8mm matrix"),
        (("asimddp",), "missing"),
        ((), "prefer fp32"),
        (None, "unknown"),
    ],
)
def test_says_in_one_sentence_which_int8_kernels_are_fast(tmp_path, isa, words):
    sentence = describe_int8(dataclasses.replace(describe_machine(tmp_path), isa=isa))
    assert words in sentence
    assert sentence.endswith(".") and ". " not in sentence


def test_describing_the_machine_loads_no_heavy_package():
    code = "import sys, compactor.runtime.machine, compactor.runtime.threads; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "onnx", "onnxruntime", "torch"} & set(loaded)
