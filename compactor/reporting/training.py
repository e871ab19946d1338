"""A training run as one HTML page, made from ``training.json``: what is left, at what quality, and how it came about.

A run that was stopped has a page too: it shows how far it came, and has no numbers of a final model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compactor.reporting.figures.figure import Figure
from compactor.reporting.numbers import count, digits, percent, score, score_of
from compactor.reporting.rows import metric_name
from compactor.reporting.tables.table import Cell, Column, Table, known, make_table
from compactor.reporting.templates import Tile, render_template
from compactor.reporting.training_figures import KINDS, Training, final_metric, finite, metric_in
from compactor.reporting.training_figures.curves import density_figure, losses_figure, metric_figure
from compactor.reporting.training_figures.pattern import pattern_figures


def render_training(document: Training) -> str:
    """The page of ``document``, a ``training.json``. The same document always gives the same page."""
    return render_template(
        "training.html.jinja",
        document=document,
        about=training_about(document),
        summary=training_sentence(document),
        tiles=make_training_tiles(document),
        tables=[quality_table(document)],
        figures=make_training_figures(document),
        settings=[(name.replace("_", " "), _plain(value)) for name, value in document["settings"].items()],
        layers=kept_table(document),
        evaluations=evaluation_table(document),
        versions=[(name, str(version)) for name, version in document["versions"].items()],
        version=document["versions"].get("compactor"),
    )


def training_about(document: Training) -> str:
    """What was done to what, in a line: ``hybrid · text classification · model bert · teacher bert``."""
    teacher = "no teacher" if document["teacher"] is None else f"teacher {document['teacher']}"
    return " · ".join([document["method"], document["task"].replace("-", " "), f"model {document['model']}", teacher])


def training_sentence(document: Training) -> str:
    """The result for someone who reads one sentence: the metric, what of the model is left, the teacher's metric.

    Of a run that was stopped it says where, what was left there, and what its last evaluation found.
    """
    final = document["final"]
    if final is None:
        return _stopped_sentence(document)
    found = final_metric(document)
    text = f"{metric_name(document['metric']).capitalize()} {'unknown' if found is None else score_of(found)}"
    kept = []
    if finite(final["density"]) is not None:
        kept.append(f"{percent(final['density'])} of the linear weights")
    if heads := _counted(final["heads"]):
        kept.append(f"{heads[0]:,} of {heads[1]:,} heads")
    if kept:
        text += f" with {', '.join(kept)}"
    if document["teacher"] is not None:
        teacher = final_metric(document, "teacher_metrics")
        text += f"; the teacher: {'not evaluated' if teacher is None else score_of(teacher)}"
    return f"{text}."


def make_training_tiles(document: Training) -> list[Tile]:
    """What a decision hangs on: quality, what is left, how long it took; none where the run was stopped."""
    final = document["final"]
    if final is None:
        return []
    name = metric_name(document["metric"]).capitalize()
    found, teacher = final_metric(document), final_metric(document, "teacher_metrics")
    against = "" if teacher is None else f"the teacher: {score_of(teacher)}"
    if found is None:
        tiles = [Tile(name, "unknown", against or "it is not a number", number=False)]
    else:
        examples = "" if found.get("n") is None else f"on {found['n']:,} examples"
        tiles = [Tile(name, score_of(found), "; ".join(filter(None, (examples, against))))]
    if finite(final["density"]) is not None:
        weights = _counted(final["weights"])
        note = f"{count(weights[0])} of {count(weights[1])} linear weights" if weights else ""
        tiles.append(Tile("Density", percent(final["density"]), note))
    for key, words in (("heads", "Attention heads"), ("neurons", "FFN neurons")):
        if pair := _counted(final[key]):
            tiles.append(Tile(words, f"{pair[0]:,}", f"of {pair[1]:,}: {percent(pair[0] / pair[1])}"))
    if finite(final["seconds"]) is not None:
        tiles.append(Tile("Time", span(final["seconds"]), _steps_words(document)))
    return tiles


def make_training_figures(document: Training) -> list[Figure]:
    """All figures that ``document`` has data for, the most important first."""
    curves = (density_figure(document), losses_figure(document), metric_figure(document))
    return [*filter(None, curves), *pattern_figures(document)]


def quality_table(document: Training) -> Table:
    """Every metric of the final model, read back from disk, beside the teacher's."""
    final = document["final"] or {}
    metrics, teachers = final.get("metrics") or {}, final.get("teacher_metrics") or {}
    columns: list[Column] = [
        ("metric", lambda name: Cell(metric_name(name))),
        (">final model", lambda name: known(metric_in(metrics, name), score_of)),
    ]
    if teachers:
        columns.append((">teacher", lambda name: known(metric_in(teachers, name), score_of)))
    columns.append((">examples", lambda name: known((metrics.get(name) or {}).get("n"), "{:,}".format)))
    caption = "Quality ± standard error, of the model that was written, read back from disk."
    found = sorted(dict.fromkeys((*metrics, *teachers)), key=lambda name: name != document["metric"])
    return make_table("quality", "Quality", columns, {None: [(name,) for name in found]}, caption)


def kept_table(document: Training) -> Table:
    """What is left of each layer, stack by stack."""
    columns: list[Column] = [
        ("layer", lambda layer: Cell(layer["name"])),
        ("kind", lambda layer: Cell(KINDS[layer["kind"]])),
        (">weights left", lambda layer: known(finite(layer["density"]), percent)),
        (">heads", lambda layer: _parts_cell(layer["heads"] and (sum(layer["heads"]), len(layer["heads"])))),
        (">FFN neurons", lambda layer: _parts_cell(layer["neurons"])),
    ]
    stacks: dict[str, list[tuple[Any]]] = {}
    for layer in (document["final"] or {}).get("layers") or ():
        stacks.setdefault(layer["stack"], []).append((layer,))
    return make_table("kept", "Kept in each layer", columns, stacks)


def evaluation_table(document: Training) -> Table:
    """Every evaluation during training."""
    evaluations = document["evaluations"]
    columns: list[Column] = [
        (">step", lambda evaluation: Cell(f"{evaluation['step']:,}")),
        (">density", lambda evaluation: known(finite(evaluation["density"]), percent)),
    ]
    for name in dict.fromkeys(name for evaluation in evaluations for name in evaluation["metrics"]):
        columns.append((f">{metric_name(name)}", lambda row, name=name: known(finite(row["metrics"].get(name)), score)))
    if any(finite(evaluation.get("loss")) is not None for evaluation in evaluations):
        columns.append((">loss", lambda evaluation: known(finite(evaluation.get("loss")), digits)))
    return make_table("evaluations", "Evaluations", columns, {None: [(evaluation,) for evaluation in evaluations]})


def span(seconds: float) -> str:
    """How long something took, for people.

    >>> [span(seconds) for seconds in (8.31, 95, 740, 20_000)]
    ['8.31 s', '95.0 s', '12.3 min', '5 h 33 min']
    """
    if seconds < 120:
        return f"{digits(seconds)} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60} min"


def _stopped_sentence(document: Training) -> str:
    log, evaluations = document["log"], document["evaluations"]
    if not log and not evaluations:
        return "Stopped before the first step was logged: nothing is known of it."
    text = f"Stopped {_steps_words(document)}"
    densities = [value for entry in log if (value := finite(entry["density"])) is not None]
    if densities:
        text += f", with {percent(densities[-1])} of the linear weights left"
    found = [
        (evaluation["step"], value)
        for evaluation in evaluations
        if (value := finite(evaluation["metrics"].get(document["metric"]))) is not None
    ]
    if found:
        step, value = found[-1]
        text += f"; {metric_name(document['metric'])} was {score(value)} at step {step:,}"
    return f"{text}."


def _steps_words(document: Training) -> str:
    """How far it came: ``after 1,500 steps``, ``after 812 of 1,500 steps``."""
    reached = max((entry["step"] for entry in (*document["log"], *document["evaluations"])), default=0)
    planned = max((phase["last"] for phase in document["phases"]), default=0)
    if document["final"] is not None:
        return f"{max(reached, planned):,} steps"
    return f"after {reached:,} of {planned:,} steps" if planned > reached else f"after {reached:,} steps"


def _counted(pair: Sequence[int] | None) -> Sequence[int] | None:
    """A pair of live and all, where it counts anything."""
    return pair if pair and pair[1] > 0 else None


def _parts_cell(pair: Sequence[int] | None) -> Cell:
    if not pair or not pair[1]:
        return Cell("none", "muted")
    return Cell(f"{pair[0]:,} of {pair[1]:,}", note=percent(pair[0] / pair[1]))


def _plain(value: object) -> str:
    """A setting as people write it."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_plain, value)) or "none"
    return str(value)
