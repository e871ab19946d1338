"""``compactor explain``: what an export did to each layer, and why."""

from __future__ import annotations

import collections
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from compactor.commands import debug_option, json_option
from compactor.commands.summary import describe_layer, operator_tables, print_stages, print_verification, removed
from compactor.console import Console
from compactor.manifest import load_manifest

Manifest = dict[str, Any]

_RENAMING = {"label-layers", "name-nodes"}


@click.command(short_help="Show what an export did to each layer, and why.")
@click.argument("out_dir", type=click.Path(path_type=Path))
@json_option
@debug_option
def command(out_dir: Path, as_json: bool) -> None:
    """Show, layer by layer, what an export did to the model that it wrote to OUT_DIR.

    What was removed by which rule, what was refused and why, which operators were emitted, and which of them ONNX
    Runtime runs after its own optimizations. Reads the manifest only.
    """
    console = Console()
    manifest = load_manifest(out_dir)
    if as_json:
        console.document(explanation(manifest))
        return
    _print_origin(console, manifest)
    _print_layers(console, manifest)
    _print_refusals(console, manifest)
    print_stages(console, manifest)
    _print_operators(console, manifest)
    print_verification(console, manifest["verification"])


def explanation(manifest: Manifest) -> dict[str, Any]:
    """The manifest, with the rules and refusals gathered under the layer that they concern."""
    by_layer = _by_layer(manifest)
    paths = {layer["path"] for layer in manifest["layers"]}
    elsewhere = [entry for layer, found in by_layer.items() if layer not in paths for entry in found]
    return {
        "source": manifest["source"],
        "task": manifest["task"],
        "target": manifest["target"],
        "recipe": manifest["recipe"],
        "versions": manifest["versions"],
        "layers": [
            {
                **layer,
                "rules": [_without_layer(entry) for entry in by_layer[layer["path"]] if "rule" in entry],
                "refused": [_without_layer(entry) for entry in by_layer[layer["path"]] if "reason" in entry],
            }
            for layer in manifest["layers"]
        ],
        "whole_model": {
            "rules": [entry for entry in elsewhere if "rule" in entry],
            "refused": [entry for entry in elsewhere if "reason" in entry],
        },
        "stages": manifest["stages"],
        "verification": manifest["verification"],
    }


def _by_layer(manifest: Manifest) -> dict[str | None, list[dict[str, Any]]]:
    found: dict[str | None, list[dict[str, Any]]] = collections.defaultdict(list)
    for entry in (*manifest["rules"], *manifest["refused"]):
        found[entry["layer"]].append(entry)
    return found


def _without_layer(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "layer"}


def _print_origin(console: Console, manifest: Manifest) -> None:
    source, recipe = manifest["source"], manifest["recipe"]
    packing = "packed" if recipe["pack"] else "not packed"
    console.line(f"{source['path_name']} ({source['format']}), {manifest['task']}")
    console.line(f"for {manifest['target']}: {', '.join(recipe['precision'])}, opset {recipe['opset']}, {packing}")
    _print_list(console, "passes", recipe["passes"])
    _print_list(console, "versions", [f"{name} {version}" for name, version in manifest["versions"].items()])
    for note in source["notes"]:
        console.line(note)
    console.line(removed(manifest["layers"]).sentence())


def _print_list(console: Console, title: str, items: list[str]) -> None:
    text = f"{title}: {', '.join(items)}"
    for line in textwrap.wrap(text, width=100, subsequent_indent="  ", break_on_hyphens=False):
        console.line(line)


def _print_layers(console: Console, manifest: Manifest) -> None:
    by_layer = _by_layer(manifest)
    console.heading("Layers")
    for layer in manifest["layers"]:
        path, text = describe_layer(layer)
        console.line(f"{path}: {text}")
        rules = _counted_rules(by_layer.pop(layer["path"], ()))
        for rule, times, name in rules:
            console.line(f"{times:>8} x {rule} ({name})")
        if not rules:
            console.line("         no rule applied")

    elsewhere = _counted_rules(entry for entries in by_layer.values() for entry in entries)
    if elsewhere:
        console.heading("Outside of the layers")
        console.table(("rule", ">times", "pass"), elsewhere)


def _counted_rules(entries: Iterable[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Rule, times and pass, in the order in which they applied, without what changes names only."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for entry in entries:
        if "rule" in entry and entry["pass"] not in _RENAMING:
            counts[entry["rule"], entry["pass"]] += entry["count"]
    return [(rule, str(count), name) for (rule, name), count in counts.items()]


def _print_refusals(console: Console, manifest: Manifest) -> None:
    console.heading("Left alone")
    if not manifest["refused"]:
        console.line("nothing: no pass met a layer that it had to refuse")
        return
    # A reason that holds in every layer is said once, with the number of layers.
    layers: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    for entry in manifest["refused"]:
        layers[entry["pass"], entry["reason"]].append(entry["layer"] or "whole model")
    rows = [
        (name, reason, where[0] if len(where) == 1 else f"{where[0]} and {len(where) - 1} more")
        for (name, reason), where in layers.items()
    ]
    console.table(("pass", "why", "where"), rows)


def _print_operators(console: Console, manifest: Manifest) -> None:
    for graph, columns, rows in operator_tables(manifest["stages"]):
        console.heading(f"Operators{f' of {graph}' if graph else ''}: in the file, and as ONNX Runtime runs them")
        console.table(columns, rows)
