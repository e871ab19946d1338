"""The ``compactor`` command: finds the subcommand, and turns every ending into its exit code.

A subcommand is one module in ``compactor/commands``, imported when it is used or when the list of commands is
shown. Those modules import nothing heavy at their top, so ``--help`` is instant.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType

import click

from compactor.commands import State
from compactor.console import printable
from compactor.errors import CompactorError, ExitCode, ModelDirectoryError, UsageError

COMMANDS = ("prune", "export", "inspect", "explain", "verify", "bench", "report", "serve", "predict", "env", "passes")

_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}


class CommandGroup(click.Group):
    """Imports a subcommand's module on use; each module calls its command ``command``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order in which one uses them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command called ``cmd_name``, or None."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"compactor.commands.{cmd_name}").command
        return command


@click.group(
    cls=CommandGroup,
    invoke_without_command=True,
    epilog="\b\nStart with:  compactor inspect MODEL_DIR\nthen:        compactor export MODEL_DIR OUT_DIR",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="compactor", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Compile block-pruned transformers into small, fast, verified ONNX graphs.

    Exit codes: 0 done, 1 a bug in compactor, 2 usage, 3 bad or unsupported model directory, 4 numbers differ,
    5 input or output failed, 6 measured but not to be believed, or slower, 7 training failed, 130 interrupted.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(ExitCode.USAGE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: What follows ``compactor``; by default, this process's own arguments.
    """
    state = State()
    os.environ.update(_OFFLINE)  # before anything imports transformers
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a replaced stream may lack it
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        with _termination_as_interrupt():
            _invoke(sys.argv[1:] if arguments is None else list(arguments), state)
            sys.stdout.flush()
            return ExitCode.OK
    except click.exceptions.Exit as ending:
        return ending.exit_code
    except BrokenPipeError:  # whoever read our result has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except KeyboardInterrupt:
        _print_error("interrupted")
        return ExitCode.INTERRUPTED
    except Exception as error:
        return _report(error, debug=state.debug)


def _invoke(arguments: list[str], state: State) -> None:
    """Run the command. Click's own ``main`` would answer interrupts and closed pipes itself, in its own words."""
    if "_COMPACTOR_COMPLETE" in os.environ:  # the shell asks for completions
        cli.main(arguments, prog_name="compactor")
    with cli.make_context("compactor", arguments, obj=state) as ctx:
        cli.invoke(ctx)


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Make SIGTERM, and a terminal that closes, end the work as Ctrl-C does: with what was half written removed."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # Whoever had it ignored (nohup) keeps that; outside of the main thread nobody may set a handler.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            with contextlib.suppress(ValueError):
                before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(error: Exception, *, debug: bool) -> ExitCode:
    """Say on stderr what went wrong, in at most three lines, and return the exit code."""
    if debug:
        traceback.print_exception(error)
    known = _as_known_error(error)
    if known is not None:
        _print_error(known.what, known.where, known.todo)
        return known.exit_code
    frames = traceback.extract_tb(error.__traceback__)
    _print_error(
        f"this is a bug in compactor: {type(error).__name__}: {error}",
        f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None,
        "report it, with the traceback above" if debug else "run again with --debug, and report the traceback",
    )
    return ExitCode.INTERNAL


def _as_known_error(error: Exception) -> CompactorError | None:
    """``error`` as one that the user can act on; None where it is our bug."""
    if isinstance(error, CompactorError):
        return error
    if isinstance(error, click.ClickException):
        ctx = getattr(error, "ctx", None)
        path = ctx.command_path if ctx is not None else "compactor"
        return UsageError(error.format_message(), where=path, todo=f"see '{path} --help'")

    from compactor.errors import as_output_error
    from compactor.runtime.errors import ArtefactError, RuntimeSetupError

    if isinstance(error, RuntimeSetupError):
        kind = ModelDirectoryError if isinstance(error, ArtefactError) else UsageError
        return kind(error.what, where=error.where, todo=error.todo)
    return as_output_error(error, os.getcwd())


def _print_error(what: str, where: str | None = None, todo: str | None = None) -> None:
    """At most three lines, whatever the texts hold."""
    for label, text in (("error", what), ("where", where), ("to do", todo)):
        if text:
            line = printable(" ".join(text.split()))
            with contextlib.suppress(OSError):
                click.echo(f"{label}: {line if len(line) <= 500 else line[:497] + '...'}", err=True)
