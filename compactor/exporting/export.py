"""``compactor export``: a masked checkpoint becomes a verified artefact, complete in its place or not there at all.

Of an artefact it makes a Triton repository without compiling anything again.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from compactor import COMPILER
from compactor.errors import UsageError
from compactor.exporting.artefact import ArtefactWriter
from compactor.exporting.card import write_card
from compactor.exporting.layouts import Layout, LayoutName
from compactor.exporting.recipe import Recipe
from compactor.exporting.triton import Repository
from compactor.manifest import is_artefact, write_manifest


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """Where the artefact is, and its manifest (``compactor.json``)."""

    path: Path
    manifest: dict[str, Any]


def export(
    model_dir: str | Path,
    out_dir: str | Path,
    *,
    task: str | None = None,
    target: str | None = None,
    precision: Sequence[str] | None = None,
    layout: LayoutName = "hf",
    overwrite: bool = False,
    allow_pickle: bool = False,
    pack: bool | None = None,
    int8: str | None = None,
    calibrate: str | Path | None = None,
    keep: float | None = None,
    int8_budget: float | None = None,
    model_name: str | None = None,
    threads: int | None = None,
    route: str | None = None,
    embed: bool = False,
    decoder: str | None = None,
    card: bool = True,
    progress: Callable[[str], None] | None = None,
) -> ExportResult:
    """Export a masked checkpoint as compact, verified ONNX.

    Args:
        model_dir: A Hugging Face folder with zeros in its weights, a raw nn_pruning folder, or a head-pruned folder.
            With the layout ``triton`` also an earlier artefact, which is not compiled again.
        out_dir: The artefact's folder; appears complete or not at all.
        task: For example ``text-classification``; None infers it from ``architectures``.
        target: ``cpu`` (None), ``cuda`` or ``portable``.
        precision: Of ``fp32``, ``int8``, ``fp16``; None takes the target's default. fp32 is always written.
        layout: ``hf`` puts graphs into ``onnx/``, ``flat`` beside ``config.json``; ``triton`` makes a model repository
            that holds the most compact of the precisions.
        overwrite: Replace an earlier artefact at ``out_dir``.
        allow_pickle: Also read ``pytorch_model.bin``, with ``weights_only``.
        pack: Token packing; None takes the target's default.
        int8: ``token`` gives each token a scale of its own in int8, so that no answer depends on its batch (``cpu``
            only); ``tensor`` (None) one to all.
        calibrate: A file of texts by which int8 is chosen, layer by layer.
        keep: Percent of fp32's answers that int8 has to give as well, from 50 to below 100; with ``calibrate`` 99.5 by
            default, without it judged by random inputs, which tell less.
        int8_budget: Fail when int8 differs from the masked model by more than this share of the largest output.
        model_name: In a Triton repository; None takes the name of the checkpoint's folder.
        threads: Of one operator, in a Triton repository; None takes this machine's usable cores.
        route: Of a Router of sentence-transformers, which of its chains of modules.
        embed: Put pooling and the other modules of a sentence-transformers folder into the graph, whose second output
            is then ``sentence_embedding``.
        decoder: Of an encoder-decoder: ``split`` (None) is a graph for the first step and one for every next one, of
            weights in one file; ``merged`` is one graph, ``decoder_model_merged.onnx``, and no file beside it.
        card: Write a ``README.md`` as model pages read it; a Triton repository has none.
        progress: Called with a line at each step.

    Raises:
        UsageError: The arguments contradict each other.
        ModelDirectoryError: The checkpoint is damaged, unsafe or not supported.
        VerificationError: The compact graph's numbers differ; nothing was published.
        OutputError: ``out_dir`` exists, or the disk refused.
    """
    say = progress or (lambda _: None)
    source = Path(model_dir)
    recipe = Recipe(
        task=task,
        target=target,
        pack=pack,
        int8=int8,
        calibrate=None if calibrate is None else Path(calibrate),
        keep=keep,
        int8_budget=int8_budget,
        route=route,
        embed=embed,
        decoder=decoder,
        precision=precision,
        allow_pickle=allow_pickle,
    )
    form = _layout(source, layout, model_name, threads, precision)
    if not is_artefact(source):
        recipe.check()
    with ArtefactWriter(out_dir, overwrite=overwrite, source=source) as writer:
        if is_artefact(source):
            manifest = form.copy(source, writer.directory, recipe, say)
        else:
            compile_checkpoint = _compiler()
            with tempfile.TemporaryDirectory(prefix="compactor-") as scratch:
                manifest = compile_checkpoint(source, recipe, form, writer.directory, Path(scratch), say)
        manifest = form.arrange(writer.directory, manifest)
        if card and form.name != "triton":
            write_card(writer.directory, manifest, recipe, source, name=Path(out_dir).resolve().name)
        write_manifest(writer.directory, manifest)
        return ExportResult(writer.publish(), manifest)


def _compiler() -> Callable[..., dict[str, Any]]:
    """What takes torch: an artefact is arranged without. Raises UsageError where the extra is not installed."""
    try:
        from compactor.exporting.compiling import compile_checkpoint
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in COMPILER:
            raise
        raise UsageError(
            f"'{error.name}' is not installed, which an export needs", todo="pip install 'compactor[export]'"
        ) from error
    return compile_checkpoint


def _layout(
    source: Path, name: LayoutName, model_name: str | None, threads: int | None, precision: Sequence[str] | None
) -> Layout:
    """Raises UsageError where the layout cannot be what is asked for."""
    if name == "triton":
        if model_name is None and not is_artefact(source):
            model_name = source.resolve().name
        return Repository(model_name=model_name, threads=threads, precision=precision)
    if model_name is not None or threads is not None:
        raise UsageError("a model name and threads are told to Triton only", todo="pass --layout triton, or leave them")
    return Layout(name)
