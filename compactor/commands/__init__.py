"""The subcommands of ``compactor``, one module each; and what they share.

Each module calls its click command ``command`` and imports what is heavy inside of it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from compactor.errors import ModelDirectoryError, UsageError
from compactor.runtime.reading_options import AGGREGATIONS

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclasses.dataclass
class State:
    """What the command line has to know after a command failed."""

    debug: bool = False


def _set_debug(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    ctx.ensure_object(State).debug = value


def json_option(function: Function) -> Function:
    """``--json``: the result as one JSON document."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")(function)


def debug_option(function: Function) -> Function:
    """``--debug``: the traceback of whatever goes wrong."""
    return click.option(
        "--debug",
        is_flag=True,
        is_eager=True,  # so that a mistake in the other options is covered too
        expose_value=False,
        callback=_set_debug,
        help="Show the traceback of an error.",
    )(function)


def allow_pickle_option(function: Function) -> Function:
    """``--allow-pickle``: also read pickled weights."""
    return click.option(
        "--allow-pickle",
        is_flag=True,
        help="Also read pickled weights (with weights_only). Only for files that you trust.",
    )(function)


def reading_options(function: Function) -> Function:
    """How answers are read: ``--aggregation``, ``--answer-tokens``, ``--no-answer``, ``--fills``."""
    number = click.IntRange(1, 10_000)
    for option in (
        click.option("--fills", type=number, default=5, show_default=True, metavar="N", help="Tokens for each mask."),
        click.option("--no-answer", is_flag=True, help="Let a question have no answer."),
        click.option(
            "--answer-tokens",
            type=number,
            default=15,
            show_default=True,
            metavar="N",
            help="Tokens of the answer to a question, at most.",
        ),
        click.option(
            "--aggregation",
            type=click.Choice(AGGREGATIONS),
            default="simple",
            show_default=True,
            help="How tokens are joined to entities.",
        ),
    ):
        function = option(function)
    return function


def verbosity_options(function: Function) -> Function:
    """``-q`` and ``-v``: how much to say on stderr."""
    function = click.option("-v", "--verbose", is_flag=True, help="Print the log as well.")(function)
    return click.option("-q", "--quiet", is_flag=True, help="Print errors only, besides the result.")(function)


def refuse_both(quiet: bool, verbose: bool) -> None:
    """Raise the usage error of ``-q -v``."""
    if quiet and verbose:
        raise click.UsageError("-q and -v contradict each other.", ctx=click.get_current_context())


def require_model_dir(path: Path) -> None:
    """Raise ModelDirectoryError where there is no folder, before anything slow is imported."""
    if not path.is_dir():
        raise ModelDirectoryError(
            "no such folder" if not path.exists() else "not a folder",
            where=str(path),
            todo="give a local folder that holds config.json and the weights; nothing is downloaded",
        )


def require_compiler(needed_by: str) -> None:
    """Raise UsageError where what opens and compiles model directories is missing, whole or in part."""
    require_packages("torch", "transformers", "onnxscript", needed_by=needed_by, extra="export")


def require_packages(*packages: str, needed_by: str, extra: str = "bench") -> None:
    """Raise UsageError where one of an extra's packages is missing: before an hour's work, not after it."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UsageError(
                f"'{package}' is not installed, which {needed_by} needs", todo=f"pip install 'compactor[{extra}]'"
            )
