"""``compactor prune``: train a model with block pruning, and write it as a stock model with zeros in place."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compactor import commands
from compactor.commands.family import make_family, read_settings, refuse_penalties, refuse_training
from compactor.console import Console
from compactor.errors import UsageError
from compactor.trainer.methods import METHODS, unit_text

if TYPE_CHECKING:
    from compactor.trainer.config import PruneConfig
    from compactor.trainer.pruning import PruneResult

_NEEDED = ("accelerate", "torchmetrics")
_OF_A_FAMILY = ("batch", "seq", "lengths", "costs", "trials")


def _list_methods(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Print the methods and end."""
    if not value or ctx.resilient_parsing:
        return
    console = Console()
    rows = []
    for method in METHODS.values():
        blocks = [unit_text(unit) for unit in (method.attention, method.feed_forward)]
        rows.append([method.name, *blocks, "yes" if method.teacher else "no", method.summary])
    console.table(["method", "attention", "feed-forward", "teacher", "what it does"], rows)
    ctx.exit()


def _list_settings(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Print what a recipe can set and end."""
    if not value or ctx.resilient_parsing:
        return
    from compactor.trainer.config import describe_settings

    rows = [[key, "" if default is None else str(default), text] for key, default, text in describe_settings()]
    Console().table(["key", "default", "what it is"], rows)
    ctx.exit()


@click.command(short_help="Train a model with block pruning.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--method", metavar="NAME", help="What is pruned (default: hybrid); see --list-methods.")
@click.option(
    "--speedup",
    metavar="TIMES",
    help="Make models that are so many times as fast here, such as 1.5,2,3: in minutes, without labels or training.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Labelled examples to learn from; with --speedup, texts.",
)
@click.option("--eval", "evaluation", type=click.Path(path_type=Path), help="Labelled examples to score on.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option(
    "--teacher", type=click.Path(path_type=Path), help="Fine-tuned model to learn from (default: MODEL itself)."
)
@click.option("--config", "recipe", type=click.Path(path_type=Path), help="Recipe in TOML; options override it.")
@click.option("--task", metavar="TASK", help="text-, image-classification, question-answering or summarization.")
@click.option("--lambda", "strength", type=float, metavar="λ", help="Weight of the regularisation: more prunes more.")
@click.option("--target-density", type=float, metavar="SHARE", help="Part of the linear weights to reach; steers λ.")
@click.option("--block", metavar="SIZE", help="Blocks of attention (and of feed-forward in 'block'): 32x32, head, dim.")
@click.option("--epochs", type=float, help="Passes over the data (default: 3).")
@click.option("--steps", type=int, help="Optimizer steps, instead of epochs.")
@click.option("--batch-size", type=int, help="Examples of a batch (default: 32).")
@click.option("--max-length", type=int, help="Tokens of an example, at most.")
@click.option("--learning-rate", type=float, help="Of the weights (default: 3e-5).")
@click.option(
    "--precision",
    type=click.Choice(["int8", "fp32", "bf16", "fp16"]),
    help="Of training: fp32 (default), bf16 or fp16. With --speedup, of the graph: int8 (default) or fp32.",
)
@click.option("--batch", type=int, help="With --speedup: examples of a call (default: 1).")
@click.option("--seq", type=int, help="With --speedup: tokens of each (default: 128).")
@click.option(
    "--lengths", type=click.Path(path_type=Path), help="With --speedup: a file of lengths or texts, instead of --seq."
)
@click.option("--costs", type=click.Path(path_type=Path), help="With --speedup: costs.json of this or another machine.")
@click.option("--trials", type=int, help="With --speedup: choices of sizes to try for each (default: 16).")
@click.option("--freeze-embeddings", is_flag=True, default=None, help="Leave the embeddings as they are.")
@click.option("--seed", type=int, help="Of everything random (default: 17).")
@click.option(
    "--first-run", type=click.Path(path_type=Path), help="For filled and rewind: go on from this finished run."
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in the output folder.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier run in the output folder.")
@click.option("--layers", "details", is_flag=True, help="Tell what is left of each layer at each evaluation.")
@click.option(
    "--list-methods",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_methods,
    help="Explain the methods.",
)
@click.option(
    "--list-settings",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_settings,
    help="Keys of a recipe.",
)
@commands.json_option
@commands.verbosity_options
@commands.debug_option
def command(
    model: Path,
    data: Path,
    evaluation: Path | None,
    output: Path,
    speedup: str | None,
    teacher: Path | None,
    recipe: Path | None,
    first_run: Path | None,
    block: str | None,
    resume: bool,
    overwrite: bool,
    details: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **settings: Any,
) -> None:
    r"""Train the model in MODEL with block pruning, and write it with its zeros in place.

    MODEL is a pre-trained or fine-tuned Hugging Face model directory: BERT, ModernBERT, GTE, DeBERTa-v2, ESM-2, ViT,
    BART and the like. What is written opens in stock transformers, and `compactor export` turns its zeros into time.

    With --speedup it makes a family of models that keep a promised speed, each a folder in OUTPUT: heads and neurons
    go by second order, by times that are measured here, and what is left is solved anew. Nothing is trained unless
    --steps or --epochs asks for it; with --method each model is a run of that method, which stops at the time.

    \b
    Under torchrun it trains on several processes or machines:
      torchrun --standalone --nproc_per_node 2 -m compactor prune ...
    """
    commands.refuse_both(quiet, verbose)
    for folder in filter(None, (model, teacher, first_run)):
        commands.require_model_dir(folder)
    commands.require_packages("torch", "transformers", *_NEEDED, needed_by="compactor prune", extra="train")
    if resume and overwrite:
        raise UsageError("--resume and --overwrite contradict each other", todo="leave one out")
    family = {name: settings.pop(name) for name in _OF_A_FAMILY}
    if speedup is not None:
        if first_run is not None:
            raise UsageError("--speedup goes on from no other run", todo="leave out --first-run")
        refuse_penalties(block, family["trials"], settings)
        trained = recipe is not None or any(settings[name] is not None for name in ("steps", "epochs", "method"))
        own = {**settings, "precision": None, "method": settings["method"] or "tuned"}
        if not trained:
            refuse_training(teacher, settings)
        make_family(
            Console(quiet=quiet, verbose=verbose),
            model,
            data,
            output,
            asked=read_settings(speedup, settings["precision"], settings["seed"], **family),
            training=_read_config(recipe, block, own) if trained else None,
            evaluation=evaluation,
            teacher=teacher,
            resume=resume,
            overwrite=overwrite,
            as_json=as_json,
        )
        return
    for name, value in family.items():
        if value is not None:
            raise UsageError(f"--{name} says what a speed is promised for", todo="pass --speedup, or leave it out")
    if evaluation is None:
        raise UsageError("training needs examples to be judged on", todo="pass --eval, or --speedup to train nothing")
    if settings["precision"] == "int8":
        raise UsageError("a model is not trained in int8", todo="pass --precision fp32, bf16 or fp16")
    config = _read_config(recipe, block, settings)
    import os

    console = Console(quiet=quiet or os.environ.get("RANK", "0") != "0", verbose=verbose)
    with console.working() as progress:
        from compactor.trainer.pruning import prune

        result = prune(
            model,
            data,
            evaluation,
            output,
            config=config,
            teacher=teacher,
            first_run=first_run,
            resume=resume,
            overwrite=overwrite,
            details=details,
            command=shlex.join(["compactor", *sys.argv[1:]]),
            progress=progress,
        )
    if os.environ.get("RANK", "0") != "0":
        return
    if as_json:
        console.document({"path": str(result.path), "training": result.record})
    else:
        _print_summary(console, result, shown_as=output)


def _read_config(recipe: Path | None, block: str | None, settings: dict[str, Any]) -> PruneConfig:
    """Recipe and options as one; an option for steps takes the place of a recipe's epochs, and the other way round."""
    import dataclasses

    from compactor.trainer.config import PruneConfig, read_recipe
    from compactor.trainer.methods import Shape, find_method

    config = PruneConfig() if recipe is None else read_recipe(recipe)
    if settings["steps"] is not None and settings["epochs"] is None:
        config = dataclasses.replace(config, epochs=None)
    if settings["epochs"] is not None and settings["steps"] is None:
        config = dataclasses.replace(config, steps=None)
    if block is not None:
        settings["attention_block"] = block
        method = find_method(settings["method"] or config.method)
        if method.feed_forward is not Shape.DIM:
            settings["feed_forward_block"] = block
    return config.changed(**settings)


def _print_summary(console: Console, result: PruneResult, *, shown_as: Path) -> None:
    record, final = result.record, result.record["final"]
    teacher = final["teacher_metrics"] or {}
    console.line(f"{record['title']} ({record['task']})")
    for name, found in final["metrics"].items():
        told = f"{name}: {100 * found['value']:.2f} % ± {100 * found['se']:.2f} on {found['n']:,} examples"
        if name in teacher:
            told += f"; the teacher: {100 * teacher[name]['value']:.2f} %"
        console.line(told)
    if final["layers"]:
        console.line(
            f"left: {100 * final['density']:.1f} % of the linear weights, "
            f"{final['heads'][0]} of {final['heads'][1]} heads, "
            f"{final['neurons'][0]:,} of {final['neurons'][1]:,} neurons"
        )
        console.heading("Layers")
        rows = [
            [
                f"{layer['stack']} {layer['name']}",
                f"{sum(layer['heads'])} of {len(layer['heads'])} heads"
                if layer["heads"] is not None
                else "{} of {} neurons".format(*layer["neurons"]),
                f"{100 * layer['density']:.1f} %",
            ]
            for layer in final["layers"]
        ]
        console.table(["layer", ">left", ">weights"], rows)
    for note in record["notes"]:
        console.line(f"note: {note}")
    for warning in record["warnings"]:
        console.line(f"warning: {warning}")
    console.heading(f"Written to {shown_as}")
    console.line(f"how it went:  {shown_as / 'training.html'}")
    if final["layers"]:
        console.line(f"make it fast:  compactor export {shlex.quote(str(shown_as))} OUT_DIR")
