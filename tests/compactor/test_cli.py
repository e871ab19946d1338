"""The command line: every ending has its exit code, results and progress keep apart, and help loads nothing heavy."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from compactor.artefact import ArtefactWriter
from compactor.cli import COMMANDS, cli, main
from compactor.errors import ExitCode, ModelDirectoryError, OutputError, UsageError, VerificationError
from compactor.manifest import dump_manifest
from tests.compactor.manifests import example_manifest

Export = Callable[..., types.SimpleNamespace]


def _exported(model_dir: Path, out_dir: Path, **options: Any) -> types.SimpleNamespace:
    """Stands in for ``compactor.exporting.export``: the example manifest, after some noise on stdout."""
    print("a library talks")
    options["progress"]("tracing")
    with ArtefactWriter(out_dir, overwrite=options["overwrite"], layout=options["layout"]) as writer:
        writer.write_manifest(example_manifest())
        return types.SimpleNamespace(path=writer.publish(), manifest=example_manifest())


def _replace(monkeypatch: pytest.MonkeyPatch, name: str, **contents: object) -> None:
    module = types.ModuleType(name)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def fake_export(monkeypatch: pytest.MonkeyPatch) -> Callable[[Export], None]:
    """Replaces the export by any function."""

    def replace(function: Export) -> None:
        _replace(monkeypatch, "compactor.exporting", export=function)

    replace(_exported)
    return replace


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    folder = tmp_path / "artefact"
    (folder / "onnx").mkdir(parents=True)
    manifest = example_manifest()
    for stage in manifest["stages"][1:]:
        stage["bytes"] = 3
        (folder / stage["file"]).write_bytes(b"abc")
    manifest["source"]["files"] = [
        {
            "name": "config.json",
            "bytes": 2,
            "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        }
    ]
    (folder / "compactor.json").write_text(dump_manifest(manifest))
    return folder


def _run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


# Help


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    script = f"""
        import sys
        from compactor.cli import main
        code = main({arguments!r})
        heavy = {{"torch", "transformers", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "numpy", "rich"}}
        sys.exit(code or sorted(heavy & set(sys.modules)) or 0)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--help") == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in COMMANDS)


def test_no_command_shows_help_and_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Commands:" in err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_documented(name: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## compactor {name}\n")[2].partition("\n## ")[0]
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    options = [parameter.opts[0] for parameter in command.params if isinstance(parameter, click.Option)]
    assert [option for option in options if option not in section] == []


# Exit codes


def _raises(error: BaseException) -> Export:
    def export(*arguments: object, **options: object) -> types.SimpleNamespace:
        raise error

    return export


ENDINGS = [
    (UsageError("int8 is slow on cuda", todo="use fp16"), ExitCode.USAGE),
    (ModelDirectoryError("no weights"), ExitCode.MODEL),
    (VerificationError("numbers differ"), ExitCode.VERIFICATION),
    (OutputError("exists"), ExitCode.IO),
    (OSError(errno.ENOSPC, "No space left on device"), ExitCode.IO),
    (OSError(errno.EIO, "Input/output error"), ExitCode.IO),
    (PermissionError(errno.EACCES, "Permission denied", "/x"), ExitCode.IO),
    (KeyboardInterrupt(), ExitCode.INTERRUPTED),
    (ZeroDivisionError("division\nby\nzero\nin\nlines"), ExitCode.INTERNAL),
    (FileNotFoundError(errno.ENOENT, "No such file"), ExitCode.INTERNAL),
    (EOFError("truncated"), ExitCode.INTERNAL),
]


@pytest.mark.parametrize(("error", "code"), ENDINGS, ids=lambda value: type(value).__name__)
def test_every_ending_has_its_exit_code_and_at_most_three_lines(
    error: BaseException,
    code: ExitCode,
    model: Path,
    tmp_path: Path,
    fake_export: Callable[[Export], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_export(_raises(error))
    assert _run("export", model, tmp_path / "out", "-q") == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert len(err.splitlines()) <= 3
    assert ("this is a bug in compactor" in err) == (code == ExitCode.INTERNAL)


def test_a_missing_provider_is_a_usage_error(
    model: Path, tmp_path: Path, fake_export: Callable[[Export], None], capsys: pytest.CaptureFixture[str]
) -> None:
    from compactor.runtime.errors import ProviderUnavailableError

    fake_export(_raises(ProviderUnavailableError("no CUDA", where="here", todo="install the gpu extra")))
    assert _run("export", model, tmp_path / "out", "-q") == 2
    assert capsys.readouterr().err == "error: no CUDA\nwhere: here\nto do: install the gpu extra\n"


@pytest.mark.parametrize("error", [ZeroDivisionError("bug"), ModelDirectoryError("no weights")])
def test_debug_shows_the_traceback(
    error: Exception,
    model: Path,
    tmp_path: Path,
    fake_export: Callable[[Export], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_export(_raises(error))
    _run("export", model, tmp_path / "out", "-q")
    assert "Traceback" not in capsys.readouterr().err
    _run("export", model, tmp_path / "out", "-q", "--debug")
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["exprt"], "No such command 'exprt'", id="unknown-command"),
        pytest.param(["export"], "Missing argument 'MODEL_DIR'", id="no-argument"),
        pytest.param(["export", "MODEL", "OUT", "--target", "tpu"], "'tpu' is not one of", id="target"),
        pytest.param(["export", "MODEL", "OUT", "--precision", "fp32,int4"], "no precision 'int4'", id="precision"),
        pytest.param(["export", "MODEL", "OUT", "--target", "cuda", "--precision", "int8"], "cuda", id="int8-on-cuda"),
        pytest.param(["export", "MODEL", "OUT", "--int8-budget", "1"], "not in the range", id="budget"),
        pytest.param(["export", "MODEL", "OUT", "-q", "-v"], "contradict", id="quiet-and-verbose"),
        pytest.param(["export", "MODEL", "MODEL/out"], "lies inside the model directory", id="inside"),
        pytest.param(["export", "MODEL", "MODEL", "--overwrite"], "is the model directory", id="same"),
        pytest.param(["export", "MODEL", "OUT", "--frob"], "No such option", id="unknown-option"),
    ],
)
def test_usage_errors(
    arguments: list[str], message: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"MODEL": str(model), "MODEL/out": str(model / "out"), "OUT": str(tmp_path / "out")}
    assert _run(*(places.get(argument, argument) for argument in arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert 2 <= len(err.splitlines()) <= 3


@pytest.mark.parametrize("command", ["export", "inspect", "verify"])
def test_a_missing_model_directory(
    command: str, tmp_path: Path, artefact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments: dict[str, list[object]] = {
        "export": ["nope", tmp_path / "out"],
        "inspect": ["nope"],
        "verify": [artefact, "nope"],
    }
    assert _run(command, *arguments[command]) == 3
    assert "no such folder" in capsys.readouterr().err


def test_existing_output_is_refused_before_the_export_runs(
    model: Path, artefact: Path, fake_export: Callable[[Export], None]
) -> None:
    fake_export(_raises(AssertionError("the export ran")))
    assert _run("export", model, artefact) == 5
    fake_export(_exported)
    assert _run("export", model, artefact, "--overwrite") == 0


def test_messages_cannot_drive_the_terminal(
    model: Path, tmp_path: Path, fake_export: Callable[[Export], None], capsys: pytest.CaptureFixture[str]
) -> None:
    fake_export(_raises(ModelDirectoryError("unknown type 'x\x1b[2J'")))
    _run("export", model, tmp_path / "out", "-q")
    assert "\x1b" not in capsys.readouterr().err


# Processes: signals and pipes

SLOW_EXPORT = """
    import sys, time, types
    from compactor.artefact import ArtefactWriter

    def export(model_dir, out_dir, **options):
        with ArtefactWriter(out_dir, overwrite=False, layout="hf") as writer:
            writer.model_path("model.onnx").write_text("half")
            print("started", file=sys.stderr, flush=True)
            time.sleep(60)

    sys.modules["compactor.exporting"] = types.SimpleNamespace(export=export)
    from compactor.cli import main
    sys.exit(main(["export", sys.argv[1], sys.argv[2], "-q"]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_export_leaves_nothing(number: signal.Signals, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "place"
    command = [sys.executable, "-c", textwrap.dedent(SLOW_EXPORT), str(model), str(folder / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "started\n"
        process.send_signal(number)
        assert process.stderr.read().strip() == "error: interrupted"
    assert process.returncode == 130
    assert list(folder.iterdir()) == []


def test_a_reader_that_leaves_is_no_error(artefact: Path) -> None:
    command = [sys.executable, "-m", "compactor", "explain", str(artefact)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


# Results


def test_export_passes_its_options_on(model: Path, tmp_path: Path, fake_export: Callable[[Export], None]) -> None:
    seen: dict[str, Any] = {}

    def export(model_dir: Path, out_dir: Path, **options: Any) -> types.SimpleNamespace:
        seen.update(options, model_dir=model_dir, out_dir=out_dir)
        return _exported(model_dir, out_dir, **options)

    fake_export(export)
    out = tmp_path / "out"
    options = "--task fill-mask --target cuda --precision fp16,fp32 --layout flat --no-pack --int8-budget 0.5"
    assert _run("export", model, out, *options.split(), "--allow-pickle") == 0
    seen.pop("progress")
    assert seen == {
        "model_dir": model,
        "out_dir": out,
        "task": "fill-mask",
        "target": "cuda",
        "precision": ("fp16", "fp32"),
        "layout": "flat",
        "overwrite": False,
        "allow_pickle": True,
        "pack": False,
        "int8_budget": 0.5,
    }


def test_libraries_are_told_to_stay_off_the_network(
    model: Path, tmp_path: Path, fake_export: Callable[[Export], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    seen: dict[str, str] = {}

    def export(model_dir: Path, out_dir: Path, **options: Any) -> types.SimpleNamespace:
        seen.update(os.environ)
        return _exported(model_dir, out_dir, **options)

    fake_export(export)
    _run("export", model, tmp_path / "out", "-q")
    assert (seen["HF_HUB_OFFLINE"], seen["TRANSFORMERS_OFFLINE"], seen["HF_HUB_DISABLE_TELEMETRY"]) == ("1", "1", "1")


def test_export_json_is_one_document_and_progress_goes_to_stderr(
    model: Path, tmp_path: Path, fake_export: Callable[[Export], None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("export", model, tmp_path / "out", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"path": str(tmp_path / "out"), "manifest": example_manifest()}
    assert err.splitlines() == ["loading libraries", "tracing"]


def test_quiet_says_nothing_and_verbose_lets_libraries_speak(
    model: Path, tmp_path: Path, fake_export: Callable[[Export], None], capsys: pytest.CaptureFixture[str]
) -> None:
    _run("export", model, tmp_path / "quiet", "-q")
    assert capsys.readouterr().err == ""
    _run("export", model, tmp_path / "verbose", "-v")
    out, err = capsys.readouterr()
    assert "a library talks" in err
    assert "a library talks" not in out


def test_export_says_what_went_how_large_it_is_and_what_next(
    model: Path, tmp_path: Path, fake_export: Callable[[Export], None], capsys: pytest.CaptureFixture[str]
) -> None:
    _run("export", model, tmp_path / "out")
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert (
        "removed 21 of 24 heads, 2885 of 6144 neurons, channels inside the heads of 1 layer, 1 whole sublayer" in lines
    )
    assert "layers.0 12 -> 3 64 -> 40 64 3072 -> 187" in lines
    assert "layers.1 12 -> 0 64 -> 0 64 -> 0 3072" in lines
    assert "masked - 4.00 MB 1.00x 1.00 M 1.00x 1.00 M" in lines
    assert "int8 onnx/model_quantized.onnx 300 kB 13.33x 250 k 4.00x 250 k" in lines
    assert "Verification against the masked model: passed" in lines
    assert "int8 1 0.02 0.1 75.0%" in lines
    assert any("ORTModelForSequenceClassification" in line and "model_quantized.onnx" in line for line in lines)


def test_export_of_a_dense_model_says_so(
    model: Path, tmp_path: Path, fake_export: Callable[[Export], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def export(model_dir: Path, out_dir: Path, **options: Any) -> types.SimpleNamespace:
        result = _exported(model_dir, out_dir, **options)
        result.manifest["layers"] = result.manifest["layers"][-1:]
        return result

    fake_export(export)
    _run("export", model, tmp_path / "out")
    assert "nothing to remove: every head and neuron" in capsys.readouterr().out


def test_explain_tells_rules_refusals_and_operators(artefact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("explain", artefact) == 0
    out, err = capsys.readouterr()
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert err == ""
    at = lines.index("layers.0.attention: 12 -> 3 heads, QK 64 -> 40, V 64, 1 averaging")
    assert lines[at + 1] == "9 x dead-head (remove-dead-heads)"
    at = lines.index("layers.1.feed_forward: 3072 neurons")
    assert lines[at - 2 : at + 2] == [
        "layers.1.attention: 12 -> 0 heads",
        "1 x all-heads-dead (remove-empty-sublayers)",
        "layers.1.feed_forward: 3072 neurons",
        "no rule applied",
    ]
    assert "unused-node 4 clean-up" in lines
    assert "remove-dead-neurons no neuron is dead layers.1.feed_forward" in lines
    assert "com.microsoft::DynamicQuantizeMatMul - - 5 5" in lines


def test_explain_json_gathers_what_concerns_a_layer(artefact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("explain", artefact, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["layers"][0]["rules"] == [{"pass": "remove-dead-heads", "rule": "dead-head", "count": 9}]
    assert document["layers"][3]["refused"] == [{"pass": "remove-dead-neurons", "reason": "no neuron is dead"}]
    assert [rule["rule"] for rule in document["whole_model"]["rules"]] == ["unused-node"]


def test_explain_needs_an_artefact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("explain", tmp_path) == 3
    assert "not a folder that compactor exported" in capsys.readouterr().err


def test_verify_runs_the_numeric_check(
    artefact: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verification = example_manifest()["verification"]
    _replace(monkeypatch, "compactor.verifying", verify=lambda *arguments, **options: verification)
    assert _run("verify", artefact, model) == 0
    assert "passed" in capsys.readouterr().out
    assert _run("verify", artefact, model, "--json") == 0
    assert json.loads(capsys.readouterr().out) == verification


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda artefact, model: (model / "config.json").write_text("[]"), "'config.json' is not the", id="source"
        ),
        pytest.param(lambda artefact, model: (model / "config.json").unlink(), "'config.json' is missing", id="gone"),
        pytest.param(
            lambda artefact, model: (artefact / "onnx" / "model.onnx").write_bytes(b"x"), "has 1 bytes", id="artefact"
        ),
    ],
)
def test_verify_names_the_file_that_changed(
    change: Callable[[Path, Path], object],
    message: str,
    artefact: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(artefact, model)
    assert _run("verify", artefact, model, "-q") == 4
    assert message in capsys.readouterr().err


def test_verify_fails_with_its_own_code(artefact: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(*arguments: object, **options: object) -> dict[str, Any]:
        raise VerificationError("numbers differ")

    _replace(monkeypatch, "compactor.verifying", verify=verify)
    assert _run("verify", artefact, model) == 4


def test_a_difference_that_is_not_finite_is_said_so(artefact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((artefact / "compactor.json").read_text())
    manifest["verification"]["cases"][1]["max_abs_diff"] = None
    (artefact / "compactor.json").write_text(dump_manifest(manifest))
    assert _run("explain", artefact) == 0
    assert "not finite" in capsys.readouterr().out


def test_passes_lists_names_and_first_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class FoldPass:
        """Fold things.

        More about it.
        """

        name = "fold"

    _replace(monkeypatch, "compactor.passes.registry", PASSES=(FoldPass,))
    assert _run("passes", "--json") == 0
    assert json.loads(capsys.readouterr().out) == [{"name": "fold", "summary": "Fold things."}]
    assert _run("passes") == 0
    assert "fold  Fold things." in capsys.readouterr().out
