"""A training run as one HTML page, made from ``training.json``: what is left, at what quality, and how it came about.

A run that was stopped has a page too: it shows how far it came, and has no numbers of a final model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compactor.console import format_count, printable
from compactor.reporting.numbers import digits, percent, score, signed
from compactor.reporting.tables.table import Cell, Table
from compactor.reporting.templates import Tile, render_template
from compactor.reporting.training_figures import make_training_figures
from compactor.reporting.training_figures.values import Training, finite
from compactor.reporting.words import metric_name

_TEMPLATE = "training.html.jinja"
_KINDS = {"attention": "attention", "cross_attention": "cross-attention", "feed_forward": "feed-forward"}


def render_training(document: Training) -> str:
    """The page of ``document``, a ``training.json``. The same document always gives the same page."""
    import markupsafe

    return render_template(
        _TEMPLATE,
        document=document,
        command=markupsafe.escape(printable(document["command"])),  # to be copied, so with spaces that break
        about=training_about(document),
        summary=training_sentence(document),
        tiles=make_training_tiles(document),
        tables=[table for table in (quality_table(document),) if table],
        figures=make_training_figures(document),
        settings=[(name.replace("_", " "), _plain(value)) for name, value in document["settings"].items()],
        layers=kept_table(document) or None,
        evaluations=evaluation_table(document) or None,
        versions=[(name, str(version)) for name, version in document["versions"].items()],
        footer=_footer(document),
    )


def training_about(document: Training) -> str:
    """What was done to what, in a line: ``hybrid · text classification · model bert · teacher bert``."""
    parts = [document["method"], document["task"].replace("-", " "), f"model {document['model']}"]
    parts.append("no teacher" if document["teacher"] is None else f"teacher {document['teacher']}")
    return " · ".join(parts)


def training_sentence(document: Training) -> str:
    """The result for someone who reads one sentence: the metric, what of the model is left, the teacher's metric.

    Of a run that was stopped it says where, what was left there, and what its last evaluation found.
    """
    final = document["final"]
    if final is None:
        return _stopped_sentence(document)
    name = metric_name(document["metric"])
    found = _metric(final["metrics"], document["metric"])
    text = f"{name.capitalize()} {'unknown' if found is None else _score(found)}"
    kept = []
    if finite(final["density"]) is not None:
        kept.append(f"{percent(final['density'])} of the linear weights")
    if _has_parts(final["heads"]):
        kept.append(_of(final["heads"], "heads"))
    if kept:
        text += f" with {', '.join(kept)}"
    if document["teacher"] is not None:
        teacher = _metric(final["teacher_metrics"], document["metric"])
        text += f"; the teacher: {'not evaluated' if teacher is None else _score(teacher)}"
    return f"{text}."


def make_training_tiles(document: Training) -> list[Tile]:
    """What a decision hangs on: quality, what is left, how long it took; none where the run was stopped."""
    final = document["final"]
    if final is None:
        return []
    name = metric_name(document["metric"]).capitalize()
    found = _metric(final["metrics"], document["metric"])
    teacher = _metric(final["teacher_metrics"], document["metric"])
    against = "" if teacher is None else f"the teacher: {_score(teacher)}"
    if found is None:
        tiles = [Tile(name, "unknown", against or "it is not a number", number=False)]
    else:
        examples = "" if found.get("n") is None else f"on {found['n']:,} examples"
        tiles = [Tile(name, _score(found), "; ".join(filter(None, (examples, against))))]
    if finite(final["density"]) is not None:
        note = ""
        if _has_parts(final["weights"]):
            live, total = final["weights"]
            note = f"{format_count(live)} of {format_count(total)} linear weights"
        tiles.append(Tile("Density", percent(final["density"]), note))
    for key, words in (("heads", "Attention heads"), ("neurons", "FFN neurons")):
        if _has_parts(final[key]):
            live, total = final[key]
            tiles.append(Tile(words, f"{live:,}", f"of {total:,}: {percent(live / total)}"))
    if finite(final["seconds"]) is not None:
        tiles.append(Tile("Time", span(final["seconds"]), _steps_words(document)))
    return tiles


def quality_table(document: Training) -> Table:
    """Every metric of the final model, read back from disk, beside the teacher's."""
    final = document["final"] or {}
    metrics, teachers = final.get("metrics") or {}, final.get("teacher_metrics") or {}
    names = sorted(dict.fromkeys((*metrics, *teachers)), key=lambda name: name != document["metric"])
    columns = ("metric", ">final model") + (">teacher",) * bool(teachers) + (">examples",)

    def cells(name: str) -> tuple[Cell, ...]:
        counted = (metrics.get(name) or {}).get("n")
        found = [Cell(metric_name(name)), _score_cell(metrics, name)]
        if teachers:
            found.append(_score_cell(teachers, name))
        return (*found, Cell("unknown", "muted") if counted is None else Cell(f"{counted:,}"))

    caption = "Quality ± standard error, of the model that was written, read back from disk."
    return Table("quality", "Quality", columns, ((None, tuple(map(cells, names))),), caption)


def kept_table(document: Training) -> Table:
    """What is left of each layer, stack by stack."""
    layers: Sequence[Mapping[str, Any]] = (document["final"] or {}).get("layers") or ()
    groups = tuple(
        (
            stack,
            tuple(
                (
                    Cell(layer["name"]),
                    Cell(_KINDS[layer["kind"]]),
                    _share_cell(layer["density"]),
                    _parts_cell([sum(layer["heads"]), len(layer["heads"])] if layer["heads"] else None),
                    _parts_cell(layer["neurons"]),
                )
                for layer in layers
                if layer["stack"] == stack
            ),
        )
        for stack in dict.fromkeys(layer["stack"] for layer in layers)
    )
    columns = ("layer", "kind", ">weights left", ">heads", ">FFN neurons")
    return Table("kept", "Kept in each layer", columns, groups)


def evaluation_table(document: Training) -> Table:
    """Every evaluation during training."""
    evaluations = document["evaluations"]
    names = list(dict.fromkeys(name for evaluation in evaluations for name in evaluation["metrics"]))
    with_loss = any(finite(evaluation.get("loss")) is not None for evaluation in evaluations)
    columns = (">step", ">density", *(f">{metric_name(name)}" for name in names), *((">loss",) * with_loss))

    def cells(evaluation: Mapping[str, Any]) -> tuple[Cell, ...]:
        found = [Cell(f"{evaluation['step']:,}"), _share_cell(evaluation["density"])]
        for name in names:
            value = finite(evaluation["metrics"].get(name))
            found.append(Cell("unknown", "muted") if value is None else Cell(_score({"value": value})))
        if with_loss:
            loss = finite(evaluation.get("loss"))
            found.append(Cell("unknown", "muted") if loss is None else Cell(digits(loss)))
        return tuple(found)

    return Table("evaluations", "Evaluations", columns, ((None, tuple(map(cells, evaluations))),))


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
    known = [
        (evaluation["step"], value)
        for evaluation in evaluations
        if (value := finite(evaluation["metrics"].get(document["metric"]))) is not None
    ]
    if known:
        step, value = known[-1]
        text += f"; {metric_name(document['metric'])} was {_score({'value': value})} at step {step:,}"
    return f"{text}."


def _steps_words(document: Training) -> str:
    """How far it came: ``after 1,500 steps``, ``after 812 of 1,500 steps``."""
    reached = max((entry["step"] for entry in (*document["log"], *document["evaluations"])), default=0)
    planned = max((phase["last"] for phase in document["phases"]), default=0)
    if document["final"] is not None:
        return f"{max(reached, planned):,} steps"
    return f"after {reached:,} of {planned:,} steps" if planned > reached else f"after {reached:,} steps"


def _metric(metrics: Mapping[str, Any] | None, name: str) -> Mapping[str, Any] | None:
    """A metric whose value is a number, or None."""
    found: Mapping[str, Any] | None = (metrics or {}).get(name)
    return None if found is None or finite(found["value"]) is None else found


def _score(metric: Mapping[str, Any]) -> str:
    error = finite(metric.get("se"))
    value = float(metric["value"])
    return f"{signed(100 * value, plus=False)} %" if error is None else score(value, error)


def _score_cell(metrics: Mapping[str, Any], name: str) -> Cell:
    found = _metric(metrics, name)
    return Cell("unknown", "muted") if found is None else Cell(_score(found))


def _share_cell(share: object) -> Cell:
    value = finite(share)
    return Cell("unknown", "muted") if value is None else Cell(percent(value))


def _has_parts(pair: Sequence[int] | None) -> bool:
    """Whether a pair of live and all counts anything."""
    return pair is not None and pair[1] > 0


def _of(pair: Sequence[int], what: str) -> str:
    return f"{pair[0]:,} of {pair[1]:,} {what}"


def _parts_cell(pair: Sequence[int] | None) -> Cell:
    if pair is None or pair[1] == 0:
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


def _footer(document: Training) -> str:
    version = document["versions"].get("compactor")
    return f"Made by compactor{f' {version}' if version else ''} from training.json, schema {document['schema']}."
