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
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # so that it runs by its path, and not only with -m

from benchmarks import _record, _run, plant
from benchmarks._workshop import Given, Planted, Workshop
from compactor.benching.workload import Workload, from_lengths
from compactor.evaluation.inputs import InputSpec
from compactor.reporting.numbers import digits, times
from compactor.runtime.sampling import Clock

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
EXAMPLE = EXAMPLES / "sst2-small"
SENTENCES = EXAMPLES / "sst2.tsv"
BATCH = 32
TASK = "text-classification"
KINDS = {"unpacked": False, "packed": True}


def main(argv: Sequence[str] | None = None) -> int:
    """Build, time, check, and write what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    plant.add_entry_options(parser)
    parser.add_argument("--batch", type=int, default=BATCH, help="sentences of a batch (default: %(default)s)")
    parser.add_argument("--passes", type=int, default=2, help="samples in each process (default: %(default)s)")
    _run.add_common_options(parser)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="sst2-packing-") as temporary:
        work = (args.work or Path(temporary)).resolve()
        workload = sentences(work / f"sst2-{args.batch}", args.batch)
        models = {
            "random weights": Planted(work, plant.chosen_entry(args), TASK),
            "the example checkpoint": Given(work, EXAMPLE),
        }
        rows = [row for title, shop in models.items() for row in make_rows(title, shop)]
        if args.build_only:
            _run.build(rows, workload.cases)
            return 0
        clock = Clock(warm_up_s=0, warm_up_calls=1, measure_s=0, min_samples=args.passes, max_samples=args.passes)
        how = _run.settings(args, scenario="offline", clock=clock)
        _record.warn_if_busy()
        found = _run.run(rows, workload.cases, how)
        reports = {
            title: _record.make_report(
                f"Token packing on SST-2: {title}",
                [row for row in rows if row.shop == shop],
                baseline=f"{shop.folder.name}-unpacked",
                cases=workload.cases,
                how=how,
                found=found,
                command=_run.command_line(_run.script_argv(argv, "sst2_packing.py")),
                workload=workload.to_json(),
            )
            for title, shop in models.items()
        }
    result = {
        "schema": 1,
        "kind": "compactor-packing",
        "batch": args.batch,
        "relative_error": _record.plain_errors(found.errors),
        "reports": reports,
    }
    text = render(result)
    print(text)
    if args.out is not None:
        _record.write_result(args.out, result, text)
    return 1 if _record.failures(reports.values()) else 0


def sentences(folder: Path, batch: int = BATCH) -> Workload:
    """SST-2's sentences in batches, in file order and with those of like length together."""
    config = json.loads((EXAMPLE / "config.json").read_text(encoding="utf-8"))
    spec = InputSpec.from_config(config, task=TASK, folder=EXAMPLE)
    return from_lengths(folder, SENTENCES, spec, batches=[batch], scenario="offline")


def make_rows(title: str, shop: Workshop) -> list[_run.Row]:
    """One model, not packed and packed."""

    def row(kind: str, pack: bool) -> _run.Row:
        return _run.Row(
            f"{shop.folder.name}-{kind}",
            f"{title}: {kind}",
            shop,
            lambda: shop.ours(pack=pack) / "model_quantized.onnx",
            precision="int8",
            tolerance=_run.LOOSE,
        )

    return [row(kind, pack) for kind, pack in KINDS.items()]


def render(result: Mapping[str, Any]) -> str:
    """The table: sentences per second, packed and not."""
    reports = result["reports"]
    first = next(iter(reports.values()))
    rows = []
    for title, report in reports.items():
        unpacked, packed = report["variants"]
        cases = report["workload"]["cases"]
        plain = _record.find_result(unpacked, cases[0]["id"])  # what one gets without knowing of either
        for case in cases:
            cells = [_speed(variant, case["id"]) for variant in (unpacked, packed)]
            padding = case["positions"] / case["tokens"]
            gain = _record.speed_cell(packed, case["id"])
            both = _times_as_fast(_record.find_result(packed, case["id"]), plain)
            rows.append([f"{title}, {case['id']}", times(padding), *cells, gain, both])
    return "\n\n".join(
        [
            f"# Token packing on SST-2, int8, batches of {result['batch']}",
            f"{first['workload']['examples']} sentences. Sentences per second; a sample is one pass over all of them, "
            f"{first['settings']['clock']['max_samples']} in each process. In brackets: 95 % bootstrap interval; "
            "≈ stands for no significant difference.",
            _record.markdown_table(
                [
                    "model and batches",
                    "positions per real token",
                    "unpacked",
                    "packed",
                    "gain of packing",
                    "packed, against unpacked in file order",
                ],
                rows,
            ),
            *(f"{title}: {line}" for title, report in reports.items() for line in _record.remarks(report)),
            *_record.provenance(first),
        ]
    )


def _times_as_fast(found: Mapping[str, Any] | None, plain: Mapping[str, Any] | None) -> str:
    """The ratio of two throughputs of the same examples."""
    if found is None or plain is None:
        return "-"
    return times(found["throughput"]["examples_per_s"] / plain["throughput"]["examples_per_s"])


def _speed(variant: Mapping[str, Any], case: str) -> str:
    found = _record.find_result(variant, case)
    return "-" if found is None else digits(found["throughput"]["examples_per_s"])


if __name__ == "__main__":
    sys.exit(main())
