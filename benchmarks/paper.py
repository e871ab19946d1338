"""Re-measure the block pruning paper: its shapes on this machine, dense and compacted, and its figure 2.

    python benchmarks/paper.py [--entries 1-13] [--shapes 1x128,8x128] [--rounds 8] [--provider cuda]
                               [--work DIR [--build-only]] [--out benchmarks/results/paper-NAME.json]

Each entry of ``paper_shapes.json`` is planted in random weights (``plant.py``), exported by ``compactor export`` and
timed in one run beside the dense model that it was pruned from. Scores and GPU speeds are quoted from the paper's
authors; nothing here measures accuracy. Beside the result go its tables (``.md``) and the figure (``.svg``).
``--provider cuda`` times fp16 artefacts; without a CUDA device its rows say so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # so that it runs by its path, and not only with -m

from benchmarks import _paper_figure, _record, _run, plant
from benchmarks._paper_figure import PAPER_HARDWARE, PRECISIONS
from benchmarks._workshop import Planted, parse_shapes, say, synthetic_cases
from compactor.runtime.providers import not_run_reason

ENTRIES = "0-13"  # Table 2 of the paper and a filled one more; BERT-large at the end
SHAPES = {"cpu": "1x128,8x128", "cuda": "1x128,8x128,128x384"}  # 128 x 384 is what the paper timed
BASELINE = {"cpu": "fp32", "cuda": "fp16"}  # the precision of the dense model that all others are compared with


def main(argv: Sequence[str] | None = None) -> int:
    """Build, time, check, and write what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--entries", default=ENTRIES, help="indices in paper_shapes.json (default: %(default)s)")
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    _run.add_run_options(parser, shapes="")
    args = parser.parse_args(argv)
    entries = plant.read_entries()
    with _run.work_folder(args.work, "paper-") as work:
        shops = [Planted(work, entries[i]) for i in parse_entries(args.entries, len(entries))]
        cases = synthetic_cases(work, parse_shapes(args.shapes or SHAPES[args.provider]))
        rows, how = make_rows(shops, args.provider), _run.settings(args)
        if not args.build_only:
            _record.warn_if_busy()
        built = _run.build(rows, cases, how)
        if args.build_only:
            return 0
        command = _run.command("paper.py", argv)
        render(make_result(shops, rows, built, args.provider, command))  # fails now or never
        result = make_result(shops, rows, _run.run(rows, cases, how), args.provider, command)
    _record.publish(result, render(result), args.out)
    if args.out is not None:
        figure = args.out.with_suffix(".svg")
        if _paper_figure.draw(result, figure):
            say(f"wrote {figure.name}")
    return 1 if _record.failures(result["reports"].values()) else 0


def make_result(
    shops: Sequence[Planted], rows: Sequence[_run.Row], found: _run.Run, provider: str, command: str
) -> dict[str, Any]:
    """What is recorded: one report of the harness for each dense model and what was pruned from it."""
    reports = {
        dense.folder.name: _record.make_report(
            f"The paper's shapes beside {title(dense.entry)}",
            [row for row in rows if row.shop in (dense, *(shop for shop in shops if shop.dense == dense))],
            found,
            baseline=row_id(dense, BASELINE[provider]),
            command=command,
        )
        for dense in dense_shops(shops)
    }
    return {
        "schema": 1,
        "kind": "compactor-paper",
        "provider": provider,
        "entries": [describe(shop) for shop in shops],
        "relative_error": found.errors,
        "reports": reports,
    }


def make_rows(shops: Sequence[Planted], provider: str) -> list[_run.Row]:
    """Dense models first, each before what was pruned from it."""
    reason = not_run_reason(provider)

    def ours(shop: Planted, precision: str) -> _run.Row:
        return _run.Row(
            row_id(shop, precision),
            f"{title(shop.entry)}: ours {precision}",
            shop,
            lambda: shop.graph(precision, provider),
            precision=precision,
            provider="cuda" if provider == "cuda" else "cpu",
            missing=None if reason is None else reason.removeprefix("not run: "),
        )

    rows = []
    for dense in dense_shops(shops):
        if provider == "cpu":
            rows.append(_run.Row(row_id(dense, "fp32"), f"{title(dense.entry)}: plain export fp32", dense, dense.plain))
            rows.append(ours(dense, "int8"))
        else:
            rows.append(ours(dense, "fp16"))
        rows += [ours(shop, precision) for shop in shops if shop.dense == dense for precision in PRECISIONS[provider]]
    return rows


def dense_shops(shops: Sequence[Planted]) -> list[Planted]:
    """The dense models that ``shops`` were pruned from, each once."""
    return list(dict.fromkeys(shop.dense for shop in shops))


def row_id(shop: Planted, precision: str) -> str:
    """Of one precision of one model."""
    return f"{shop.folder.name}-{precision}"


def title(entry: plant.Entry) -> str:
    """For tables: size, method, weights left."""
    size = "BERT-large" if entry.large else "BERT-base"
    if entry.method == plant.DENSE:
        return f"dense {size}"
    return f"{size} {method(entry)} {entry.linear_weights / 1e6:.1f}M"


def method(entry: plant.Entry) -> str:
    """As the paper's tables call it."""
    name = entry.method.removeprefix("hybrid-")
    return f"{name}, large teacher" if entry.teacher == "large" and not entry.large else name


def describe(shop: Planted) -> dict[str, Any]:
    """What the result says of an entry; ``gpu_speedup`` is against the dense model of its own size."""
    entry = shop.entry
    return {
        **entry.to_json(),
        "title": title(entry),
        "dense": shop.dense.folder.name,
        "method": f"BERT-large, {method(entry)}" if entry.large else method(entry),
        "gpu_speedup": round(entry.gpu_speedup / shop.dense.entry.gpu_speedup, 2),
    }


def parse_entries(text: str, count: int) -> list[int]:
    """The indices of ``0-3,7``. Exits with a message where it is not that."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.isdigit() and last.isdigit() and int(last) < count):
            sys.exit(f"error: expected indices below {count} such as 0-3,7, got '{part}'")
        found += range(int(first), int(last) + 1)
    return list(dict.fromkeys(found))


def render(result: Mapping[str, Any]) -> str:
    """The tables: one for each dense model and what was pruned from it."""
    parts = ["# The block pruning paper, re-measured"]
    for name, report in result["reports"].items():
        entries = [entry for entry in result["entries"] if entry["dense"] == name]
        parts += _table(report, entries, result["provider"])
    first = next(iter(result["reports"].values()))
    parts += [
        f"Scores and GPU speed-ups ({PAPER_HARDWARE}) are the authors'; weights here are random, so a score says "
        "nothing of int8 or fp16. In brackets: the 95 % bootstrap interval of a speed-up; ≈ stands for no "
        "significant difference.",
        *_record.provenance(first),
    ]
    return _record.page(*parts)


def _table(report: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], provider: str) -> list[str]:
    cases = [case["id"] for case in report["workload"]["cases"]]
    found = {variant["id"]: variant for variant in report["variants"]}
    columns = [(case, precision) for case in cases for precision in PRECISIONS[provider]]
    header = ["model", "heads", "neurons", "score", "GPU, paper"]
    rows = []
    for entry in entries:
        cells = [_record.speed_cell(found[f"{entry['id']}-{precision}"], case) for case, precision in columns]
        kept = [str(sum(entry["kept_heads"])), f"{sum(entry['kept_ffn']):,}"]
        rows.append([entry["title"], *kept, f"{entry['score']:g}", f"{entry['gpu_speedup']:.2f}×", *cells])

    def line(variant: Mapping[str, Any], cell: Callable[[Mapping[str, Any], str], str]) -> str:
        return f"{variant['name']}: {', '.join(f'{cell(variant, case)} at {case}' for case in cases)}."

    base = found[report["baseline"]]
    others = [variant for variant in found.values() if variant["target"] == base["target"] and variant is not base]
    return [
        f"## Against {base['name']}",
        line(base, _record.time_cell),
        _record.markdown_table([*header, *(f"{case}: {precision}" for case, precision in columns)], rows),
        *(line(variant, _record.speed_cell) for variant in others),
        *_record.remarks(report),
    ]


if __name__ == "__main__":
    sys.exit(main())
