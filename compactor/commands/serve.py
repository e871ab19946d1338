"""``compactor serve``: an artefact behind HTTP, on Ray Serve."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import click

from compactor import commands
from compactor.console import Console
from compactor.runtime.serving.settings import ServeSettings


def _at_least(lowest: int) -> click.IntRange:
    return click.IntRange(lowest, 2**31 - 1)


@click.command(short_help="Answer texts over HTTP, on Ray Serve.")
@click.argument("out_dir", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is every one.")
@click.option("--port", type=click.IntRange(1, 65_535), default=8000, show_default=True, help="Port to listen on.")
@click.option("--name", metavar="NAME", help="The model's name in URLs; by default, the folder's.")
@click.option(
    "--precision", type=click.Choice(["fp32", "int8", "fp16"]), help="By default, what is best on this machine."
)
@click.option("--provider", type=click.Choice(["cpu", "cuda"]), help="By default, what the artefact is for.")
@click.option("--truncate", is_flag=True, help="Cut texts that are too long instead of refusing them.")
@commands.reading_options
@click.option("--threads", type=click.IntRange(1, 1024), metavar="N", help="Of a replica; by default 1.")
@click.option(
    "--min-replicas",
    type=_at_least(0),
    default=ServeSettings.min_replicas,
    show_default=True,
    metavar="N",
    help="When idle.",
)
@click.option("--max-replicas", type=_at_least(1), metavar="N", help="Under load; by default as the cores allow.")
@click.option(
    "--max-batch",
    type=_at_least(1),
    default=ServeSettings.max_batch,
    show_default=True,
    metavar="N",
    help="Texts run together.",
)
@click.option(
    "--batch-tokens",
    type=_at_least(1),
    default=ServeSettings.batch_tokens,
    show_default=True,
    metavar="N",
    help="Positions of a batch.",
)
@click.option(
    "--batch-wait",
    "batch_wait_ms",
    type=click.FloatRange(0, 60_000),
    default=ServeSettings.batch_wait_ms,
    show_default=True,
    metavar="MS",
    help="How long a text may wait for others while the model is free.",
)
@click.option(
    "--max-ongoing",
    type=_at_least(1),
    default=ServeSettings.max_ongoing,
    show_default=True,
    metavar="N",
    help="Requests in a replica.",
)
@click.option(
    "--max-queued",
    type=_at_least(0),
    default=ServeSettings.max_queued,
    show_default=True,
    metavar="N",
    help="Requests that wait for it beside those; the next gets 503.",
)
@click.option(
    "--max-texts",
    type=_at_least(1),
    default=ServeSettings.max_texts,
    show_default=True,
    metavar="N",
    help="Texts of a request.",
)
@click.option(
    "--max-body",
    "max_body_bytes",
    type=_at_least(1),
    default=ServeSettings.max_body_bytes,
    show_default=True,
    metavar="BYTES",
    help="Size of a request.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, 86_400, min_open=True),
    default=ServeSettings.timeout_s,
    show_default=True,
    metavar="S",
    help="After this a request gets 504.",
)
@click.option("--metrics-port", type=click.IntRange(1, 65_535), metavar="N", help="Where Prometheus finds the metrics.")
@click.option("--config-only", is_flag=True, help="Print the config for 'serve deploy' on a cluster, and end.")
@commands.verbosity_options
@commands.debug_option
def command(
    out_dir: Path,
    host: str,
    port: int,
    name: str | None,
    metrics_port: int | None,
    config_only: bool,
    quiet: bool,
    verbose: bool,
    **chosen: Any,
) -> None:
    """Serve the artefact OUT_DIR until Ctrl-C or SIGTERM: a plain JSON route, and the Open Inference Protocol.

    Requests are tokenized, collected by length and answered together. Ending the command lets the replicas finish
    what they have accepted.
    """
    commands.refuse_both(quiet, verbose)
    commands.require_packages("ray", "fastapi", needed_by="serve", extra="ray")
    from compactor.runtime.model import load
    from compactor.runtime.serving.launching import cluster_config, running

    console = Console(quiet=quiet, verbose=verbose)
    settings = ServeSettings(artefact=str(out_dir.resolve()), name=name, **chosen)
    with console.working() as progress:
        progress("loading the model")  # here first: what is wrong with it is said at once
        model = load(
            out_dir, precision=settings.precision, provider=settings.provider, threads=settings.replica_threads
        )
    if config_only:
        import yaml  # type: ignore[import-untyped]

        click.echo(yaml.safe_dump(cluster_config(settings, host=host, port=port), sort_keys=False), nl=False)
        return
    task, reason = model.task, model.precision.reason
    del model  # its sessions' threads would only be in the way of the replicas'
    with contextlib.ExitStack() as server:
        with console.working() as progress:
            progress("starting Ray Serve")
            url = server.enter_context(running(settings, host=host, port=port, metrics_port=metrics_port))
        _print_start(console, settings, url, task, reason, metrics_port)
        threading.Event().wait()  # for Ctrl-C or SIGTERM; then the replicas finish


def _print_start(
    console: Console, settings: ServeSettings, url: str, task: str, reason: str, metrics_port: int | None
) -> None:
    most = settings.most_replicas
    console.line(f"{settings.model_name} ({task}): {reason}")
    threads = settings.replica_threads
    console.line(f"{settings.min_replicas} to {most} replicas, each with {threads} thread{'s' * (threads > 1)}")
    console.line(f"plain route    POST {url}/predict")
    console.line(f"V2 protocol    POST {url}/v2/models/{settings.model_name}/infer")
    console.line(f"OpenAPI page        {url}/docs")
    if metrics_port is not None:
        console.line(f"Prometheus          http://127.0.0.1:{metrics_port}/metrics")
