"""One measurement in one process: what ``processes.py`` starts, and the only place where a variant runs.

    python -m compactor.benching.worker SPEC.json

A session's idle threads spin, its allocator keeps what it got, and torch brings thread pools of its own: two variants
in one process disturb each other. The process reads what to do from a file and leaves ``result.json`` in the folder
that the file names; whatever the engine prints cannot spoil it.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compactor.benching.plan import Part, Variant
from compactor.errors import CompactorError
from compactor.runtime.errors import ProviderUnavailableError
from compactor.runtime.sampling import Clock, peak_memory_bytes, sample

RESULT = "result.json"


def main(arguments: Sequence[str]) -> int:
    """Do what the spec says; an error becomes part of the result."""
    spec = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    try:
        result = work(spec)
    except (CompactorError, ProviderUnavailableError) as error:
        result = {"error": {"what": error.what, "where": error.where, "todo": error.todo}}
    except Exception as error:
        result = {"error": {"what": f"{type(error).__name__}: {error}", "where": None, "todo": None}}
    (Path(spec["folder"]) / RESULT).write_text(json.dumps(result, allow_nan=False), encoding="utf-8")
    return 0


def work(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The result of ``spec["mode"]``.

    ``time`` samples each case, ``serve`` plays the server scenario, ``outputs`` runs each batch once and keeps what it
    gave, ``macs`` counts multiply-adds, ``profile`` says where the time goes, ``peak`` measures the machine itself.
    """
    if spec["affinity"] is not None:
        os.sched_setaffinity(0, spec["affinity"])
    if spec["mode"] == "peak":
        from compactor.benching.peak import peak

        return peak(spec)
    variant = Variant.from_json(spec["variant"])
    if spec["mode"] == "profile":
        from compactor.benching.counters import profile

        return profile(spec)
    if variant.is_endpoint:
        from compactor.benching.server.remote import serve_remotely

        return serve_remotely(variant, spec)

    from compactor.benching.engines import open_engine

    before = peak_memory_bytes()
    start = time.perf_counter()
    engine = open_engine(variant, threads=spec["threads"], spinning=spec["spinning"])
    load_ms = 1e3 * (time.perf_counter() - start)
    if spec["mode"] == "macs":
        from compactor.benching.counters import torch_macs

        found = torch_macs(engine, spec)
    elif spec["mode"] == "serve":
        from compactor.benching.server.serving import run

        found = run(engine, spec)
    else:
        found = {"cases": {case["id"]: _run_case(engine, case, spec) for case in spec["cases"]}}
    return {
        "environment": engine.environment,
        "load_ms": round(load_ms, 3),
        "rss_before_bytes": before,
        "peak_rss_bytes": peak_memory_bytes(),
        **found,
    }


def _run_case(engine: Any, case: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """Time one case, or only run it; then keep the outputs where they are wanted."""
    import numpy as np

    from compactor.benching.engines.feeding import read_feeds

    if case.get("part") is not None:
        engine = engine.part(Part(**case["part"]))
    batches = [engine.prepare(read_feeds(file)) for file in case["files"]]
    found = _time(engine, batches, spec) if spec["mode"] == "time" else {}
    if spec["keep_outputs"]:  # after the clock has stopped
        for index, batch in enumerate(batches):
            np.savez(Path(spec["folder"]) / f"{case['id']}.{index}.npz", **engine.run(batch))
    return found


def _time(engine: Any, batches: Sequence[Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """The samples in milliseconds: of one batch after the other in turn, or of all of them in one pass."""
    start = time.perf_counter()
    engine.run(batches[0])
    first_ms = 1e3 * (time.perf_counter() - start)
    turns = itertools.cycle(batches)

    def run_all() -> None:
        for batch in batches:
            engine.run(batch)

    clock = Clock(**spec["clock"])
    if spec["sample"] == "pass":
        samples, usage = sample(run_all, clock)
    else:
        samples, usage = sample(lambda: engine.run(next(turns)), clock, cycle=len(batches))
    return {
        "first_ms": round(first_ms, 4),
        "samples_ms": [round(milliseconds, 4) for milliseconds in samples],
        "usage": usage.to_json(),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
