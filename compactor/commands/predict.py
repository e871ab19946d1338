"""``compactor predict``: an artefact's answers for every row of a file, however large."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from compactor import commands
from compactor.console import Console

if TYPE_CHECKING:
    from compactor.predicting.predict import Prediction


def _names(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """The column names in all ``values``, once each."""
    return tuple(dict.fromkeys(name for value in values for name in value.split(",") if name))


@click.command(short_help="Answer every row of a file, however large.")
@click.argument("artefact", type=click.Path(path_type=Path), metavar="OUT_DIR")
@click.argument("source", type=click.Path(path_type=Path), metavar="INPUT")
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="File to write: .parquet, .jsonl or .tsv.",
)
@click.option("--text", metavar="COLUMN", help="Column of the text, or question; by default one with a usual name.")
@click.option("--pair", metavar="COLUMN", help="Column of the second text, or of the context.")
@click.option("--keep", multiple=True, callback=_names, metavar="LIST", help="Columns that stay, such as id,date.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "int8", "fp16"]),
    help="By default, what is best on this machine.",
)
@click.option("--provider", type=click.Choice(["cpu", "cuda"]), help="Likewise.")
@click.option("--truncate", is_flag=True, help="Cut texts that are too long, instead of refusing them.")
@click.option("--role", type=click.Choice(["query", "document"]), help="What the texts are for, to a model of vectors.")
@click.option("--prompt-name", metavar="NAME", help="The folder's prompt before each text; by default its own choice.")
@commands.reading_options
@click.option("--threads", type=click.IntRange(1, 1024), metavar="N", help="Of a process; by default, the cores.")
@click.option(
    "--chunk-rows",
    type=click.IntRange(1, 100_000),
    metavar="N",
    help="Rows that are answered, and kept, together; by default 4096, fewer where answers take long.",
)
@click.option("--ray", "on_ray", is_flag=True, help="Spread the work over processes, by Ray Data.")
@click.option("--workers", type=click.IntRange(1, 10_000), metavar="N", help="Processes; by default, one a core.")
@click.option("--ray-address", metavar="ADDRESS", help="A running Ray cluster; by default, one on this machine.")
@click.option("--overwrite", is_flag=True, help="Begin anew, and replace FILE.")
@commands.json_option
@commands.verbosity_options
@commands.debug_option
@click.pass_context
def command(
    ctx: click.Context,
    artefact: Path,
    source: Path,
    out: Path,
    text: str | None,
    pair: str | None,
    keep: tuple[str, ...],
    precision: str | None,
    provider: str | None,
    truncate: bool,
    role: str | None,
    prompt_name: str | None,
    aggregation: str,
    answer_tokens: int,
    no_answer: bool,
    fills: int,
    threads: int | None,
    chunk_rows: int | None,
    on_ray: bool,
    workers: int | None,
    ray_address: str | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Answer every row of INPUT (.tsv, .jsonl or .parquet) by the artefact in OUT_DIR.

    INPUT may be larger than memory. A run that was interrupted or killed goes on where it stopped when the same
    command is given again. A row that cannot be answered says why in its column 'error'.
    """
    commands.refuse_both(quiet, verbose)
    for option, value in (("--workers", workers), ("--ray-address", ray_address)):
        if value is not None and not on_ray:
            raise click.UsageError(f"{option} is for --ray.", ctx=ctx)
    if on_ray:
        commands.require_packages("ray", "pyarrow", needed_by="--ray", extra="ray")
    commands.require_packages("pyarrow", needed_by="compactor predict", extra="predict")
    console = Console(quiet=quiet, verbose=verbose)
    with console.working() as progress:
        progress("loading libraries")
        from compactor.predicting.on_ray import RayOptions
        from compactor.predicting.predict import PredictionInterrupted, predict

        try:
            result = predict(
                artefact,
                source,
                out,
                text=text,
                pair=pair,
                keep=keep,
                precision=precision,
                provider=provider,
                truncate=truncate,
                role=role,
                prompt_name=prompt_name,
                aggregation=aggregation,
                answer_tokens=answer_tokens,
                no_answer=no_answer,
                fills=fills,
                threads=threads,
                chunk_rows=chunk_rows,
                ray=RayOptions(workers, ray_address) if on_ray else None,
                overwrite=overwrite,
                progress=progress,
            )
        except PredictionInterrupted as interrupted:
            again = "the same command, without --overwrite," if overwrite else "the same command"
            click.echo(
                f"kept: {interrupted.done:,} of {interrupted.total:,} rows; {again} goes on from there", err=True
            )
            raise
    if as_json:
        console.document(result.to_json())
    else:
        _print_summary(console, result)


def _print_summary(console: Console, result: Prediction) -> None:
    from compactor.predicting.pace import format_duration, format_rate

    said = f"{result.rows:,} rows answered, from {' and '.join(map(repr, result.columns))}"
    if result.refused:
        said += f", {result.refused:,} of them refused: their column 'error' says why"
    console.line(said)
    console.line(result.reason if result.reason != "as asked" else f"{result.precision}, as asked")
    if result.resumed:
        console.line(f"{result.resumed:,} of them had been answered by an earlier run")
    if result.rate:
        console.line(f"{format_rate(result.rate)} rows/s, {format_duration(result.seconds)}")
    console.line(f"written: {result.path}")
