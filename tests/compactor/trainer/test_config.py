"""Settings: their defaults, their bounds, recipes in TOML, and that the documentation lists them all."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from compactor.cli import cli
from compactor.errors import UsageError
from compactor.trainer.config import PruneConfig, describe_settings, from_json, read_recipe, steps_of
from compactor.trainer.methods import Block, Shape

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "examples" / "recipes"

# Optimizer steps of an epoch of the paper's data sets, by batches of the recipe's size.
EPOCHS = {"squad-v1": 5533, "squad-v2": 8240, "mnli": 12272, "qqp": 11371, "sst2": 2105, "cnn-dailymail": 17945}


def test_the_defaults_are_the_papers() -> None:
    config = PruneConfig()
    assert (config.method, config.attention, config.feed_forward) == ("hybrid", Block(32, 32), Shape.DIM)
    assert (config.learning_rate, config.score_learning_rate, config.final_threshold) == (3e-5, 1e-2, 0.1)
    assert (config.alpha_ce, config.alpha_teacher, config.temperature) == (0.1, 0.9, 2.0)
    assert (config.stride, config.decoder_lambda, config.seed) == (128, 2.0, 17)


# Values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"epochs": -1.0}, "epochs is -1", id="below"),
        pytest.param({"steps": 0}, "steps is 0", id="no-steps"),
        pytest.param({"target_density": 1.5}, "target_density is 1.5", id="above"),
        pytest.param({"target_density": 0.0}, "target_density is 0", id="nothing-left"),
        pytest.param({"strength": -2.0}, "lambda is -2", id="lambda"),
        pytest.param({"learning_rate": float("nan")}, "learning_rate is nan", id="no-number"),
        pytest.param({"max_length": 4}, "max_length is 4", id="short"),
        pytest.param({"epochs": 2.0, "steps": 10}, "both epochs and steps", id="epochs-and-steps"),
        pytest.param({"method": "dense", "attention_block": "4x4"}, "'dense' prunes nothing", id="blocks-of-dense"),
        pytest.param({"method": "hybird"}, "no method 'hybird'", id="method"),
        pytest.param({"attention_block": "32"}, "attention_block: '32' is no block", id="attention-block"),
        pytest.param({"feed_forward_block": "0x4"}, "feed_forward_block: '0x4' is no block", id="feed-forward-block"),
    ],
)
def test_a_value_out_of_its_bounds_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        PruneConfig(**values)  # type: ignore[arg-type]
    assert caught.value.todo


def test_bounds_themselves_are_allowed() -> None:
    PruneConfig(epochs=0.0, target_density=1.0, max_length=8, least=0.0, strength=0.0, warm_up=0, cool_down=0)


def test_blocks_override_those_of_the_method() -> None:
    config = PruneConfig(method="struct", attention_block="16x8", feed_forward_block="none")
    assert (config.attention, config.feed_forward) == (Block(16, 8), Shape.NONE)


def test_changed_leaves_alone_what_is_none() -> None:
    config = PruneConfig(steps=10, seed=3).changed(steps=20, seed=None, precision="bf16")
    assert (config.steps, config.seed, config.precision) == (20, 3, "bf16")


@pytest.mark.parametrize(
    ("value", "steps", "expected"), [(0.1, 500, 50), (0.25, 10, 2), (0.0, 10, 0), (1, 10, 1), (5400.0, 10, 5400)]
)
def test_a_number_below_one_is_a_share_of_the_steps(value: float, steps: int, expected: int) -> None:
    assert steps_of(value, steps) == expected


def test_the_schedule_of_a_run() -> None:
    schedule = PruneConfig(warm_up=0.1, cool_down=50, final_threshold=0.2).schedule(200)
    assert (schedule.steps, schedule.warm_up, schedule.cool_down, schedule.final_threshold) == (200, 20, 50, 0.2)


@pytest.mark.parametrize("steps", [1, 40, 64])
def test_a_schedule_that_leaves_no_step_for_pruning_is_refused(steps: int) -> None:
    with pytest.raises(UsageError, match=f"leave none of {steps} for pruning"):
        PruneConfig(warm_up=24, cool_down=40).schedule(steps)
    assert PruneConfig(warm_up=24, cool_down=40).schedule(65).phases()[1] == ("pruning", 24, 25)


# Recipes


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "recipe.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_recipe_gives_what_it_names_and_defaults_for_the_rest(tmp_path: Path) -> None:
    config = read_recipe(write(tmp_path, 'method = "struct"\nlambda = 30\nsteps = 7\nfreeze_embeddings = true\n'))
    assert config == PruneConfig(method="struct", strength=30.0, steps=7, freeze_embeddings=True)


@pytest.mark.parametrize(
    ("text", "message", "todo"),
    [
        pytest.param("metod = 'hybrid'", "no setting 'metod'", "did you mean 'method'?", id="misspelt"),
        pytest.param("xyz = 2", "no setting 'xyz'", "choose from: method, task", id="unknown"),
        pytest.param("[hybrid]\nsteps = 1", "no setting 'hybrid'", "choose from", id="table"),
        pytest.param("steps = 1.5", "'steps' is 1.5", "expected a whole number", id="broken-steps"),
        pytest.param("steps = true", "'steps' is True", "expected a whole number", id="bool-for-number"),
        pytest.param("epochs = '3'", "'epochs' is '3'", "expected a number", id="text-for-number"),
        pytest.param("freeze_embeddings = 1", "'freeze_embeddings' is 1", "expected true or false", id="no-bool"),
        pytest.param("method = 3", "'method' is 3", "expected text", id="number-for-text"),
        pytest.param("precision = 'int8'", "'precision' is 'int8'", "'fp32' or 'bf16' or 'fp16'", id="precision"),
        pytest.param("seed = -1", "seed is -1", "at least 0", id="bounds"),
        pytest.param("steps = 5\nepochs = 1", "both epochs and steps", "leave one out", id="contradiction"),
        pytest.param("method = ", "not TOML", "examples/recipes", id="not-toml"),
        pytest.param(b"method = '\xff'", "not TOML", "examples/recipes", id="not-utf-8"),
    ],
)
def test_a_recipe_that_cannot_be_is_an_error_with_its_place(
    text: str | bytes, message: str, todo: str, tmp_path: Path
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        read_recipe(path)
    assert caught.value.where == str(path)
    assert caught.value.todo is not None and todo in caught.value.todo


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_recipe(tmp_path / "nope.toml")


def test_what_is_written_into_records_is_read_back() -> None:
    config = PruneConfig(method="rewind", strength=12.5, epochs=2.0, attention_block="8x8", precision="fp16")
    written = config.to_json()
    assert "lambda" in written and "strength" not in written
    assert from_json(written, where="run.json") == config


# The recipes and the documentation that come with the project


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_can_be_read(path: Path) -> None:
    config = read_recipe(path)
    assert (config.epochs is None) != (config.steps is None)


@pytest.mark.parametrize("name", EPOCHS)
def test_a_recipe_of_the_paper_has_its_settings_and_room_to_prune(name: str) -> None:
    config = read_recipe(FOLDER / f"{name}.toml")
    assert config.epochs is not None and config.task is not None
    assert (config.learning_rate, config.score_learning_rate, config.final_threshold) == (3e-5, 1e-2, 0.1)
    assert config.method == ("hybrid-nt" if name == "cnn-dailymail" else "hybrid")
    steps = round(EPOCHS[name] * config.epochs)
    phases = {name: last - first for name, first, last in config.schedule(steps).phases()}
    assert phases["warm-up"] > 0 and phases["cool-down"] > phases["warm-up"]
    assert phases["pruning"] > 0.3 * steps


@pytest.mark.parametrize("name", EPOCHS)
def test_the_commands_in_a_recipe_of_the_paper_can_be_typed(name: str) -> None:
    lines = (FOLDER / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    comments = [line[1:].strip() for line in lines if line.startswith("#")]
    text = "\n".join(comments).replace("\\\n", " ")
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("compactor prune ")]
    prune = cli.get_command(click.Context(cli), "prune")
    assert prune is not None
    used = [prune.make_context("compactor prune", arguments[2:]).params for arguments in commands]
    recipes = [params["recipe"] for params in used if params["recipe"] is not None]
    assert recipes == [Path(f"{name}.toml")]
    assert [params["teacher"] for params in used[1:]] == [used[0]["output"]] * len(used[1:])


def test_every_setting_has_a_row_in_the_documentation() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    section = text.partition("\n## Settings\n")[2].partition("\n## ")[0]
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| `")
    ]
    assert [(key.strip("`"), default.strip("`"), meaning) for key, default, meaning, _ in cells] == [
        (key, _shown(default), text) for key, default, text in describe_settings()
    ]
    prune = cli.get_command(click.Context(cli), "prune")
    assert prune is not None
    known = {option for parameter in prune.params for option in parameter.opts}
    assert {option.strip("`") for *_, option in cells if option} <= known


def _shown(default: object) -> str:
    if default is None:
        return ""
    return str(default).lower() if isinstance(default, bool) else str(default)
