"""``compactor prune``: what it hands on, what it prints, which mistakes it refuses, and how it ends."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import pytest

from compactor.errors import ModelDirectoryError, OutputError, TrainingError, UsageError
from compactor.trainer.config import PruneConfig, describe_settings
from compactor.trainer.methods import METHODS
from tests.compactor.fakes import replace_module, run
from tests.compactor.reporting.trainings import make_training
from tests.compactor.trainer.tiny import write_model, write_sentences

OPTIONS = {"teacher": None, "first_run": None, "resume": False, "overwrite": False, "details": False}


class Fake:
    """Stands in for ``prune()``: keeps what it was asked for, makes some noise, and gives ``answer``."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] | BaseException = make_training(warnings=("nothing is left of encoder layers.5",))
        self.calls = 0
        self.folders: tuple[Path, ...] = ()
        self.options: dict[str, Any] = {}

    def __call__(self, *folders: Path, **options: Any) -> types.SimpleNamespace:
        self.calls += 1
        self.folders, self.options = folders, options
        print("a library talks")
        options["progress"]("step 1 of 10")
        if isinstance(self.answer, BaseException):
            raise self.answer
        return types.SimpleNamespace(path=folders[-1], record=self.answer)

    @property
    def config(self) -> PruneConfig:
        config: PruneConfig = self.options["config"]
        return config


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path) -> Fake:
    made = Fake()
    replace_module(monkeypatch, "compactor.trainer.pruning", prune=made)
    monkeypatch.chdir(tmp_path)  # where `model` is
    return made


NEEDED = ("--data", "train.tsv", "--eval", "dev.tsv", "-o", "out")

# What it hands on


def test_the_defaults(fake: Fake) -> None:
    assert run("prune", "model", *NEEDED, "-q") == 0
    assert fake.options.pop("progress")
    assert fake.options.pop("command") == "compactor prune model --data train.tsv --eval dev.tsv -o out -q"
    assert fake.folders == (Path("model"), Path("train.tsv"), Path("dev.tsv"), Path("out"))
    assert fake.options == OPTIONS | {"config": PruneConfig()}


@pytest.fixture(autouse=True)
def typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command in the record is this process's own; here, what was handed to ``run``."""
    monkeypatch.setattr(sys, "argv", ["compactor", "prune", "model", *NEEDED, "-q"])


def test_passes_its_options_on(fake: Fake, model: Path, tmp_path: Path) -> None:
    for name in ("teacher", "first"):
        shutil.copytree(model, tmp_path / name)
    typed = (
        "--method hybrid-filled --teacher teacher --first-run first --task text-classification --lambda 12.5"
        " --target-density 0.3 --block 16x16 --steps 7 --batch-size 8 --max-length 64 --learning-rate 1e-4"
        " --precision bf16 --freeze-embeddings --seed 3 --overwrite --layers"
    )
    assert run("prune", "model", *NEEDED, *typed.split()) == 0
    assert fake.config == PruneConfig(
        method="hybrid-filled",
        task="text-classification",
        strength=12.5,
        target_density=0.3,
        attention_block="16x16",
        steps=7,
        batch_size=8,
        max_length=64,
        learning_rate=1e-4,
        precision="bf16",
        freeze_embeddings=True,
        seed=3,
    )
    given = {name: fake.options[name] for name in OPTIONS}
    assert given == {
        "teacher": Path("teacher"),
        "first_run": Path("first"),
        "resume": False,
        "overwrite": True,
        "details": True,
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param("", {"epochs": 12.0, "seed": 5, "freeze_embeddings": True}, id="recipe"),
        pytest.param("--seed 6 --method struct", {"epochs": 12.0, "seed": 6, "method": "struct"}, id="option-wins"),
        pytest.param("--steps 30", {"steps": 30, "epochs": None}, id="steps-for-epochs"),
        pytest.param("--epochs 2", {"steps": None, "epochs": 2.0}, id="epochs"),
    ],
)
def test_options_override_a_recipe(options: str, expected: dict[str, Any], fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("epochs = 12\nseed = 5\nfreeze_embeddings = true\n")
    assert run("prune", "model", *NEEDED, "--config", "r.toml", *options.split()) == 0
    assert {name: getattr(fake.config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("method", "attention", "feed_forward"),
    [("hybrid", "8x8", None), ("struct", "8x8", None), ("block", "8x8", "8x8"), ("movement", "8x8", "8x8")],
)
def test_a_block_is_one_of_attention_and_of_feed_forward_where_it_has_blocks(
    method: str, attention: str, feed_forward: str | None, fake: Fake
) -> None:
    assert run("prune", "model", *NEEDED, "--method", method, "--block", "8x8") == 0
    assert (fake.config.attention_block, fake.config.feed_forward_block) == (attention, feed_forward)


def test_blocks_follow_the_method_of_a_recipe(fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('method = "block"\n')
    assert run("prune", "model", *NEEDED, "--config", "r.toml", "--block", "4x4") == 0
    assert (fake.config.attention_block, fake.config.feed_forward_block) == ("4x4", "4x4")


# What it prints


def test_says_what_is_left_at_what_quality_and_what_next(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prune", "model", *NEEDED) == 0
    out, err = capsys.readouterr()
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert isinstance(fake.answer, dict)
    final = fake.answer["final"]
    assert err == "step 1 of 10\n"
    assert lines[0] == "sst2-hybrid (text-classification)"
    accuracy, teacher = final["metrics"]["accuracy"], final["teacher_metrics"]["accuracy"]
    assert (
        f"accuracy: {100 * accuracy['value']:.2f} % ± {100 * accuracy['se']:.2f} on 872 examples;"
        f" the teacher: {100 * teacher['value']:.2f} %"
    ) in lines
    heads, neurons = final["heads"], final["neurons"]
    assert (
        f"left: {100 * final['density']:.1f} % of the linear weights, {heads[0]} of {heads[1]} heads,"
        f" {neurons[0]:,} of {neurons[1]:,} neurons"
    ) in lines
    (row,) = (line for line in lines if line.startswith("encoder encoder.layer.0.attention"))
    layer = final["layers"][0]
    assert row.endswith(f"{sum(layer['heads'])} of {len(layer['heads'])} heads {100 * layer['density']:.1f} %")
    assert "note: 3 training texts were cut to 128 tokens" in lines
    assert "warning: nothing is left of encoder layers.5" in lines
    assert lines[-2:] == ["how it went: out/training.html", "make it fast: compactor export out OUT_DIR"]


def test_json_is_the_record_and_progress_goes_to_stderr(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prune", "model", *NEEDED, "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"path": "out", "training": fake.answer}
    assert err == "step 1 of 10\n"


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_processes_behind_the_first_print_nothing(
    form: tuple[str, ...], fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run("prune", "model", *NEEDED, *form) == 0
    assert capsys.readouterr() == ("", "")
    assert fake.calls == 1


@pytest.mark.parametrize("option", ["--list-methods", "--list-settings"])
def test_lists_need_nothing_else_and_load_nothing_heavy(option: str) -> None:
    script = f"""
        import sys
        from compactor.cli import main
        code = main(["prune", "{option}"])
        heavy = {{"torch", "transformers", "onnx", "onnxruntime", "numpy", "rich", "matplotlib"}}
        sys.exit(code or sorted(heavy & set(sys.modules)) or 0)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()[1:]
    names = METHODS if option == "--list-methods" else [key for key, _, _ in describe_settings()]
    texts = [method.summary for method in METHODS.values()] if option == "--list-methods" else None
    assert [line.split()[0] for line in lines] == list(names)
    assert texts is None or all(line.endswith(text) for line, text in zip(lines, texts, strict=True))


# How it ends


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("there is no column of labels"), 2),
        (ModelDirectoryError("the tokenizer cannot be opened"), 3),
        (OutputError("the output folder holds a run"), 5),
        (TrainingError("the loss is nan at step 3"), 7),
        (KeyboardInterrupt(), 130),
    ],
    ids=["usage", "model", "output", "training", "interrupt"],
)
def test_errors_keep_their_exit_codes(
    error: BaseException, code: int, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.answer = error
    assert run("prune", "model", *NEEDED, "-q") == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {str(error) or 'interrupted'}")


# Mistakes that are seen before anything is loaded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param("", "Missing argument 'MODEL'", id="no-model"),
        pytest.param("model --eval d -o out", "Missing option '--data'", id="no-data"),
        pytest.param("model --data d -o out", "training needs examples to be judged on", id="no-eval"),
        pytest.param("model --data d --eval d", "Missing option '-o'", id="no-output"),
        pytest.param("model NEEDED --method hybird", "there is no method 'hybird'", id="method"),
        pytest.param("model NEEDED --block 32", "'32' is no block", id="block"),
        pytest.param("model NEEDED --block 4x4 --method dense", "'dense' prunes nothing", id="block-of-dense"),
        pytest.param("model NEEDED --epochs 2 --steps 10", "both epochs and steps are given", id="epochs-and-steps"),
        pytest.param("model NEEDED --steps 0", "steps is 0", id="no-steps"),
        pytest.param("model NEEDED --steps 1.5", "'1.5' is not a valid integer", id="broken-steps"),
        pytest.param("model NEEDED --target-density 0", "target_density is 0", id="density-0"),
        pytest.param("model NEEDED --target-density 30", "target_density is 30", id="density-in-percent"),
        pytest.param("model NEEDED --lambda -1", "lambda is -1", id="lambda"),
        pytest.param("model NEEDED --lambda nan", "lambda is nan", id="lambda-nan"),
        pytest.param("model NEEDED --batch-size 0", "batch_size is 0", id="batch"),
        pytest.param("model NEEDED --max-length 2", "max_length is 2", id="length"),
        pytest.param("model NEEDED --seed -1", "seed is -1", id="seed"),
        pytest.param("model NEEDED --precision int8", "a model is not trained in int8", id="precision"),
        pytest.param("model NEEDED --batch 4", "--batch says what a speed is promised for", id="batch-of-training"),
        pytest.param("model NEEDED --speedup 0.5", "a speed-up of 0.5 is none", id="slower"),
        pytest.param("model NEEDED --speedup fast", "'fast' is no list of speed-ups", id="no-speed"),
        pytest.param("model NEEDED --speedup 2,2", "two speed-ups are the same", id="twice"),
        pytest.param("model NEEDED --speedup 2 --lambda 3", "--lambda says how a penalty prunes", id="both-ways"),
        pytest.param("model NEEDED --speedup 2 --block 8x8", "--block says how a penalty prunes", id="blocks"),
        pytest.param("model NEEDED --speedup 2 --target-density 0.3", "promise two things", id="density-and-speed"),
        pytest.param("model NEEDED --speedup 2 --method hybrid --trials 9", "tries no sizes", id="trials-of-training"),
        pytest.param("model NEEDED --speedup 2 --task summarization", "--task is of a training", id="task-of-none"),
        pytest.param("model NEEDED --speedup 2 --precision fp16", "a speed in fp16", id="speed-in-fp16"),
        pytest.param("model NEEDED --speedup 2 --seq 0", "below 1", id="no-tokens"),
        pytest.param("model NEEDED --speedup 2 --seq 8 --lengths f", "contradict each other", id="lengths"),
        pytest.param("model NEEDED --speedup 2 --batch-size 8", "--batch-size is of a training", id="untrained"),
        pytest.param("model NEEDED --speedup 2 --teacher model", "nobody learns", id="teacher-of-nobody"),
        pytest.param("model NEEDED --speedup 2 --first-run model", "goes on from no other run", id="first-run-of-two"),
        pytest.param("model NEEDED --resume --overwrite", "--resume and --overwrite contradict", id="resume-overwrite"),
        pytest.param("model NEEDED --config nope.toml", "cannot be read", id="no-recipe"),
        pytest.param("model NEEDED --config metod.toml", "did you mean 'method'?", id="recipe-key"),
        pytest.param("model NEEDED -q -v", "contradict", id="quiet-and-verbose"),
        pytest.param("model NEEDED --frob", "No such option", id="unknown"),
    ],
)
def test_a_mistake_is_answered_before_anything_is_loaded(
    arguments: str, message: str, fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metod.toml").write_text("metod = 'hybrid'\n")
    assert run("prune", *arguments.replace("NEEDED", " ".join(NEEDED)).split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert 2 <= len(err.splitlines()) <= 3
    assert fake.calls == 0


@pytest.mark.parametrize("place", ["MODEL", "--teacher", "--first-run"])
def test_folders_that_are_not_there(place: str, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["nope"] if place == "MODEL" else ["model", place, "nope"]
    assert run("prune", *arguments, *NEEDED, "-q") == 3
    assert capsys.readouterr().err.splitlines()[:2] == ["error: no such folder", "where: nope"]
    assert fake.calls == 0


@pytest.mark.parametrize("package", ["accelerate", "torchmetrics"])
def test_a_package_that_is_missing_is_missed_before_the_training(
    package: str, fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == package else find(name, *more))
    assert run("prune", "model", *NEEDED) == 2
    err = capsys.readouterr().err
    assert f"'{package}' is not installed, which compactor prune needs" in err
    assert "pip install 'compactor[train]'" in err
    assert fake.calls == 0


# Real runs, on a tiny model and forty sentences

QUICK = "steps = 8\nbatch_size = 8\nmax_length = 16\neval_steps = 4\nlogging_steps = 2\n"
HALVED = ("--block", "8x8", "--target-density", "0.4")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, data, and a finished run with what it printed."""
    folder = tmp_path_factory.mktemp("prune")
    write_model(folder / "model")
    write_sentences(folder / "train.tsv", 40, seed=1)
    write_sentences(folder / "dev.tsv", 16, seed=2)
    (folder / "quick.toml").write_text(QUICK)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        assert prune(folder, "done", *HALVED, "--layers", "--json") == 0
    (folder / "stdout").write_text(out.getvalue())
    (folder / "stderr").write_text(err.getvalue())
    return folder


def prune(folder: Path, out: str | Path, *options: object, data: str = "train.tsv", evaluation: str = "dev.tsv") -> int:
    named = ("--data", folder / data, "--eval", folder / evaluation, "-o", folder / out)
    return run("prune", folder / "model", *named, "--config", folder / "quick.toml", *options)


def test_a_run_from_the_command_line_to_a_stock_model(place: Path) -> None:
    printed = json.loads((place / "stdout").read_text())
    assert printed["path"] == str(place / "done")
    assert printed["training"] == json.loads((place / "done" / "training.json").read_text())
    assert printed["training"]["settings"]["steps"] == 8
    assert printed["training"]["final"]["density"] == pytest.approx(0.4, abs=0.02)

    said = (place / "stderr").read_text().splitlines()
    assert "loading the model" in said
    assert any(line.startswith("step 8 of 8; loss") and "heads; threshold" in line for line in said)
    assert any(line.startswith("evaluated at step 8: accuracy") for line in said)
    assert any(line.startswith("  encoder layers.1.feed_forward: ") for line in said)

    from transformers import AutoModelForSequenceClassification

    weights = AutoModelForSequenceClassification.from_pretrained(place / "done").state_dict()
    live = sum(int((weights[name] != 0).sum()) for name in weights if "encoder" in name and weights[name].ndim == 2)
    assert live == printed["training"]["final"]["weights"][0]


def test_every_field_of_the_record_is_documented(place: Path) -> None:
    record = json.loads((place / "done" / "training.json").read_text())
    final = record["final"]
    text = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8")
    section = text.partition("\n## `training.json`\n")[2].partition("\n## ")[0]
    known = set(re.findall(r"`([a-z_]+)`", section))
    for part in (record, record["phases"][0], record["log"][0], record["evaluations"][0], final, final["layers"][0]):
        assert set(part) - known == set()
    assert set(final["metrics"]["accuracy"]) - known == set()


def test_a_finished_run_is_kept(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (place / "done" / "model.safetensors").read_bytes()
    assert prune(place, "done", *HALVED, "-q") == 5
    assert "pass --resume to go on, or --overwrite" in capsys.readouterr().err
    assert (place / "done" / "model.safetensors").read_bytes() == before


def test_resuming_needs_the_same_settings(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prune(place, "done", "--block", "8x8", "--target-density", "0.5", "--resume", "-q") == 2
    assert "target_density was 0.4" in capsys.readouterr().err


def test_resuming_a_finished_run_gives_it_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (place / "done" / "pruning.safetensors").read_bytes()
    assert prune(place, "done", *HALVED, "--resume") == 0
    out, err = capsys.readouterr()
    assert "resuming from checkpoint-8" in err and "step 8 of 8" not in err
    assert "of the linear weights" in out
    assert (place / "done" / "pruning.safetensors").read_bytes() == before


@pytest.mark.slow
def test_filled_goes_on_from_a_finished_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prune(place, "filled", "--method", "hybrid-filled", "--first-run", place / "done") == 0
    assert "surviving heads were filled with small random weights" in capsys.readouterr().out
    first, filled = (json.loads((place / name / "training.json").read_text())["final"] for name in ("done", "filled"))
    assert filled["heads"] == first["heads"]
    assert filled["density"] > first["density"]


def test_the_output_folder_of_something_else_is_never_touched(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert prune(place, tmp_path, "--overwrite", "-q") == 5
    assert "holds something that is no run" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_output_inside_of_the_model_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prune(place, "model/out", "-q") == 2
    assert "OUT lies in MODEL" in capsys.readouterr().err
    assert not (place / "model" / "out").exists()


@pytest.mark.slow
def test_nothing_pruned_is_a_warning_and_a_block_that_does_not_divide_a_note(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prune(place, tmp_path / "out", "--lambda", "0", "--block", "5x5", "-q") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "left: 100.0 % of the linear weights, 8 of 8 heads, 96 of 96 neurons" in out
    assert "warning: nothing was pruned: raise λ (--lambda)" in out
    assert "note: blocks do not divide 8 matrices" in out


@pytest.mark.slow
def test_dense_makes_a_teacher(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prune(place, tmp_path / "teacher", "--method", "dense", "-q") == 0
    out = capsys.readouterr().out
    assert "accuracy:" in out and "left:" not in out and "compactor export" not in out
    assert not (tmp_path / "teacher" / "pruning.json").exists()
    assert prune(place, tmp_path / "out", "--teacher", tmp_path / "teacher", "--steps", "2", "-q") == 0
    assert json.loads((tmp_path / "out" / "training.json").read_text())["teacher"] == "teacher"


def test_a_loss_that_is_no_number_has_its_exit_code(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wild.toml").write_text(QUICK + "learning_rate = 1e18\nmax_grad_norm = 1e30\n")
    assert prune(place, tmp_path / "out", "--config", tmp_path / "wild.toml", "-q") == 7
    assert capsys.readouterr().err.startswith("error: the loss is ")


def text(folder: Path, content: str) -> Path:
    path = folder / "data.tsv"
    path.write_text(content)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("sentence\nfilm was good\n", "there is no column of labels", id="no-labels"),
        pytest.param("label\n0\n1\n", "there is no column of text", id="no-texts"),
        pytest.param("sentence\tlabel\n", "there are no examples in it", id="no-rows"),
        pytest.param("", "the file is empty", id="empty"),
        pytest.param("sentence\tlabel\na film\t1\nbad plot\n", "line 3 has 1 fields", id="short-row"),
        pytest.param("sentence\tlabel\na film\t1\nbad plot\t7\n", "7", id="other-label"),
        pytest.param("sentence\tlabel\na film\t1\nfine plot\t1\n", "have the same label", id="one-class"),
    ],
)
def test_data_that_cannot_be_learned_from(
    content: str, message: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prune(place, tmp_path / "out", "-q", data=str(text(tmp_path, content))) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err.splitlines()[0]
    assert f"where: {tmp_path / 'data.tsv'}" in err
    assert not (tmp_path / "out").exists(), "the next try needs no --overwrite"


def test_data_that_is_not_there(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prune(place, tmp_path / "out", "-q", evaluation="nope.tsv") == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"num_labels": 3}, "the teacher's labels are LABEL_0, LABEL_1, LABEL_2", id="labels"),
        pytest.param({"vocab_size": 99}, "the teacher knows 99 tokens", id="vocabulary"),
        pytest.param({"architectures": ["BertForMaskedLM"]}, "the teacher is for no task", id="task"),
    ],
)
def test_a_teacher_that_does_not_fit(
    changes: dict[str, Any], message: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    architectures = changes.pop("architectures", None)
    write_model(tmp_path / "teacher", **changes)
    if architectures is not None:
        config = json.loads((tmp_path / "teacher" / "config.json").read_text())
        (tmp_path / "teacher" / "config.json").write_text(json.dumps(config | {"architectures": architectures}))
    assert prune(place, tmp_path / "out", "--teacher", tmp_path / "teacher", "-q") == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param("--max-length 64", "MODEL takes 32 tokens, and examples may have 64", id="length"),
        pytest.param("--config crowded.toml", "7 steps of warm-up and 1 of cool-down leave none of 8", id="schedule"),
        pytest.param("--method magnitude", "magnitude pruning needs a density to reach", id="magnitude"),
        pytest.param("--method hybrid-nt --teacher model", "'hybrid-nt' has no teacher", id="teacher-of-none"),
        pytest.param("--first-run done", "'hybrid' goes on from no other run", id="first-run-of-none"),
        pytest.param("--task question-answering", "MODEL is not fine-tuned for question-answering", id="other-task"),
        pytest.param("--method block --block head", "feed-forward layers have no heads", id="heads-of-feed-forward"),
    ],
)
def test_settings_that_the_model_cannot_have(
    options: str, message: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "crowded.toml").write_text(QUICK + "warm_up = 7\ncool_down = 1\n")
    typed = [str(place / word) if (place / word).exists() else word for word in options.split()]
    assert prune(place, tmp_path / "out", *typed, "-q") == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(lambda folder: (folder / "config.json").unlink(), "config.json", id="config"),
        pytest.param(lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer", id="tokenizer"),
        pytest.param(lambda folder: (folder / "model.safetensors").write_text("?"), "model", id="weights"),
    ],
)
def test_a_model_that_cannot_be_read(
    spoil: Any, message: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place / "model", tmp_path / "model")
    spoil(tmp_path / "model")
    named = ("--data", place / "train.tsv", "--eval", place / "dev.tsv", "-o", tmp_path / "out")
    assert run("prune", tmp_path / "model", *named, "-q") == 3
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) <= 3
