"""``compactor inspect``: what an export would remove, without exporting."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from compactor import commands
from compactor.console import Console, Section, format_bytes, format_count, format_ratio
from compactor.exporting.summary import Row, describe_layer, removed


@click.command(short_help="Show what an export would remove; takes seconds.")
@click.argument("model_dir", type=click.Path(path_type=Path))
@commands.allow_pickle_option
@commands.json_option
@commands.debug_option
def command(model_dir: Path, allow_pickle: bool, as_json: bool) -> None:
    """Show what an export of the checkpoint in MODEL_DIR would remove.

    A dry run that reads the weights and builds no model: the format, the heads, widths and density of each layer,
    and the parameters, bytes and multiply-adds that would go.
    """
    commands.require_model_dir(model_dir)
    commands.require_compiler("compactor inspect")
    console = Console()
    with console.working() as progress:
        progress("reading the checkpoint")
        from compactor.exporting.inspecting import inspect

        inspection = inspect(model_dir, allow_pickle=allow_pickle).to_json()
    if as_json:
        console.document(inspection)
    else:
        console.show(*_sections(inspection))


def _sections(inspection: dict[str, Any]) -> Iterator[Section]:
    names = ", ".join(inspection["architectures"]) or inspection["model_type"]
    origin = f"{inspection['path']} ({inspection['format']}, {names})"
    yield Section(lines=[origin, *(f"  {note}" for note in inspection["notes"])])
    if inspection["layers"]:
        yield Section(lines=[removed(inspection["layers"]).sentence(verb="an export would remove")])
        columns = ("layer", "has", ">not zero", ">weights left")
        yield Section("Layers", columns=columns, rows=_layer_rows(inspection["layers"]))
    if inspection["skipped"]:
        rows = [(skipped["path"], skipped["reason"]) for skipped in inspection["skipped"]]
        yield Section("Nothing is claimed about", columns=("layer", "why"), rows=rows)
    yield Section("Sizes", columns=("", ">now", ">after", ">smaller"), rows=_size_rows(inspection))


def _layer_rows(layers: list[dict[str, Any]]) -> list[Row]:
    rows: list[Row] = []
    for layer in layers:
        before, after = layer["weights"]
        rows.append((*describe_layer(layer), f"{layer['density']:.1%}", f"{after / before:.1%}" if before else "-"))
    return rows


def _size_rows(inspection: dict[str, Any]) -> list[Row]:
    sizes = (
        ("parameters", "parameters", format_count),
        ("size in fp32", "fp32_bytes", format_bytes),
        ("multiply-adds/token", "macs_per_token", format_count),
    )
    return [
        (title, *map(shown, inspection[key]), format_ratio(*inspection[key]))
        for title, key, shown in sizes
        if inspection[key][0]
    ]
