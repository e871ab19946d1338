"""``compactor export``: a masked checkpoint becomes a folder of verified ONNX models, or a repository for Triton."""

from __future__ import annotations

from pathlib import Path

import click

from compactor import commands
from compactor.console import Console
from compactor.exporting.artefact import ArtefactWriter
from compactor.exporting.layouts import LayoutName
from compactor.exporting.recipe import Recipe
from compactor.exporting.summary import export_sections
from compactor.exporting.targets import TARGETS
from compactor.manifest import is_artefact
from compactor.tasks import TASKS


def _split_commas(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """The names in ``value``, once each."""
    return None if value is None else tuple(dict.fromkeys(value.split(",")))


@click.command(short_help="Compile a checkpoint into verified ONNX models.")
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.argument("out_dir", type=click.Path(path_type=Path))
@click.option(
    "--task",
    type=click.Choice(tuple(TASKS)),
    metavar="TASK",
    help=f"What the model is for, by default as its config.json says: {', '.join(TASKS)}.",
)
@click.option(
    "--target",
    type=click.Choice(tuple(TARGETS)),
    show_default="cpu",
    help="Where the model shall run; 'portable' uses standard ONNX operators only.",
)
@click.option(
    "--precision",
    callback=_split_commas,
    metavar="LIST",
    help="fp32,int8 or fp32,fp16; by default, all that the target is good at. fp32 is always written.",
)
@click.option(
    "--layout",
    type=click.Choice(["hf", "flat", "triton"]),
    default="hf",
    show_default=True,
    help="Models in OUT_DIR/onnx, or beside config.json, or a model repository for Triton.",
)
@click.option("--pack/--no-pack", default=None, help="Compute real tokens only, not the padding (default for cpu).")
@click.option(
    "--int8",
    type=click.Choice(["tensor", "token"]),
    help="What a scale of int8 activations is for; 'token' makes no answer depend on its batch (default: tensor).",
)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Texts by which int8 is chosen, layer by layer, so that answers are kept.",
)
@click.option(
    "--keep",
    type=float,
    metavar="PERCENT",
    help="How many of fp32's answers int8 has to give as well (default with --calibrate: 99.5).",
)
@click.option(
    "--int8-budget",
    type=click.FloatRange(min=0, max=1, max_open=True),
    metavar="SHARE",
    help="Fail if int8 moves an output by more than this share of the largest one.",
)
@click.option(
    "--model-name", metavar="NAME", help="What Triton calls the model; by default as the checkpoint's folder is called."
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads that Triton gives an operator; by default one for each usable core of this machine.",
)
@click.option(
    "--route", metavar="NAME", help="Of a sentence-transformers Router, the route to export, such as query or document."
)
@click.option("--embed", is_flag=True, help="Put a sentence-transformers folder's pooling and norms into the graph.")
@click.option(
    "--decoder",
    type=click.Choice(["split", "merged"]),
    help="Of an encoder-decoder: a graph for the first step and one for the others, or one for all, as transformers.js"
    " reads it (default: split).",
)
@click.option(
    "--card",
    type=click.Choice(["full", "none"]),
    default="full",
    show_default=True,
    help="README.md as model pages read it: licence carried over, what was removed, how to open it.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier export in OUT_DIR.")
@commands.allow_pickle_option
@commands.json_option
@commands.verbosity_options
@commands.debug_option
def command(
    model_dir: Path,
    out_dir: Path,
    task: str | None,
    target: str | None,
    precision: tuple[str, ...] | None,
    layout: LayoutName,
    pack: bool | None,
    int8: str | None,
    calibrate: Path | None,
    keep: float | None,
    int8_budget: float | None,
    model_name: str | None,
    threads: int | None,
    route: str | None,
    embed: bool,
    decoder: str | None,
    card: str,
    overwrite: bool,
    allow_pickle: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Compile the checkpoint in MODEL_DIR and write the artefact OUT_DIR.

    Removes what provably cannot change the output, emits the operators that are fast on the target, and checks the
    result against the checkpoint. When a check fails, nothing is written.

    With --layout triton, MODEL_DIR may also be an artefact, which is not compiled again.
    """
    commands.refuse_both(quiet, verbose)
    commands.require_model_dir(model_dir)
    # The export checks these itself; here they are answered before anything slow is loaded.
    if not is_artefact(model_dir):
        commands.require_compiler("compactor export")
        Recipe(target=target, precision=precision, int8=int8, calibrate=calibrate, keep=keep).check()
    ArtefactWriter(out_dir, overwrite=overwrite, source=model_dir)

    console = Console(quiet=quiet, verbose=verbose)
    with console.working() as progress:
        progress("loading libraries")
        from compactor.exporting.export import export

        result = export(
            model_dir,
            out_dir,
            task=task,
            target=target,
            precision=precision,
            layout=layout,
            overwrite=overwrite,
            allow_pickle=allow_pickle,
            pack=pack,
            int8=int8,
            calibrate=calibrate,
            keep=keep,
            int8_budget=int8_budget,
            model_name=model_name,
            threads=threads,
            route=route,
            embed=embed,
            decoder=decoder,
            card=card == "full",
            progress=progress,
        )
    if as_json:
        console.document({"path": str(result.path), "manifest": result.manifest})
    else:
        console.show(*export_sections(result.manifest, result.path, shown_as=out_dir))
