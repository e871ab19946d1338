"""The page of a training run: what it says, and what it draws."""

from __future__ import annotations

import functools
import re

import pytest

from compactor.reporting.training import (
    evaluation_table,
    kept_table,
    make_training_figures,
    make_training_tiles,
    quality_table,
    render_training,
    span,
    training_about,
    training_sentence,
)
from tests.compactor.reporting.pages import (
    HOSTILE,
    Reader,
    check_closed_to_the_world,
    check_drawings,
    check_only_text,
    roots,
    shown,
)
from tests.compactor.reporting.trainings import PARTS, make_bare, make_training, make_unknown

ALL = ["density", "losses", "metric", "pattern-0"]


@functools.cache
def plain_page() -> str:
    return render_training(make_training())


def figures_of(document):
    return {figure.id: figure for figure in make_training_figures(document)}


def test_the_sentence_says_quality_what_is_left_and_the_teacher():
    document = make_training()
    alive, heads = document["final"]["heads"]
    assert heads == 72
    assert training_sentence(document) == (
        f"Accuracy 86.12 ± 1.17 % with 34.0 % of the linear weights, {alive} of 72 heads; the teacher: 87.16 ± 1.13 %."
    )
    assert training_about(document) == "hybrid · text classification · model model · teacher teacher"


def test_the_sentence_without_a_teacher_or_its_metrics():
    assert "teacher" not in training_sentence(make_training(teacher=False))
    assert training_about(make_training(teacher=False)).endswith("no teacher")
    document = make_training()
    document["final"]["teacher_metrics"] = None
    assert training_sentence(document).endswith("; the teacher: not evaluated.")


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (
            make_training(stopped=800),
            "Stopped after 800 of 1,500 steps, with 36.4 % of the linear weights left; "
            "accuracy was 84.13 % at step 750.",
        ),
        (
            make_training(stopped=800) | {"evaluations": []},
            "Stopped after 800 of 1,500 steps, with 36.4 % of the linear weights left.",
        ),
        (make_bare(), "Stopped before the first step was logged: nothing is known of it."),
        (make_unknown(), "Accuracy unknown; the teacher: not evaluated."),
    ],
    ids=["stopped", "not-evaluated", "bare", "unknown"],
)
def test_the_sentence_of_a_run_with_gaps(document, sentence):
    assert training_sentence(document) == sentence


def test_tiles():
    tiles = {tile.name: tile for tile in make_training_tiles(make_training())}
    assert list(tiles) == ["Accuracy", "Density", "Attention heads", "FFN neurons", "Time"]
    assert tiles["Accuracy"].value == "86.12 ± 1.17 %"
    assert tiles["Accuracy"].note == "on 872 examples; the teacher: 87.16 ± 1.13 %"
    assert (tiles["Density"].value, tiles["Density"].note) == ("34.0 %", "3.62 M of 10.6 M linear weights")
    assert (tiles["Time"].value, tiles["Time"].note) == ("20.6 min", "1,500 steps")
    assert make_training_tiles(make_training(stopped=800)) == []
    assert [(tile.name, tile.value) for tile in make_training_tiles(make_unknown())] == [("Accuracy", "unknown")]


def test_spans():
    assert [span(seconds) for seconds in (8.31, 95, 740, 20_000)] == ["8.31 s", "95.0 s", "12.3 min", "5 h 33 min"]


def test_the_primary_metric_comes_first_beside_the_teachers():
    table = quality_table(make_training())
    ((_, rows),) = table.groups
    assert table.columns == ("metric", ">final model", ">teacher", ">examples")
    assert [[cell.text for cell in row] for row in rows] == [
        ["accuracy", "86.12 ± 1.17 %", "87.16 ± 1.13 %", "872"],
        ["f1", "85.30 ± 1.21 %", "unknown", "872"],
    ]
    assert quality_table(make_training(teacher=False)).columns == ("metric", ">final model", ">examples")


def test_the_table_of_layers_groups_by_stack():
    table = kept_table(make_training(stacks=("encoder", "decoder"), layers=2))
    assert [(name, len(rows)) for name, rows in table.groups] == [("encoder", 4), ("decoder", 6)]
    assert [cell.text for cell in table.groups[1][1][1]][:3] == [
        "decoder.layer.0.cross_attention", "cross-attention", "20.0 %",
    ]  # fmt: skip
    heads = make_training()["final"]["layers"][0]["heads"]
    assert table.groups[0][1][0][3].text == f"{sum(heads)} of 12"
    assert table.groups[0][1][0][4].text == "none"


def test_the_table_of_evaluations_shows_every_metric():
    table = evaluation_table(make_training())
    ((_, rows),) = table.groups
    assert table.columns == (">step", ">density", ">accuracy", ">f1", ">loss")
    assert len(rows) == 10 and [cell.text for cell in rows[-1]][:2] == ["1,500", "34.0 %"]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (make_training(), ALL),
        (make_training(stopped=800), ["density", "losses", "metric"]),
        (make_training(evaluations=0), ["density", "losses", "pattern-0"]),
        (make_training() | {"log": []}, ["metric", "pattern-0"]),
        (make_unknown(), ["pattern-0"]),
        (make_bare(), []),
    ],
    ids=["all", "stopped", "not-evaluated", "not-logged", "unknown", "bare"],
)
def test_a_figure_is_there_when_it_has_data(document, expected):
    assert list(figures_of(document)) == expected


def test_drawings_are_sound_and_take_their_colours_from_the_page():
    check_drawings(make_training_figures(make_training(stacks=("encoder", "decoder"), layers=12)))


def test_phases_are_named_and_one_without_steps_is_not():
    assert {"warm-up", "pruning", "cool-down"} <= set(shown(figures_of(make_training())["density"]))
    document = make_training()
    document["phases"][0]["last"] = document["phases"][1]["first"] = 0
    assert "warm-up" not in shown(figures_of(document)["density"])


def test_threshold_and_lambda_have_panels_where_they_are_known():
    document = make_training()
    texts = shown(figures_of(document)["density"])
    assert texts[texts.index("threshold") + 1] == "0.100" and texts[texts.index("λ") + 1] == "20.0"
    for entry in document["log"]:
        entry.update({"threshold": None, "lambda": None})
    figure = figures_of(document)["density"]
    assert not {"threshold", "λ"} & set(shown(figure)) and "threshold" not in figure.caption


def test_losses_have_a_panel_each_and_the_whole_loss_stands_in_for_unknown_parts():
    document = make_training(teacher=False)
    assert {"task", "regularization"} <= set(shown(figures_of(document)["losses"]))
    assert "distillation" not in shown(figures_of(document)["losses"])
    for entry in document["log"]:
        entry.update(dict.fromkeys(PARTS))
    texts = shown(figures_of(document)["losses"])
    assert texts[texts.index("loss") + 1] == "0.900"


def test_a_gap_in_the_log_breaks_the_line():
    def pieces(document):
        (root,) = roots(figures_of(document)["losses"])
        paths = [node.get("d") for node in root.iter() if "var(--s5)" in (node.get("style") or "") and node.get("d")]
        return paths[0].count("M ")

    document = make_training(teacher=False)
    whole = pieces(document)
    document["log"][30]["task_loss"] = float("nan")
    assert pieces(document) == whole + 1


def test_a_long_log_is_averaged_and_the_caption_says_so():
    assert "mean of" not in figures_of(make_training())["losses"].caption
    figure = figures_of(make_training(steps=60_000))["losses"]
    assert "A point is the mean of 10 entries of the log." in figure.caption
    (root,) = roots(figure)
    paths = [node.get("d") for node in root.iter() if "var(--s5)" in (node.get("style") or "") and node.get("d")]
    assert 100 < paths[0].count("L ") < 250


def test_the_final_model_and_the_teacher_are_marked():
    figure = figures_of(make_training())["metric"]
    assert [drawing.title for drawing in figure.drawings] == ["along the steps", "against density"]
    assert shown(figure).count("final 86.1 %") == 2 and shown(figure).count("teacher 87.2 %") == 2
    figure = figures_of(make_training(stopped=800))["metric"]
    assert not [text for text in shown(figure) if text.startswith(("final", "teacher"))]
    assert "diamond" not in figure.caption and "teacher" not in figure.caption


def test_the_pattern_fills_a_square_for_each_live_head():
    document = make_training(layers=1, heads=16)
    (layer,) = (layer for layer in document["final"]["layers"] if layer["heads"])
    layer["heads"] = [True] * 5 + [False] * 11
    (root,) = roots(figures_of(document)["pattern-0"])
    styles = [node.get("style") or "" for node in root.iter() if node.get("d")]
    assert sum("fill: var(--s1)" in style for style in styles) == 5
    assert sum("fill: var(--track); stroke: var(--muted)" in style for style in styles) == 11
    assert "5 / 16" in shown(figures_of(document)["pattern-0"])


def test_stacks_have_a_figure_each_and_many_layers_several_drawings():
    figures = figures_of(make_training(stacks=("encoder", "decoder"), layers=12))
    for name, stack, crossed in (("pattern-0", "encoder", 0), ("pattern-1", "decoder", 12)):
        assert figures[name].title == f"Kept in each layer of the {stack}"
        assert [drawing.title for drawing in figures[name].drawings] == ["layers 0 to 5", "layers 6 to 11"]
        assert shown(figures[name]).count("attention") == shown(figures[name]).count("feed-forward") == 12
        assert shown(figures[name]).count("cross-attention") == crossed


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("model.encoder.layers.{}.fc1", "layers 0 to 1"),
        ("encoder.block.{}.layer.2.dense", "layers 0 to 1"),
        ("no number here", "layers 0 to 1"),
    ],
)
def test_layers_are_numbered_by_their_names_or_their_places(name, title):
    document = make_training(layers=2)
    for index, layer in enumerate(document["final"]["layers"]):
        layer["name"] = name.format(index // 2)
    assert [drawing.title for drawing in figures_of(document)["pattern-0"].drawings] == [title]


def test_the_page_is_closed_to_the_world():
    check_closed_to_the_world(plain_page())


def test_strings_of_a_document_are_only_text():
    document = make_training(title=HOSTILE, method=HOSTILE, notes=(HOSTILE,), warnings=(HOSTILE,))
    document["settings"][HOSTILE] = document["versions"][HOSTILE] = document["command"] = HOSTILE
    document["final"]["layers"][0]["name"] = document["phases"][0]["name"] = document["model"] = HOSTILE
    harmless = render_training(make_training(warnings=("x",)))
    check_only_text(render_training(document), harmless, beside=("dt", "dd"))  # one more setting, and one more version


@pytest.mark.parametrize(
    "document", [make_bare(), make_unknown(), make_training(stopped=800)], ids=["bare", "unknown", "stopped"]
)
def test_documents_with_gaps_have_a_page_without_oddities(document):
    reader = Reader(render_training(document))
    assert not reader.open
    assert not re.search(r"\b(None|nan|inf|Undefined)\b", reader.text)


def test_what_the_page_says():
    text = Reader(render_training(make_training(warnings=("no head was removed",)))).text.replace("\xa0", " ")
    assert training_sentence(make_training()) in text
    assert "no head was removed" in text and "3 training texts were cut" in text
    assert "mask learning rate0.01" in text and "block32, 32" in text and "resumedno" in text
    assert "target densitynot set" in text and "regularizationattention 20, feed_forward 20" in text
    assert "compactor prune model --method hybrid" in text and "transformers5.23.0" in text
    assert "stopped early" not in text and "stopped early" in render_training(make_training(stopped=800))


def test_it_is_always_the_same():
    assert render_training(make_training()) == plain_page()
