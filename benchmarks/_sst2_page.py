"""The tables of ``sst2.py``: one for each question, and what the paper found beside what holds here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import _record
from benchmarks._sst2_findings import HYBRID, Page, Row, block, findings, is_made
from compactor.evaluation.quality import BETTER, WORSE
from compactor.reporting.numbers import bytes_text, percent, points, score

Columns = Sequence[tuple[str, Callable[[Row], str]]]


def render(result: Mapping[str, Any]) -> str:
    """All tables."""
    page = Page(result)
    speeds = [(f"int8, {case}", functools.partial(_speed, page, case)) for case in page.cases]
    overview = [page.row("dense"), *page.of(*HYBRID, "struct"), page.row("block-32-0.30")]
    overview += page.of("magnitude", "nn_pruning's own code")
    units = page.of("attention only")
    found = _record.markdown_table(["", "the paper", "here"], findings(page))
    return _record.page(
        "# Pruned MiniLM on SST-2",
        *_introduction(page),
        "## What the paper found, and what holds here",
        found.replace("---:", "---"),  # words are aligned left
        "## 1. Accuracy, density and time",
        _table("run", overview, [("λ", _lambda), *_LEFT, *_QUALITY, *speeds, ("minutes", _minutes)]),
        *_how_to_read(page),
        "## 2. Teacher or none",
        _teachers(page),
        "## 3. Only attention pruned, 30 % of its weights left",
        _table("a score covers", units, [*_UNITS, *_QUALITY, *speeds], lambda row: row["id"].partition("-")[2]),
        "## 4. Block size, in attention and feed-forward layers",
        _table("block", page.of("block")[::-1], [*_LEFT, *_QUALITY, *speeds], block),
        "## 5. Int8 on top",
        _int8(page),
        *_exactness(page),
        *_remarks(page),
        *_provenance(page),
    )


def _introduction(page: Page) -> list[str]:
    budget, data = page.result["budget"], page.result["data"]
    sentences = data["train.tsv"]["sentences"]
    epochs = budget["steps"] * budget["batch_size"] / max(sentences, 1)
    made = [row for row in page.made() if row.get("seconds")]
    hours = sum(row["seconds"] for row in made) / 3600
    threads = budget["threads"]
    lines = [
        f"A small budget, for {threads} core{'s' if threads != 1 else ''}: each run is {budget['steps']:,} steps of "
        f"{budget['batch_size']} sentences, {epochs:.2f} passes over the {sentences:,} of `train.tsv`; learning rates "
        f"{budget['learning_rate']:g} (weights) and {budget['score_learning_rate']:g} (scores), embeddings as they "
        f"are, seed {budget['seed']}. All start from the same dense model, their teacher. "
        f"Runs called longer have more steps. {len(made)} runs, {hours:.1f} hours of training. The paper trained for "
        "12 passes on a GPU.",
    ]
    dense = page.find("dense")
    if dense is not None:
        found = dense["quality"]["masked"]
        lines.append(
            f"Judged on the {found['n']} sentences of `test.tsv`, of which the dense model gets {found['correct']} "
            f"right: {score(found['value'], found['se'])}."
        )
    return lines


def _table(
    first: str, rows: Sequence[Row], columns: Columns, name: Callable[[Row], str] = lambda row: str(row["id"])
) -> str:
    """A line for each run: its cells, or why there are none."""
    lines = []
    for row in rows:
        missing = [row["status"], *["-"] * (len(columns) - 1)]
        lines.append([name(row), *([cell(row) for _, cell in columns] if is_made(row) else missing)])
    return _record.markdown_table([first, *(header for header, _ in columns)], lines)


def _teachers(page: Page) -> str:
    header = ["run", "linear weights", "with", "without", "gain, points", "p"]
    rows = []
    for pair in page.teachers():
        missing = next((row for row in pair if not is_made(row)), None)
        if missing is not None:
            rows.append([pair[0]["id"], f"{missing['id']}: {missing['status']}", *["-"] * (len(header) - 2)])
            continue
        found = page.compare(*pair)
        densities = " / ".join(percent(row["density"]) for row in pair)
        rows.append([pair[0]["id"], densities, *map(_accuracy, pair), points(found), f"{found['p']:.2g}"])
    return _record.markdown_table(header, rows)


def _int8(page: Page) -> str:
    """What it changes beside the masked model, on the same sentences."""
    dense = page.find("dense")

    def smaller(row: Row) -> str:
        return "-" if dense is None else f"{dense['bytes']['fp32'] / row['bytes']['int8']:.1f}× smaller"

    columns: Columns = [
        ("masked", lambda row: str(row["quality"]["masked"]["correct"])),
        ("int8", lambda row: str(row["quality"]["int8"]["correct"])),
        ("int8 against masked", lambda row: points(page.compare(row, row, "int8"))),
        ("changed", lambda row: str(row["quality"]["int8"]["changed"])),
        ("one by one", lambda row: str(row["quality"]["int8 alone"]["changed"])),
        ("fp32", lambda row: bytes_text(row["bytes"]["fp32"])),
        ("int8", lambda row: bytes_text(row["bytes"]["int8"])),
        ("of dense fp32", smaller),
    ]
    return _table("run", page.made(), columns)


def _exactness(page: Page) -> list[str]:
    """What the columns are, and that the compact graphs answer as the masked models do."""
    if not page.made():
        return []
    asked, changed = (sum(row["quality"]["fp32"][count] for row in page.made()) for count in ("n", "changed"))
    return [
        "Right answers of the masked model in PyTorch and of the int8 graph in ONNX Runtime, in batches of 32. Changed "
        "are answers in which the two differ; one by one, where int8 reads a sentence at a time. Sizes are of the "
        f"graphs' files. The compact fp32 graphs differ from their masked models in {changed} of {asked:,} answers."
    ]


def _speed(page: Page, case: str, row: Row) -> str:
    variant = page.variant(row)
    return "not measured" if variant is None else _record.speed_cell(variant, case)


def _lambda(row: Row) -> str:
    value = row.get("lambda") if row.get("lambda") is not None else row.get("settings", {}).get("lambda")
    return "-" if value is None else f"{value:.3g}"


def _attention_left(row: Row) -> str:
    density = row.get("density_attention")
    return "-" if density is None else percent(density)


def _accuracy(row: Row) -> str:
    return f"{100 * row['quality']['masked']['value']:.2f}"


def _against_dense(row: Row) -> str:
    found = row["quality"]["masked"]["difference"]
    sign = "" if found["verdict"] in (BETTER, WORSE) else " ≈"
    return "-" if row["id"] == "dense" else f"{points(found)}{sign}"


def _minutes(row: Row) -> str:
    return f"{row['seconds'] / 60:.0f}" if row.get("seconds") else "-"


_LEFT: Columns = [
    ("linear weights", lambda row: percent(row["density"])),
    ("heads", lambda row: "{} of {}".format(*row["heads"])),
    ("neurons", lambda row: "{:,} of {:,}".format(*row["neurons"])),
]
_UNITS: Columns = [
    ("of attention", _attention_left),
    ("heads left", lambda row: "{} of {}".format(*row["heads"])),
    ("in each layer", lambda row: " ".join(map(str, row["heads_by_layer"]))),
]
_QUALITY: Columns = [("accuracy", _accuracy), ("against dense", _against_dense)]


def _how_to_read(page: Page) -> list[str]:
    dense = page.find("dense")
    lines = []
    if dense is not None:
        error = 100 * dense["quality"]["masked"]["se"]
        lines.append(
            f"Accuracy in percent, of the model with its zeros in PyTorch; its standard error is {error:.1f} points in "
            "every row, so compare the paired differences, with theirs: ≈ stands for one that is not significant. λ is "
            "what was given, or where the steering ended. Filled runs go on from the run of their name."
        )
    if page.cases:
        lines.append(
            "Speed-ups are those of `compactor export`'s int8 over the dense model as `torch.onnx.export` writes it, "
            "fp32, on random tokens without padding (batch × length), with 95 % bootstrap intervals."
        )
    return lines


def _remarks(page: Page) -> list[str]:
    """Runs that were not made or made differently, and whether to believe the times."""
    lines = [f"{row['id']}: {row['status']}: {row['why']}." for row in page.result["rows"] if not is_made(row)]
    for row in page.made():
        if row.get("other_settings"):
            own = row["settings"]
            told = ", ".join(f"{name} {own[name]}" if name in own else name for name in row["other_settings"])
            lines.append(f"{row['id']}: trained with other settings than the rest: {told}.")
        lines += [f"{row['id']}: {warning}." for warning in row.get("warnings", ())]
    report = page.result["latency"]
    if report is None:
        lines.append("Nothing was timed yet.")
    else:
        lines += _record.remarks(report)
        dense, *others = (variant for variant in report["variants"] if variant["id"].startswith("dense-"))
        for case in page.cases:
            told = "; ".join(f"{variant['name']} {_record.speed_cell(variant, case)}" for variant in others)
            lines.append(f"{dense['name']}, {case}: {_record.time_cell(dense, case)} ms; {told}.")
    return ["\n".join(f"- {line}" for line in lines)]


def _provenance(page: Page) -> list[str]:
    """The machine of the training; where times were measured, how."""
    report = page.result["latency"]
    if report is None:
        return [_record.machine_line(page.result), f"`{page.result['command']}`"]
    return _record.provenance(report)
