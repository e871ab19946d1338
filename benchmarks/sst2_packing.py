"""What token packing gains on real sentences: SST-2's 872 in padded batches of 32, int8, beside length bucketing.

    python benchmarks/sst2_packing.py [--batch 32] [--threads 2] [--rounds 8] [--work DIR]
                                      [--out benchmarks/results/NAME.json]

On two models: a random BERT with the sizes of an entry of the paper, and the bundled example checkpoint. One sample is
the time of all sentences, in file order or with those of like length together. Tokenization is not on the clock.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # so that it runs by its path, and not only with -m

from benchmarks import _record, _run, plant
from benchmarks._workshop import EXAMPLE, SENTENCES, TASK, Workshop, classifiers
from compactor.benching.workload import Workload, from_lengths
from compactor.evaluation.inputs import InputSpec
from compactor.reporting.numbers import digits, times
from compactor.reporting.rows import result_of
from compactor.runtime.sampling import Clock

BATCH = 32


def main(argv: Sequence[str] | None = None) -> int:
    """Build, time, check, and write what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    plant.add_entry_options(parser)
    parser.add_argument("--batch", type=int, default=BATCH, help="sentences of a batch (default: %(default)s)")
    parser.add_argument("--passes", type=int, default=2, help="samples in each process (default: %(default)s)")
    _run.add_common_options(parser)
    args = parser.parse_args(argv)
    clock = Clock(warm_up_s=0, warm_up_calls=1, measure_s=0, min_samples=args.passes, max_samples=args.passes)
    how = _run.settings(args, scenario="offline", clock=clock)
    with _run.work_folder(args.work, "sst2-packing-") as work:
        workload = sentences(work / f"sst2-{args.batch}", args.batch)
        models = classifiers(work, plant.chosen_entry(args))
        rows = {title: make_rows(title, shop) for title, shop in models.items()}
        every = [row for own in rows.values() for row in own]
        if args.build_only:
            _run.build(every, workload.cases, how)
            return 0
        _record.warn_if_busy()
        found = _run.run(every, workload.cases, how)
        reports = {
            title: _record.make_report(
                f"Token packing on SST-2: {title}",
                own,
                found,
                baseline=own[0].id,
                command=_run.command("sst2_packing.py", argv),
                workload=workload.to_json(),
            )
            for title, own in rows.items()
        }
    result = {
        "schema": 1,
        "kind": "compactor-packing",
        "batch": args.batch,
        "relative_error": found.errors,
        "reports": reports,
    }
    _record.publish(result, render(result), args.out)
    return 1 if _record.failures(reports.values()) else 0


def sentences(folder: Path, batch: int = BATCH) -> Workload:
    """SST-2's sentences in batches, in file order and with those of like length together."""
    config = json.loads((EXAMPLE / "config.json").read_text(encoding="utf-8"))
    spec = InputSpec.from_config(config, task=TASK, folder=EXAMPLE)
    return from_lengths(folder, SENTENCES, spec, batches=[batch], scenario="offline")


def make_rows(title: str, shop: Workshop) -> list[_run.Row]:
    """One model, not packed and packed."""

    def row(kind: str, pack: bool) -> _run.Row:
        id, name = f"{shop.folder.name}-{kind}", f"{title}: {kind}"
        return _run.Row(id, name, shop, lambda: shop.graph("int8", pack=pack), precision="int8")

    return [row("unpacked", False), row("packed", True)]


def render(result: Mapping[str, Any]) -> str:
    """The table: sentences per second, packed and not."""
    reports = result["reports"]
    header = ["model and batches", "positions per real token", "unpacked", "packed", "gain of packing"]
    rows = []
    for title, report in reports.items():
        unpacked, packed = report["variants"]
        cases = report["workload"]["cases"]
        plain = _speed(unpacked, cases[0]["id"])  # what one gets without knowing of either
        for case in cases:
            speeds = [_speed(variant, case["id"]) for variant in (unpacked, packed)]
            cells = ["-" if speed is None else digits(speed) for speed in speeds]
            both = "-" if speeds[1] is None or plain is None else times(speeds[1] / plain)
            padding, gain = times(case["positions"] / case["tokens"]), _record.speed_cell(packed, case["id"])
            rows.append([f"{title}, {case['id']}", padding, *cells, gain, both])
    first = next(iter(reports.values()))
    return _record.page(
        f"# Token packing on SST-2, int8, batches of {result['batch']}",
        f"{first['workload']['examples']} sentences. Sentences per second; a sample is one pass over all of them, "
        f"{first['settings']['clock']['max_samples']} in each process. In brackets: 95 % bootstrap interval; "
        "≈ stands for no significant difference.",
        _record.markdown_table([*header, "packed, against unpacked in file order"], rows),
        *(f"{title}: {line}" for title, report in reports.items() for line in _record.remarks(report)),
        *_record.provenance(first),
    )


def _speed(variant: Mapping[str, Any], case: str) -> float | None:
    """Sentences per second."""
    found = result_of(variant, case)
    return None if found is None else float(found["throughput"]["examples_per_s"])


if __name__ == "__main__":
    sys.exit(main())
