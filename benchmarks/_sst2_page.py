"""The tables of ``sst2.py``: one for each question, and what the paper found beside what holds here.

Everything is computed from the result: a claim holds where the paired difference on the same sentences is significant,
is *not shown* where it is not, and does *not hold* where it is significant the other way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import _record
from compactor.evaluation.quality import BETTER, WORSE, difference
from compactor.reporting.numbers import bytes_text, percent, points, score, times

NEAR = 0.02  # densities that differ by no more are equal
SLACK = 5e-4  # of a density that is bounded from above: a block more or less
_HYBRID = ("hybrid", "hybrid, longer", "hybrid, by λ", "hybrid, filled")

Row = Mapping[str, Any]
Difference = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Page:
    """A result, with what the tables look up in it.

    Attributes:
        result: What ``sst2.py`` writes.
    """

    result: Mapping[str, Any]

    @property
    def made(self) -> list[Row]:
        """The rows of runs that were made."""
        return [row for row in self.result["rows"] if row["status"] == "measured"]

    @property
    def cases(self) -> list[str]:
        """What was timed; nothing before the measurement."""
        report = self.result["latency"]
        return [] if report is None else [case["id"] for case in report["workload"]["cases"]]

    def row(self, name: str) -> Row:
        """The row of that id."""
        return next(row for row in self.result["rows"] if row["id"] == name)

    def find(self, name: str) -> Row | None:
        """The row of that id where it was made."""
        row = self.row(name)
        return row if row["status"] == "measured" else None

    def of(self, *families: str) -> list[Row]:
        """The rows of these families, made or not, in their order."""
        return [row for family in families for row in self.result["rows"] if row["family"] == family]

    def variant(self, row: Row) -> Mapping[str, Any] | None:
        """What was measured of its int8 graph; None where that was another graph, or none."""
        report = self.result["latency"]
        for found in [] if report is None else report["variants"]:
            if found["id"] == f"{row['id']}-int8" and found["sha256"] == row["graphs"]["int8"]:
                return dict(found)
        return None

    def speed(self, row: Row, case: str) -> Mapping[str, Any] | None:
        """The ratio of its int8 graph to the dense fp32 one, with its interval; None where it was not measured."""
        variant = self.variant(row)
        measured = None if variant is None else _record.find_result(variant, case)
        return None if measured is None else measured["ratio"]

    def compare(self, row: Row, other: Row, way: str = "masked", other_way: str = "masked") -> Difference:
        """How much better ``row`` answers than ``other``, on the same sentences."""
        mine, theirs, right = (
            [int(digit) for digit in text]
            for text in (row["answers"][way], other["answers"][other_way], self.result["references"])
        )
        return difference("accuracy", mine, theirs, right)


def render(result: Mapping[str, Any]) -> str:
    """All tables."""
    page = Page(result)
    return "\n\n".join(
        [
            "# Pruned MiniLM on SST-2",
            *_introduction(page),
            "## What the paper found, and what holds here",
            _of_words(_record.markdown_table(["", "the paper", "here"], [list(line) for line in findings(page)])),
            "## 1. Accuracy, density and time",
            _overview(page),
            *_how_to_read(page),
            "## 2. Teacher or none",
            _teachers(page),
            "## 3. Only attention pruned, 30 % of its weights left",
            _units(page),
            "## 4. Block size, in attention and feed-forward layers",
            _block_sizes(page),
            "## 5. Int8 on top",
            _int8(page),
            *_exactness(page),
            *_remarks(page),
            *_provenance(page),
        ]
    )


def _introduction(page: Page) -> list[str]:
    budget, data = page.result["budget"], page.result["data"]
    sentences = data["train.tsv"]["sentences"]
    epochs = budget["steps"] * budget["batch_size"] / max(sentences, 1)
    made = [row for row in page.made if row.get("seconds")]
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


# Findings


def findings(page: Page) -> list[tuple[str, str, str]]:
    """Subject, what the paper says, and what was found here."""
    return [
        ("accuracy kept", "hybrid: 88.1 of 88.5 F1 with 24 % of the weights", _bar(page, 0.45, 0.015)),
        ("", "hybrid: 86.1 of 88.5 F1 with 12 %", _bar(page, 0.30, 0.03)),
        ("hybrid and magnitude", "movement beats magnitude at equal density", _at_equal_density(page, "magnitude")),
        ("hybrid and struct", "struct is less accurate", _at_equal_density(page, "struct")),
        ("", "struct is faster", _faster(page, "struct", "hybrid")),
        ("hybrid and blocks", "hybrid is faster than square blocks everywhere", _faster(page, "hybrid", "block-32")),
        ("filled", "filling the surviving heads helps accuracy", _filled(page)),
        ("teacher", "helps: +1.0 on SST-2 with 82 % of the weights, +0.8 with 21 %", _teacher_helps(page)),
        ("heads", "blocks of 32 leave 54 of 144 heads, rows and columns 86", _heads_left(page)),
        ("block size", "larger blocks are faster; flat from 16 on", _larger_is_faster(page)),
        ("int8", "costs 1.5 F1 on a hybrid model, 3.3 times smaller", _int8_costs(page)),
        ("nn_pruning's code", "-", _beats_peer(page)),
    ]


def _bar(page: Page, density: float, loss: float) -> str:
    """Whether the best hybrid model by `dev.tsv`, of those of at most that density, loses at most that much."""
    rows = [row for row in page.of(*_HYBRID) if row["status"] == "measured" and row["density"] <= density + SLACK]
    asked = f"at most {100 * loss:g} points lost with at most {percent(density)}"
    if not rows:
        return f"{asked}: not run"
    best = max(rows, key=_watched)
    lost = best["quality"]["masked"]["difference"]
    said = "yes" if lost["value"] >= -loss else "no"
    return f"{asked}: **{said}**, {best['id']}: {points(lost)} with {percent(best['density'])}"


def _watched(row: Row) -> float:
    """How good it was while it trained: what a choice may rest on, unlike the sentences that it is judged on."""
    return float(row["dev"]["accuracy"]["value"])


def _at_equal_density(page: Page, family: str) -> str:
    """Hybrid against another family, wherever both have a run of the same density."""
    said = []
    for hybrid in page.of("hybrid"):
        for other in page.of(family):
            both = hybrid["status"] == other["status"] == "measured"
            if both and abs(hybrid["density"] - other["density"]) <= NEAR:
                said.append(_claim(page.compare(hybrid, other), f"at {percent(hybrid['density'])}"))
    return "; ".join(said) or "not run"


def _claim(found: Difference, where: str) -> str:
    """A paired difference that should be above zero."""
    held = {BETTER: "**yes**", WORSE: "**no**"}.get(found["verdict"], "not shown")
    return f"{held} {where}: {points(found)} points, p {_p(found['p'])}"


def _p(value: float) -> str:
    return "< 0.001" if value < 1e-3 else f"= {value:.3f}" if value < 0.1 else f"= {value:.2f}"


def _faster(page: Page, family: str, than: str) -> str:
    """Whether int8 of one family is faster than that of another where both have a run of the same density."""
    said = []
    for mine in page.made:
        for other in page.made:
            if not mine["id"].startswith(f"{family}-0") or not other["id"].startswith(f"{than}-0"):
                continue
            if abs(mine["density"] - other["density"]) <= NEAR:
                said += [_faster_at(page, mine, other, case) for case in page.cases]
    return "; ".join(filter(None, said)) or "not measured"


def _faster_at(page: Page, mine: Row, other: Row, case: str) -> str:
    first, second = page.speed(mine, case), page.speed(other, case)
    if first is None or second is None:
        return ""
    known = None not in (first["low"], first["high"], second["low"], second["high"])
    held = "not shown"
    if known and first["low"] > second["high"]:
        held = "**yes**"
    elif known and first["high"] < second["low"]:
        held = "**no**"
    told = f"{times(first['value'])} and {times(second['value'])}"
    return f"{held} at {percent(mine['density'])}, {case}: {told}"


def _filled(page: Page) -> str:
    said = []
    for row in page.of("hybrid, filled"):
        before = page.find(row["id"].replace("-filled", ""))
        if row["status"] == "measured" and before is not None:
            where = f"from {percent(before['density'])} to {percent(row['density'])}, {row['steps']:,} steps later"
            said.append(_claim(page.compare(row, before), where))
    return "; ".join(said) or "not run"


def _teacher_helps(page: Page) -> str:
    said = []
    for with_teacher, without in _teacher_pairs(page):
        if with_teacher["status"] == without["status"] == "measured":
            where = f"at {percent(with_teacher['density'])}"
            said.append(_claim(page.compare(with_teacher, without), where))
    return "; ".join(said) or "not run"


def _teacher_pairs(page: Page) -> list[tuple[Row, Row]]:
    return [(page.row(row["id"].replace("-nt", "")), row) for row in page.of("hybrid, no teacher")]


def _heads_left(page: Page) -> str:
    rows = [row for row in page.of("attention only") if row["status"] == "measured"]
    if len(rows) < 2:
        return "not run"
    told = ", ".join(f"{row['id'].removeprefix('attention-')} {row['heads'][0]}" for row in rows)
    by_id = {row["id"]: row["heads"][0] for row in rows}
    square, lines = by_id.get("attention-32x32"), by_id.get("attention-dim")
    held = "" if square is None or lines is None else "**yes**, " if square < lines else "**no**, "
    return f"{held}of {rows[0]['heads'][1]}: {told}"


def _larger_is_faster(page: Page) -> str:
    rows = [row for row in reversed(page.of("block")) if row["status"] == "measured"]
    said = []
    for case in page.cases:
        speeds = [(row, ratio) for row in rows if (ratio := page.speed(row, case)) is not None]
        if len(speeds) > 1:
            told = ", ".join(f"{_block(row)} {times(ratio['value'])}" for row, ratio in speeds)
            first, last = speeds[0][1], speeds[-1][1]
            known = first["high"] is not None and last["low"] is not None
            held = "**yes**" if known and last["low"] > first["high"] else "not shown"
            said.append(f"{held} at {case}: {told}")
    return "; ".join(said) or "not measured"


def _int8_costs(page: Page) -> str:
    """On the hybrid models: what int8 changes beside the masked model."""
    rows = [row for row in page.of("hybrid") if row["status"] == "measured"]
    said = []
    for row in rows:
        found = page.compare(row, row, "int8")
        smaller = row["bytes"]["fp32"] / row["bytes"]["int8"]
        said.append(f"{row['id']}: {points(found)} points, p {_p(found['p'])}, {smaller:.1f} times smaller")
    return "; ".join(said) or "not run"


def _beats_peer(page: Page) -> str:
    """The best hybrid model by `dev.tsv` that has no more weights than nn_pruning's."""
    peer = page.find("nn-pruning")
    if peer is None:
        return "not run"
    rows = [row for row in page.of(*_HYBRID) if row["status"] == "measured"]
    rows = [row for row in rows if row["density"] <= peer["density"] + SLACK]
    if not rows:
        return "not run"
    best = max(rows, key=_watched)
    right = [row["quality"]["masked"]["correct"] for row in (best, peer)]
    where = f"{best['id']} with {percent(best['density'])}, {right[0]} right, against {right[1]}"
    return _claim(page.compare(best, peer), f"{where} with {percent(peer['density'])}")


# Tables


def _of_words(table: str) -> str:
    """A table whose columns are all aligned left."""
    return table.replace("---:", "---")


def _overview(page: Page) -> str:
    """Figure 2 and Table 1 of the paper at this scale."""
    header = ["run", "λ", "linear weights", "heads", "neurons", "accuracy", "against dense", *_speed_header(page)]
    header.append("minutes")
    rows = []
    blocks = [page.row("block-32-0.30")]
    before, behind = (*_HYBRID, "struct"), ("magnitude", "nn_pruning's own code")
    for row in [page.row("dense"), *page.of(*before), *blocks, *page.of(*behind)]:
        rows.append(_line(page, row, header, lambda row: [_lambda(row), *_left(row), *_quality(row)], _minutes))
    return _record.markdown_table(header, rows)


def _teachers(page: Page) -> str:
    header = ["run", "linear weights", "with", "without", "gain, points", "p"]
    rows = []
    for with_teacher, without in _teacher_pairs(page):
        missing = next((row for row in (with_teacher, without) if row["status"] != "measured"), None)
        if missing is not None:
            rows.append([with_teacher["id"], *[f"{missing['id']}: {missing['status']}"], *["-"] * (len(header) - 2)])
            continue
        found = page.compare(with_teacher, without)
        accuracies = [_accuracy(row) for row in (with_teacher, without)]
        densities = " / ".join(percent(row["density"]) for row in (with_teacher, without))
        rows.append([with_teacher["id"], densities, *accuracies, points(found), f"{found['p']:.2g}"])
    return _record.markdown_table(header, rows)


def _units(page: Page) -> str:
    header = ["a score covers", "of attention", "heads left", "in each layer", "accuracy", "against dense"]
    header += _speed_header(page)

    def cells(row: Row) -> list[str]:
        layers = " ".join(map(str, row["heads_by_layer"]))
        density = row.get("density_attention")
        of_attention = "-" if density is None else percent(density)
        return [of_attention, "{} of {}".format(*row["heads"]), layers, *_quality(row)]

    rows = [_line(page, row, header, cells) for row in page.of("attention only")]
    return _record.markdown_table(header, [[line[0].removeprefix("attention-"), *line[1:]] for line in rows])


def _block_sizes(page: Page) -> str:
    header = ["block", "linear weights", "heads", "neurons", "accuracy", "against dense", *_speed_header(page)]
    rows = []
    for row in reversed(page.of("block")):
        line = _line(page, row, header, lambda row: [*_left(row), *_quality(row)])
        rows.append([_block(row), *line[1:]])
    return _record.markdown_table(header, rows)


def _int8(page: Page) -> str:
    """What it changes beside the masked model, on the same sentences."""
    header = ["run", "masked", "int8", "int8 against masked", "changed", "one by one", "fp32", "int8", "of dense fp32"]
    dense = page.find("dense")
    rows = []
    for row in page.made:
        quality, size = row["quality"], row["bytes"]
        rows.append(
            [
                row["id"],
                str(quality["masked"]["correct"]),
                str(quality["int8"]["correct"]),
                points(page.compare(row, row, "int8")),
                str(quality["int8"]["changed"]),
                str(quality["int8 alone"]["changed"]),
                bytes_text(size["fp32"]),
                bytes_text(size["int8"]),
                "-" if dense is None else f"{dense['bytes']['fp32'] / size['int8']:.1f}× smaller",
            ]
        )
    return _record.markdown_table(header, rows)


def _exactness(page: Page) -> list[str]:
    """What the columns are, and that the compact graphs answer as the masked models do."""
    if not page.made:
        return []
    asked = sum(row["quality"]["fp32"]["n"] for row in page.made)
    changed = sum(row["quality"]["fp32"]["changed"] for row in page.made)
    return [
        "Right answers of the masked model in PyTorch and of the int8 graph in ONNX Runtime, in batches of 32. Changed "
        "are answers in which the two differ; one by one, where int8 reads a sentence at a time. Sizes are of the "
        f"graphs' files. The compact fp32 graphs differ from their masked models in {changed} of {asked:,} answers."
    ]


def _line(
    page: Page,
    row: Row,
    header: Sequence[str],
    cells: Callable[[Row], list[str]],
    last: Callable[[Row], str] | None = None,
) -> list[str]:
    """A run's line: its cells and speed-ups; or why there are none."""
    if row["status"] != "measured":
        return [row["id"], row["status"], *["-"] * (len(header) - 2)]
    line = [row["id"], *cells(row), *(_speed_cell(page, row, case) for case in page.cases)]
    return line if last is None else [*line, last(row)]


def _speed_header(page: Page) -> list[str]:
    return [f"int8, {case}" for case in page.cases]


def _speed_cell(page: Page, row: Row, case: str) -> str:
    variant = page.variant(row)
    return "not measured" if variant is None else _record.speed_cell(variant, case)


def _lambda(row: Row) -> str:
    value = row.get("lambda") if row.get("lambda") is not None else row.get("settings", {}).get("lambda")
    return "-" if value is None else f"{value:.3g}"


def _left(row: Row) -> list[str]:
    neurons, everything = row["neurons"]
    return [percent(row["density"]), "{} of {}".format(*row["heads"]), f"{neurons:,} of {everything:,}"]


def _quality(row: Row) -> list[str]:
    found = row["quality"]["masked"]["difference"]
    sign = "" if found["verdict"] in (BETTER, WORSE) else " ≈"
    return [_accuracy(row), "-" if row["id"] == "dense" else f"{points(found)}{sign}"]


def _accuracy(row: Row) -> str:
    return f"{100 * row['quality']['masked']['value']:.2f}"


def _minutes(row: Row) -> str:
    return f"{row['seconds'] / 60:.0f}" if row.get("seconds") else "-"


def _block(row: Row) -> str:
    size = row["id"].split("-")[1]
    return f"{size}×{size}"


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
    rows = page.result["rows"]
    lines = [f"{row['id']}: {row['status']}: {row['why']}." for row in rows if row["status"] != "measured"]
    for row in page.made:
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
        dense = [variant for variant in report["variants"] if variant["id"].startswith("dense-")]
        for case in page.cases:
            others = [f"{variant['name']} {_record.speed_cell(variant, case)}" for variant in dense[1:]]
            lines.append(f"{dense[0]['name']}, {case}: {_record.time_cell(dense[0], case)} ms; {'; '.join(others)}.")
    return ["\n".join(f"- {line}" for line in lines)] if lines else []


def _provenance(page: Page) -> list[str]:
    """The machine of the training; where times were measured, how."""
    report = page.result["latency"]
    if report is None:
        return [_record.machine_line(page.result), f"`{page.result['command']}`"]
    return _record.provenance(report)
