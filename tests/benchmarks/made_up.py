"""Runs that nobody measured: a tiny model's entry, and samples to make tables from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plant
from benchmarks._run import Row, Run
from benchmarks._workshop import Given
from compactor.benching.plan import Case, Settings, Variant
from compactor.benching.processes import Measured, Measurements
from compactor.runtime.sampling import Clock

MACHINE = {  # a machine card
    "cpu_model": "A CPU",
    "isa": ["avx2", "avx512_vnni"],
    "physical_cores": 2,
    "virtualised": True,
    "kernel": "6",
    "versions": {"onnxruntime": "1"},
    "commit": "abc",
    "dirty": False,
    "gpus": [],
}
ENTRY = plant.Entry(
    task="squadv1",
    method="hybrid",
    teacher="base",
    hidden=32,
    heads=4,
    head_size=8,
    intermediate=40,
    kept_heads=(2, 1),
    kept_ffn=(7, 3),
    attention_nnz=(512, 200),
    attention_block=(4, 4),
    metrics={"f1": 80.5},
    gpu_speedup=2.0,
)
SETTINGS = Settings(
    scenario="single",
    threads=1,
    threads_reason="as requested",
    affinity=None,
    spinning=True,
    rounds=4,
    clock=Clock(measure_s=0.0),
    seed=0,
    quick=False,
)
CASE = Case("1x8", 1, 8, (Path("case-1x8.npz"),), 1, 8, 8)


def measured(rounds: Sequence[Sequence[float]], case: str = CASE.id) -> Measured:
    """What a variant gave whose processes took these milliseconds."""
    usage = {
        "wall_s": 1.0,
        "cpu_s": 1.0,
        "waited_s": 0.0,
        "others_cpu_s": 0.0,
        "steal_s": 0.0,
        "involuntary_switches": 0,
    }
    return Measured(
        environment={},
        load_ms=[1.0] * len(rounds),
        rss_before_bytes=[1] * len(rounds),
        peak_rss_bytes=[2] * len(rounds),
        cases={case: [{"samples_ms": list(samples), "first_ms": 1.0, "usage": usage} for samples in rounds]},
    )


def run_of(rows: Sequence[Row], times: Mapping[str, float], case: Case = CASE, how: Settings = SETTINGS) -> Run:
    """A run in which each row took its time, with a little noise, in four processes; a row without one was not run."""
    variants = [
        Variant(
            row.id,
            row.name,
            row.shop.folder.name,
            row.engine,
            row.provider,
            row.precision,
            Path(f"{row.id}.onnx"),
            reason=None if row.id in times else "not run: it is absent",
        )
        for row in rows
    ]
    noise = (1.0, 1.001, 0.999, 1.0)
    found = {name: measured([[time * factor] * 5 for factor in noise], case.id) for name, time in times.items()}
    errors: dict[str, dict[str, float | None]] = {name: {case.id: 0.01} for name in times}
    return Run(variants, [case], how, Measurements(found), errors, 1.0)


def row(id: str, folder: Path, **fields: Any) -> Row:
    """A row of a checkpoint that is not there."""
    return Row(id, id, Given(folder, folder / "model"), lambda: folder / "model.onnx", **fields)


def in_this_process(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """In place of ``_graphs.in_fresh_process``, which takes seconds to import what is here already."""
    return function(*args, **kwargs)
