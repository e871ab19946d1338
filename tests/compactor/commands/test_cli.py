"""The command line: every ending has its exit code, results and progress keep apart, and help loads nothing heavy."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from compactor.cli import COMMANDS, cli
from compactor.errors import ExitCode, ModelDirectoryError, OutputError, UsageError, VerificationError
from tests.compactor.fakes import Export, exported, run

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
    assert run("--help") == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in COMMANDS)


def test_no_command_shows_help_and_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Commands:" in err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_documented(name: str) -> None:
    text = (Path(__file__).parents[3] / "docs" / "cli.md").read_text(encoding="utf-8")
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
    assert run("export", model, tmp_path / "out", "-q") == code
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
    assert run("export", model, tmp_path / "out", "-q") == 2
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
    run("export", model, tmp_path / "out", "-q")
    assert "Traceback" not in capsys.readouterr().err
    run("export", model, tmp_path / "out", "-q", "--debug")
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
        pytest.param(["export", "MODEL", "OUT", "--int8", "row"], "'row' is not one of", id="int8-scales"),
        pytest.param(
            ["export", "MODEL", "OUT", "--int8", "token", "--precision", "fp32"], "no int8", id="int8-of-fp32"
        ),
        pytest.param(
            ["export", "MODEL", "OUT", "--int8", "token", "--target", "portable"],
            "takes one int8 scale a tensor",
            id="int8-by-token-elsewhere",
        ),
        pytest.param(["export", "MODEL", "OUT", "--keep", "100"], "cannot promise to keep 100 %", id="keep-all"),
        pytest.param(["export", "MODEL", "OUT", "--keep", "nan"], "cannot promise", id="keep-nothing"),
        pytest.param(["export", "MODEL", "OUT", "--keep=99", "--precision=fp32"], "no int8", id="keep-of-fp32"),
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
    assert run(*(places.get(argument, argument) for argument in arguments)) == 2
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
    assert run(command, *arguments[command]) == 3
    assert "no such folder" in capsys.readouterr().err


def test_existing_output_is_refused_before_the_export_runs(
    model: Path, artefact: Path, fake_export: Callable[[Export], None]
) -> None:
    fake_export(_raises(AssertionError("the export ran")))
    assert run("export", model, artefact) == 5
    fake_export(exported)
    assert run("export", model, artefact, "--overwrite") == 0


def test_messages_cannot_drive_the_terminal(
    model: Path, tmp_path: Path, fake_export: Callable[[Export], None], capsys: pytest.CaptureFixture[str]
) -> None:
    fake_export(_raises(ModelDirectoryError("unknown type 'x\x1b[2J'")))
    run("export", model, tmp_path / "out", "-q")
    assert "\x1b" not in capsys.readouterr().err


# Processes: signals and pipes

SLOW_EXPORT = """
    import sys, time, types
    from compactor.exporting.artefact import ArtefactWriter

    def export(model_dir, out_dir, **options):
        with ArtefactWriter(out_dir, overwrite=False) as writer:
            (writer.directory / "model.onnx").write_text("half")
            print("started", file=sys.stderr, flush=True)
            time.sleep(60)

    sys.modules["compactor.exporting.export"] = types.SimpleNamespace(export=export)
    from compactor.cli import main
    sys.exit(main(["export", sys.argv[1], sys.argv[2], "-q"]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_export_leaves_nothing(number: signal.Signals, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "place"
    command = [sys.executable, "-c", textwrap.dedent(SLOW_EXPORT), str(model), str(folder / "out")]

    def heed() -> None:
        signal.signal(number, signal.SIG_DFL)  # whoever runs the tests may ignore it, as nohup does

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
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
