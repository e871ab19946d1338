"""Reports as ``compactor bench`` writes them, made up: complete, realistic, and the same for the same arguments."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

HEADS = ((12, 4), (12, 5), (12, 5))
NEURONS = ((1536, 1264), (1536, 555), (1536, 113))


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a row is, and how fast it is at 1x128, in milliseconds."""

    name: str
    target: str
    engine: str
    provider: str
    precision: str
    file: str | None
    ms: float
    fixed_ms: float
    file_bytes: int
    parameters: int
    accuracy: float
    changed: int


KINDS = {
    "model-torch": Kind(
        "model, PyTorch fp32", "model", "torch", "torch", "fp32", None, 21.4, 3.1, 40_638_000, 10_246_274, 0.8475, 0
    ),
    "model-torch-compiled": Kind(
        "model, PyTorch fp32, compiled", "model", "torch", "torch", "fp32", None, 17.2, 1.2, 40_638_000, 10_246_274,
        0.8475, 0,
    ),
    "compact-fp32": Kind(
        "compact fp32", "compact", "onnxruntime", "cpu", "fp32", "model.onnx", 6.1, 0.2, 28_213_554, 7_041_026,
        0.8475, 0,
    ),
    "compact-int8": Kind(
        "compact int8", "compact", "onnxruntime", "cpu", "int8", "model_quantized.onnx", 2.4, 0.15, 7_318_262,
        7_057_538, 0.8463, 13,
    ),
    "compact-openvino-fp32": Kind(
        "compact fp32, OpenVINO", "compact", "openvino", "openvino", "fp32", "model.onnx", 5.6, 0.3, 28_213_554,
        7_041_026, 0.8475, 0,
    ),
    "compact-cuda-fp16": Kind(
        "compact fp16, CUDA", "compact-cuda", "onnxruntime", "cuda", "fp16", "model.onnx", 0.7, 0.3, 14_120_000,
        7_041_026, 0.8475, 1,
    ),
}  # fmt: skip
VARIANTS = ("model-torch", "compact-fp32", "compact-int8", "compact-cuda-fp16")
NO_CUDA = "not run: no CUDA device"


def make_report(
    *,
    scenario: str = "single",
    variants: Sequence[str] = VARIANTS,
    cases: Sequence[str] = ("1x32", "1x128", "8x128"),
    baseline: str | None = "model-torch",
    failed: Mapping[str, str] | None = None,
    not_run: Mapping[str, str] | None = None,
    speed: Mapping[str, float] | None = None,
    quality: bool = True,
    profile: bool = True,
    layers: bool = True,
    ledger: bool = False,
    peak: bool = True,
    reasons: Sequence[str] = (),
    interrupted: bool = False,
    quick: bool = False,
    data: bool = False,
    rounds: int = 8,
    samples: int = 40,
    names: Mapping[str, str] | None = None,
    title: str = "sst2-small-hybrid",
    notes: Sequence[str] = ("Timed with token inputs on the host; reading and tokenizing are not on the clock.",),
    seed: int = 7,
) -> dict[str, Any]:
    """A report of schema 1.

    Args:
        scenario: ``single``, ``offline`` or ``server``.
        variants: Rows, by their keys in ``KINDS``.
        cases: ``BATCHxSEQ``, or ``batch 32`` and ``batch 32, bucketed`` for inputs of real lengths.
        baseline: The row that the others are compared with; None compares nothing.
        failed: Rows that crashed, and what they said.
        not_run: Rows that could not run, and why; by default a CUDA row is one. Its words begin with ``not run: ``.
        speed: Factor on a row's true speed: 1.0 leaves it, 0.5 makes it half as fast.
        quality: Whether accuracy was measured.
        profile: Whether rows on ONNX Runtime were profiled.
        layers: Whether the heads and neurons of each layer are known.
        ledger: Whether int8 of the artefact was chosen by data.
        peak: Whether the machine's own limit was measured.
        reasons: Why the report is INVALID; empty makes it VALID.
        interrupted: Whether the user stopped it, after three rounds.
        quick: Whether it ran in a hurry.
        data: Whether the inputs came from a labelled file.
        rounds: Processes of each row.
        samples: Samples of each process.
        names: Other names for rows, hostile ones for instance.
        title: What was measured.
        notes: What the reader should know.
        seed: Of all random numbers.
    """
    generator = np.random.default_rng(seed)
    done = min(rounds, 3) if interrupted else rounds
    failed = dict(failed or {})
    not_run = {key: NO_CUDA for key in variants if "cuda" in key} if not_run is None else dict(not_run)
    shapes = [_case(case) for case in cases]
    peaks = {
        "fp32": _peak(1.02e11, "fp32"),
        "int8": _peak(3.71e11, "int8"),
    }
    rows: list[dict[str, Any]] = []
    base: dict[str, Any] | None = None
    order = sorted(variants, key=lambda key: key != baseline)  # the baseline's numbers are needed first
    for key in order:
        kind = KINDS[key]
        why = failed.get(key) or not_run.get(key)
        factor = (speed or {}).get(key, 1.0)
        row = {
            "id": key,
            "name": (names or {}).get(key, kind.name),
            "target": kind.target,
            "engine": kind.engine,
            "provider": kind.provider,
            "precision": kind.precision,
            "file": kind.file,
            "sha256": None if kind.file is None else hashlib.sha256(key.encode()).hexdigest(),
            "status": "failed" if key in failed else "not run" if key in not_run else "measured",
            "why": None if why is None else {"what": why, "where": None, "todo": _todo(why)},
            "environment": {} if why else _environment(kind),
            "counters": {
                "file_bytes": kind.file_bytes,
                "parameters": kind.parameters,
                "peak_rss_bytes": None if why else 210_000_000 + 3 * kind.file_bytes,
                "rss_before_bytes": None if why else 61_000_000,
            },
            "load_ms": [] if why else _round(generator.normal(4 + kind.file_bytes / 4e5, 2.0, done)),
            "results": [],
            "server": None,
            "quality": None,
            "profile": None,
        }
        if not why:
            if scenario == "server":
                row["server"] = _server(kind, factor, generator)
            else:
                row["results"] = [
                    _result(kind, case, base, scenario, factor, done, samples, peaks if peak else None, generator)
                    for case in shapes
                ]
            if quality:
                row["quality"] = _quality(kind, is_baseline=key == baseline, compared=baseline is not None)
            if profile and kind.engine == "onnxruntime":
                row["profile"] = _profile(kind, shapes[-1]["id"])
        if key == baseline and not why:
            base = row
        rows.append(row)
    rows.sort(key=lambda row: list(variants).index(row["id"]))
    return {
        "schema": 1,
        "kind": "compactor-bench",
        "created": "2026-11-23T22:40:00Z",
        "command": "compactor bench compact --baseline model",
        "duration_s": 81.2,
        "interrupted": interrupted,
        "title": title,
        "settings": {
            "scenario": scenario,
            "providers": list(dict.fromkeys(KINDS[key].provider for key in variants)),
            "threads": 2,
            "threads_reason": "2 physical cores are ours",
            "affinity": [0, 1],
            "spinning": True,
            "rounds": rounds,
            "order": "ABBA",
            "clock": {
                "warm_up_s": 0.3, "warm_up_calls": 2, "measure_s": 1.0, "min_samples": 5, "max_samples": 2000,
            },
            "seed": 17,
            "quick": quick,
            "metric": "accuracy" if quality else None,
        },
        "workload": {
            "kind": "data" if data else "synthetic",
            "file": "sst2.tsv" if data else None,
            "sha256": hashlib.sha256(b"sst2").hexdigest() if data else None,
            "examples": 872 if data else None,
            "lengths": {"min": 4, "median": 24, "p90": 41, "p95": 46, "max": 66, "mean": 25.2} if data else None,
            "cases": shapes,
        },
        "baseline": baseline,
        "variants": rows,
        "layers": _layers() if layers else None,
        "ledgers": [{"target": "compact", "ledger": make_ledger()}] if ledger else [],
        "peak": peaks if peak else None,
        "machine": _machine(),
        "verdict": {"valid": not reasons, "reasons": list(reasons)},
        "notes": list(notes),
    }  # fmt: skip


def _case(case: str) -> dict[str, Any]:
    shape = re.fullmatch(r"(\d+)x(\d+)", case)
    if shape:
        batch, seq = int(shape[1]), int(shape[2])
        tokens = batch * seq
        return {
            "id": case, "batch": batch, "seq": seq, "batches": 1, "examples": batch, "tokens": tokens,
            "positions": tokens, "bucketed": None,
        }  # fmt: skip
    found = re.match(r"batch (\d+)", case)
    assert found, case
    batch, bucketed = int(found[1]), "bucketed" in case
    return {
        "id": case, "batch": batch, "seq": None, "batches": -(-872 // batch), "examples": 872, "tokens": 21_974,
        "positions": 22_900 if bucketed else 38_368, "bucketed": None if batch == 1 else bucketed,
    }  # fmt: skip


def _result(
    kind: Kind,
    case: Mapping[str, Any],
    base: Mapping[str, Any] | None,
    scenario: str,
    factor: float,
    rounds: int,
    samples: int,
    peaks: Mapping[str, Any] | None,
    generator: np.random.Generator,
) -> dict[str, Any]:
    calls = case["batches"] if scenario == "offline" else 1
    share = 1 if scenario == "offline" else case["batches"]
    positions = case["positions"] / share
    true_ms = (kind.ms * positions / 128 * (0.9 + 0.1 / case["batch"]) + kind.fixed_ms * calls) / factor
    processes = true_ms * (1 + 0.015 * generator.standard_normal(rounds))
    times = [_round(process * (1 + generator.gamma(2, 0.01, samples))) for process in processes]
    flat = np.concatenate([np.asarray(process) for process in times])
    median = float(np.median([np.median(process) for process in times]))
    macs = int((2_170_000 if kind.target.startswith("compact") else 5_310_000) * positions)
    rate = macs / median * 1e3
    medians = [float(np.median(process)) for process in times]
    return {
        "case": case["id"],
        "rounds_ms": times,
        "first_ms": _round(processes * 1.9),
        "usage": [
            {
                "wall_s": round(sum(process) / 1e3, 6), "cpu_s": round(1.97 * sum(process) / 1e3, 6), "waited_s": 0.004,
                "others_cpu_s": 0.012, "steal_s": 0.0, "involuntary_switches": 3,
            }
            for process in times
        ],
        "summary": {
            "median": median,
            "mean": float(flat.mean()),
            **{f"p{p}": float(np.quantile(flat, p / 100)) for p in (10, 50, 90, 95)},
            "p99": float(np.quantile(flat, 0.99)) if flat.size >= 1000 else None,
            "samples": int(flat.size),
            "processes": rounds,
            "process_spread": (max(medians) - min(medians)) / median,
        },
        "throughput": {
            "examples_per_s": case["examples"] / share / median * 1e3,
            "tokens_per_s": case["tokens"] / share / median * 1e3,
        },
        "ratio": _ratio(base, case["id"], median, rounds),
        "macs": macs,
        "macs_per_s": rate,
        "share_of_peak": rate / peaks["int8" if kind.precision == "int8" else "fp32"]["macs_per_s"] if peaks else None,
    }  # fmt: skip


def _ratio(base: Mapping[str, Any] | None, case: str, median: float, rounds: int) -> dict[str, Any] | None:
    if base is None:
        return None
    value = next(found["summary"]["median"] for found in base["results"] if found["case"] == case) / median
    if rounds < 2:
        return {"value": value, "low": None, "high": None, "verdict": "too few processes to tell"}
    low, high = 0.972 * value, 1.031 * value
    words = "faster" if low > 1 else "slower" if high < 1 else "no significant difference"
    return {"value": value, "low": low, "high": high, "verdict": words}


def _server(kind: Kind, factor: float, generator: np.random.Generator) -> dict[str, Any]:
    service_ms = (kind.ms * 0.22 + kind.fixed_ms) / factor
    capacity = 1e3 / service_ms * 1.6
    bound = 20.0
    probes = []
    for load in (0.2, 0.4, 0.6, 0.75, 0.85, 0.92, 1.08):
        saturated = load > 1
        p50 = service_ms * (1 + 0.5 * load) if not saturated else 40 * service_ms
        p99 = service_ms * (1.8 + load / max(1 - load, 0.02) * 1.1) if not saturated else 95 * service_ms
        latencies = _round(np.sort(generator.gamma(4, p50 / 3.7, 200)))
        probes.append(
            {
                "qps": load * capacity, "queries": 1200, "duration_s": 1200 / (load * capacity),
                "achieved_qps": min(load, 1.0) * capacity, "p50_ms": p50, "p90_ms": (p50 + p99) / 2, "p99_ms": p99,
                "max_ms": 1.3 * p99, "mean_batch": 1 + 3 * load, "ok": p99 <= bound and not saturated,
                "saturated": saturated, "latencies_ms": latencies,
            }
        )  # fmt: skip
    good = [probe["qps"] for probe in probes if probe["ok"]]
    return {
        "bound_ms": bound, "percentile": 99, "max_batch": 8, "best_qps": max(good, default=None), "probes": probes,
        "note": None if good else "no offered rate kept p99 under the bound",
    }  # fmt: skip


def _quality(kind: Kind, *, is_baseline: bool, compared: bool) -> dict[str, Any]:
    difference = None
    if compared and not is_baseline:
        value = kind.accuracy - 0.8475
        difference = {
            "value": value, "se": 0.0041 if kind.changed else 0.0, "low": value - 0.008, "high": value + 0.008,
            "changed": kind.changed, "p": 0.79 if kind.changed else 1.0, "verdict": "no significant difference",
        }  # fmt: skip
    return {"metrics": {"accuracy": {"value": kind.accuracy, "se": 0.0122, "n": 872, "difference": difference}}}


def _profile(kind: Kind, case: str) -> dict[str, Any]:
    matmul = "DynamicQuantizeMatMul" if kind.precision == "int8" else "FusedMatMul"
    shares = {
        matmul: 0.58, "Attention": 0.17, "Gelu": 0.09, "SkipLayerNormalization": 0.06, "GatherND": 0.03,
        "ScatterND": 0.03, "Add": 0.015, "Gather": 0.012, "MatMul": 0.008, "Softmax": 0.003, "Cast": 0.002,
    }  # fmt: skip
    total = 8 * kind.ms  # of one run
    provider = "cuda" if kind.provider == "cuda" else "cpu"
    return {
        "case": case,
        "runs": 20,
        "total_ms": total,
        "operators": [
            {"name": name, "provider": provider, "count": 12, "ms": share * total, "share": share, "macs": 90_000_000}
            for name, share in shares.items()
        ],
        "layers": [
            {"name": name, "ms": share * total, "share": share}
            for name, share in {
                "layers.0.attention": 0.15, "layers.0.ffn": 0.27, "layers.1.attention": 0.16, "layers.1.ffn": 0.13,
                "layers.2.attention": 0.16, "layers.2.ffn": 0.06, "other": 0.07,
            }.items()
        ],
        "placement": {provider: 120, **({"cpu": 2} if provider == "cuda" else {})},
        "misplaced": ["gather_3 (Gather) runs on cpu"] if provider == "cuda" else [],
    }  # fmt: skip


def _layers() -> list[dict[str, Any]]:
    return [
        {
            "name": f"layers.{i}", "heads_before": heads[0], "heads_after": heads[1], "neurons_before": neurons[0],
            "neurons_after": neurons[1],
        }
        for i, (heads, neurons) in enumerate(zip(HEADS, NEURONS, strict=True))
    ]  # fmt: skip


def make_ledger() -> dict[str, Any]:
    """As an export with ``--calibrate`` writes it: a layer that is slower in int8, one that stays in fp32, a table."""
    units = [
        ("layers.0.attention#0", [256, 384], 0.412, 0.141, 0.0031, 1, "int8"),
        ("layers.0.attention#1", [128, 256], 0.131, 0.058, 0.0012, 0, "int8"),
        ("layers.0.feed_forward#0", [256, 1264], 1.21, 0.502, 0.0058, 2, "int8"),
        ("layers.0.feed_forward#1", [1264, 256], 1.18, 0.611, 0.0214, 7, "fp32"),
        ("pooler#0", [256, 256], 0.011, 0.014, 0.0007, 0, "int8"),
        ("bert.embeddings.word_embeddings.weight", None, 0.0, 0.0, 0.0041, 1, "int8"),
    ]
    names = ("unit", "shape", "fp32_ms", "int8_ms", "error", "changed", "precision")
    return {
        "file": "sst2.tsv",
        "examples": 400,
        "measure": "answers",
        "keep": 99.5,
        "kept": {"chosen_by": 99.5, "held_out": 99.5},
        "counts": {"chosen_by": 200, "held_out": 200},
        "error": 0.0089,
        "units": [
            {**dict(zip(names, unit, strict=True)), "layer": "embeddings" if unit[1] is None else unit[0][:-2]}
            for unit in units
        ],
    }


def _peak(rate: float, precision: str) -> dict[str, Any]:
    size = 1024 if precision == "fp32" else 2048
    return {"macs_per_s": rate, "size": size, "engine": "onnxruntime", "provider": "cpu", "threads": 2}


def _machine() -> dict[str, Any]:
    return {
        "cpu_model": "AMD EPYC 9B45 128-Core Processor",
        "isa": ["avx2", "avx512f", "avx512_vnni", "avx512_bf16"],
        "caches": [
            {"level": 1, "type": "Data", "bytes": 49_152, "shared_by": 1},
            {"level": 1, "type": "Instruction", "bytes": 32_768, "shared_by": 1},
            {"level": 2, "type": "Unified", "bytes": 1_048_576, "shared_by": 1},
            {"level": 3, "type": "Unified", "bytes": 33_554_432, "shared_by": 2},
        ],
        "physical_cores": 2,
        "logical_cores": 2,
        "affinity_cores": 2,
        "cpu_quota": None,
        "memory_bytes": 16_600_000_000,
        "memory_limit_bytes": 8_589_934_592,
        "os": "Linux",
        "kernel": "6.1.0-38-amd64",
        "architecture": "x86_64",
        "virtualised": True,
        "hypervisor": "KVM",
        "gpus": [],
        "load_before": 0.08,
        "versions": {
            "python": "3.12.11", "compactor": "0.1.0", "onnxruntime": "1.31.1", "torch": "2.13.0",
            "transformers": "5.23.0",
        },
        "commit": "72f9eb4",
        "dirty": False,
    }  # fmt: skip


def _environment(kind: Kind) -> dict[str, Any]:
    return {
        "onnxruntime": {"onnxruntime": "1.31.1", "providers": ["CPUExecutionProvider"], "spinning": True},
        "openvino": {"openvino": "2026.4.0", "INFERENCE_NUM_THREADS": 2},
        "torch": {"torch": "2.13.0", "transformers": "5.23.0"},
    }[kind.engine]


def _todo(why: str) -> str | None:
    return "run it on a machine with an NVIDIA GPU and onnxruntime-gpu" if "CUDA" in why else None


def _round(values: Any) -> list[float]:
    return [round(float(value), 4) for value in values]
