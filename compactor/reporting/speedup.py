"""A family of pruned models as one HTML page, made from ``speedup.json``: how fast, how good, and what is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from compactor.reporting.figures.family import (
    Family,
    loss_name,
    make_family_figures,
    parts,
    score_or_loss,
    scored,
)
from compactor.reporting.numbers import digits, duration, percent, points, score_of, signed, times, with_interval
from compactor.reporting.rows import metric_name
from compactor.reporting.tables.provenance import machine_rows
from compactor.reporting.tables.table import TONES, Cell, Column, Table, known, make_table
from compactor.reporting.templates import Tile, render_template
from compactor.reporting.training import span
from compactor.reporting.training_figures import KINDS, finite, metric_in

_Model = Mapping[str, Any]


def render_speedup(document: Family) -> str:
    """The page of ``document``, a ``speedup.json``. The same document always gives the same page."""
    machine = {**(document["machine"] or {}), "versions": None}  # which the page has below
    return render_template(
        "speedup.html.jinja",
        document=document,
        about=speedup_about(document),
        kept=f"{len(_kept(document))} of {len(document['models'])} promises kept",
        all_kept=len(_kept(document)) == len(document["models"]),
        summary=speedup_sentence(document),
        tiles=make_speedup_tiles(document),
        tables=[speeds_table(document), quality_table(document)],
        figures=make_family_figures(document),
        settings=settings_rows(document),
        metrics=metrics_table(document),
        blocks=blocks_table(document),
        machine=machine_rows({"machine": machine, "peak": None}),
        versions=[(name, str(version)) for name, version in document["versions"].items()],
        version=document["versions"].get("compactor"),
    )


def speedup_about(document: Family) -> str:
    """What was done to what, where, in a line: ``model bert · text classification · 1 x 128 tokens, int8``."""
    processor = (document["machine"] or {}).get("cpu_model")
    said = [f"model {document['model']}", document["task"].replace("-", " "), document["load_words"], processor]
    return " · ".join(filter(None, said))


def speedup_sentence(document: Family) -> str:
    """The result for someone who reads one sentence: promises kept, how fast, and at what quality.

    Quality is the metric; where no model has one, how far the answers are from the whole model's.
    """
    models, kept = document["models"], len(_kept(document))
    within = f"{100 * document['tolerance']:g} %"
    if len(models) == 1:
        said = f"keeps its speed within {within}" if kept else f"does not keep its speed within {within}"
        text = f"{models[0]['name']} {said}"
    else:
        number = f"All {kept}" if kept == len(models) else f"{kept} of {len(models)}"
        text = f"{number} models keep their speed within {within}"
        if 0 < kept < len(models):
            missed = [model["name"] for model in models if not model["kept"]]
            text += f", {' and '.join(missed)} do{'es' * (len(missed) == 1)} not"
    found = _measured(models)
    if not found:
        return f"{text}: none was measured."
    ends = [found[0], found[-1]] if len(found) > 1 else found
    text += f": {' to '.join(times(speed) for speed, _ in ends)} as fast"
    values = [value for _, model in ends if (value := score_or_loss(document, model)) is not None]
    if len(values) == len(ends):
        metric = scored(document)
        between = " to ".join(dict.fromkeys(values))
        if metric is None:
            return f"{text}, at a {loss_name(document)} of {between} from the whole model's answers."
        text += f", at {between} {metric_name(metric)}"
        whole = metric_in(document["whole"]["fp32_metrics"], metric)
        text += "" if whole is None else f"; the whole model in fp32: {score_of(whole)}"
    return f"{text}."


def make_speedup_tiles(document: Family) -> list[Tile]:
    """What a decision hangs on: promises, the fastest model that keeps its own, its quality, how long it all took."""
    kept, models, metric = _kept(document), document["models"], scored(document)
    tone = "good" if len(kept) == len(models) else "bad"
    tiles = [Tile("Promises kept", f"{len(kept)} of {len(models)}", f"within {100 * document['tolerance']:g} %", tone)]
    if measured := _measured(kept) or _measured(models):
        speed, best = measured[-1]
        latency = finite(best["measured"]["latency_ms"])
        note = best["name"] if latency is None else f"{best['name']}: {duration(latency)}"
        tiles.append(Tile("Fastest that keeps it" if kept else "Fastest", times(speed), note))
        found, loss = metric_in(best["metrics"], metric or ""), finite(best["loss"])
        if found is not None and metric is not None:
            difference = found.get("difference")
            note = f"of {best['name']}" if found.get("n") is None else f"of {best['name']}, on {found['n']:,} examples"
            note += "" if difference is None else f"; {_points(difference)} points"
            tiles.append(Tile(metric_name(metric).capitalize(), score_of(found), note))
        elif loss is not None:
            tiles.append(Tile(loss_name(document), digits(loss), f"of {best['name']}, from the whole model's answers"))
    if finite(document["seconds"]) is not None:
        tiles.append(Tile("Time", span(document["seconds"]), "of all the work, without training"))
    return tiles


def speeds_table(document: Family) -> Table:
    """Promise and speed of each model, beside the whole one's."""
    columns: list[Column] = [
        ("model", lambda model: Cell(model["name"], note="corrected once" if model.get("corrected") else "")),
        (">target", _pruned(lambda model: known(finite(model["target"]), times))),
        (">predicted", _pruned(lambda model: known(finite(model["predicted"]), times))),
        (">measured", _pruned(_measured_cell)),
        ("promise", _pruned(_promise_cell)),
        (">latency, ms", _latency_cell),
    ]
    caption = (
        "A speed-up is the whole model's time over the row's, all measured together; in brackets its 95 % interval. "
        f"A promise is kept within {100 * document['tolerance']:g} % of the target. Predicted speeds "
        "are of sums of the costs of blocks."
    )
    rows = {None: [(row,) for row in (*_whole_rows(document), *document["models"])]}

    def why_absent(model: _Model) -> str | None:
        return None if model.get("timed", True) else "not timed: what quality is held against"

    return make_table("speeds", "Speed", columns, rows, caption, absence=why_absent)


def quality_table(document: Family) -> Table:
    """Quality of each model, and what is left of it, beside the whole one's."""
    metric = document["metric"]
    columns: list[Column] = [("model", lambda model: Cell(model["name"]))]
    if metric is not None:
        columns.append((f">{metric_name(metric)}", lambda model: _metric_cell(model["metrics"], metric)))
        columns.append((">difference, points", lambda model: _difference_cell(model, metric)))
    columns.append((f">{loss_name(document)}", _pruned(lambda model: known(finite(model["loss"]), digits))))
    columns += [(f">{name}", _left(places, total)) for name, (places, total) in _counts(document).items()]
    caption = f"{loss_name(document)}: how far the answers are from the whole model's, before the export."
    if metric is not None:
        caption = (
            "Quality ± standard error, of the graphs that are served. Differences are paired, example by example, with "
            f"the whole model in fp32; below them their 95 % interval. {caption}"
        )
    rows = {None: [(row,) for row in (*_whole_rows(document), *document["models"])]}
    return make_table("quality", "Quality and size", columns, rows, caption)


def metrics_table(document: Family) -> Table:
    """Every metric of each model; empty where there is no other than the one that models are compared by."""
    rows = [(row["name"], row["metrics"]) for row in (*_whole_rows(document), *document["models"])]
    names = list(dict.fromkeys(name for _, metrics in rows for name in metrics or ()))
    columns: list[Column] = [("model", lambda name, _: Cell(name))]
    columns += [(f">{metric_name(name)}", lambda _, metrics, name=name: _metric_cell(metrics, name)) for name in names]
    return make_table("metrics", "Every metric", columns, {None: rows if len(names) > 1 else []})


def blocks_table(document: Family) -> Table:
    """Heads and neurons of each block in each model."""
    columns: list[Column] = [
        ("block", lambda _, block: Cell(block["name"])),
        ("kind", lambda _, block: Cell(KINDS[block["kind"]])),
        (">whole", lambda _, block: Cell(f"{block['count']:,}")),
    ]
    for model in document["models"]:
        columns.append((f">{model['name']}", lambda place, _, sizes=model["sizes"]: Cell(f"{sizes[place]:,}")))
    return make_table("blocks", "Sizes of each block", columns, {None: enumerate(document["blocks"])})


def settings_rows(document: Family) -> list[tuple[str, str]]:
    """How it was made: all that one needs beside the command."""
    costs = document["costs"]
    fixed, dense, error = (finite(costs[name]) for name in ("fixed_ms", "dense_ms", "error"))
    words = []
    if fixed is not None and dense is not None:
        words.append(f"{duration(fixed)} of {duration(dense)} that no pruning changes")
    if error is not None:
        words.append(f"sums miss {len(costs['graphs'])} whole graphs by up to {percent(error)}")
    own, other = (document["machine"] or {}).get("cpu_model"), (costs["machine"] or {}).get("cpu_model")
    if other and other != own:
        words.append(f"measured on another machine: {other}")
    return [
        ("texts", f"{document['texts']:,} of {document['data']}, without labels"),
        ("load", document["load_words"]),
        ("costs", "; ".join(words) or "unknown"),
        ("choices tried", f"{document['trials']:,} for each target"),
        ("seed", str(document["seed"])),
    ]


def _whole_rows(document: Family) -> list[_Model]:
    """The whole model among its pruned ones: in fp32, where that was judged, and as it is served."""
    whole, precision = document["whole"], document["load"]["precision"]
    row = {"whole": True, "timed": True, "sizes": whole["sizes"]}
    rows: list[_Model] = [
        {**row, "name": f"whole, {precision}", "metrics": whole["metrics"], "latency": whole["latency_ms"]}
    ]
    if whole["fp32_metrics"] and precision != "fp32":
        rows.insert(0, {**row, "name": "whole, fp32", "metrics": whole["fp32_metrics"], "timed": False})
    return rows


def _kept(document: Family) -> list[_Model]:
    return [model for model in document["models"] if model["kept"]]


def _measured(models: Sequence[_Model]) -> list[tuple[float, _Model]]:
    """The models whose speed is known, slowest first."""
    found = [(speed, model) for model in models if (speed := _speed(model)) is not None]
    return sorted(found, key=lambda pair: pair[0])


def _speed(model: _Model) -> float | None:
    return finite((model["measured"] or {}).get("speedup"))


def _pruned(write: Callable[[_Model], Cell]) -> Callable[[_Model], Cell]:
    """What makes a cell of a pruned model; of the whole one it is the baseline."""
    return lambda model: Cell("baseline", "muted") if model.get("whole") else write(model)


def _measured_cell(model: _Model) -> Cell:
    speed = _speed(model)
    if speed is None:
        return Cell("not measured", "muted")
    return Cell(with_interval({**model["measured"], "value": speed}))


def _promise_cell(model: _Model) -> Cell:
    speed, target = _speed(model), finite(model["target"])
    if speed is None or not target:
        return Cell("not measured", "muted")
    off = 100 * (speed / target - 1)
    note = f"{abs(off):.1f} % {'above' if off > 0 else 'below'}"
    return Cell("kept", "good", note=note) if model["kept"] else Cell("missed", "bad", note=note)


def _latency_cell(model: _Model) -> Cell:
    if not model.get("whole"):
        return known(finite((model["measured"] or {}).get("latency_ms")), digits, "not measured")
    latency = finite(model["latency"])
    return Cell("unknown", "muted") if latency is None else Cell(digits(latency))


def _metric_cell(metrics: Mapping[str, Any] | None, name: str) -> Cell:
    return known(metric_in(metrics, name), score_of, "not measured")


def _difference_cell(model: _Model, name: str) -> Cell:
    found = metric_in(model["metrics"], name)
    difference = (found or {}).get("difference")
    if difference is None:
        return Cell("not measured" if found is None else "baseline", "muted")
    low, high = finite(difference.get("low")), finite(difference.get("high"))
    ends = "" if low is None or high is None else f"{signed(100 * low)} to {signed(100 * high)}"
    return Cell(_points(difference), TONES.get(difference.get("verdict", ""), ""), note=ends)


def _points(difference: Mapping[str, Any]) -> str:
    """A paired difference; without its error where that is unknown."""
    return signed(100 * difference["value"]) if finite(difference["se"]) is None else points(difference)


def _counts(document: Family) -> dict[str, tuple[list[int], int]]:
    """Heads and neurons: the places of their blocks, and how many the whole model has."""
    kinds, blocks = parts(document["blocks"]), document["blocks"]
    found = {
        "heads": [place for kind, places in kinds.items() if kind != "feed_forward" for place in places],
        "neurons": kinds.get("feed_forward", []),
    }
    return {name: (places, sum(blocks[place]["count"] for place in places)) for name, places in found.items() if places}


def _left(places: Sequence[int], total: int) -> Callable[[_Model], Cell]:
    def cell(model: _Model) -> Cell:
        left = sum(model["sizes"][place] for place in places)
        return Cell(f"{left:,}", note=percent(left / total))

    return cell
