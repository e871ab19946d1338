"""``compactor explain``: what an export did to each layer, and why."""

from __future__ import annotations

import collections
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from compactor.commands import debug_option, json_option
from compactor.console import Console, Section
from compactor.exporting.summary import (
    describe_layer,
    ledger_sections,
    loss_sentence,
    operator_tables,
    stages_section,
    unrecognised_sections,
    verification_section,
)
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
    console.show(
        _origin(manifest),
        *_layers(manifest),
        *unrecognised_sections(manifest),
        _refusals(manifest),
        stages_section(manifest),
        *ledger_sections(manifest),
        *_operators(manifest),
        verification_section(manifest["verification"]),
    )


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
        "unrecognised": manifest.get("unrecognised", []),
        "whole_model": {
            "rules": [entry for entry in elsewhere if "rule" in entry],
            "refused": [entry for entry in elsewhere if "reason" in entry],
        },
        **({"ledger": manifest["ledger"]} if "ledger" in manifest else {}),
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


def _origin(manifest: Manifest) -> Section:
    source, recipe = manifest["source"], manifest["recipe"]
    packing = "packed" if recipe["pack"] else "not packed"
    lines = [
        f"{source['path_name']} ({source['format']}), {manifest['task']}",
        f"for {manifest['target']}: {', '.join(recipe['precision'])}, opset {recipe['opset']}, {packing}",
        *_listed("passes", recipe["passes"]),
        *_listed("versions", [f"{name} {version}" for name, version in manifest["versions"].items()]),
        *source["notes"],
        loss_sentence(manifest),
    ]
    return Section(lines=lines)


def _listed(title: str, items: list[str]) -> list[str]:
    text = f"{title}: {', '.join(items)}"
    return textwrap.wrap(text, width=100, subsequent_indent="  ", break_on_hyphens=False)


def _layers(manifest: Manifest) -> Iterator[Section]:
    by_layer = _by_layer(manifest)
    lines = []
    for layer in manifest["layers"]:
        path, text = describe_layer(layer)
        rules = _counted_rules(by_layer.pop(layer["path"], ()))
        lines += [f"{path}: {text}", *(f"{times:>8} x {rule} ({name})" for rule, times, name in rules)]
        if not rules:
            lines.append("         no rule applied")
    yield Section("Layers", lines)
    elsewhere = _counted_rules(entry for entries in by_layer.values() for entry in entries)
    if elsewhere:
        yield Section("Outside of the layers", columns=("rule", ">times", "pass"), rows=elsewhere)


def _counted_rules(entries: Iterable[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Rule, times and pass, in the order in which they applied, without what changes names only."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for entry in entries:
        if "rule" in entry and entry["pass"] not in _RENAMING:
            counts[entry["rule"], entry["pass"]] += entry["count"]
    return [(rule, str(count), name) for (rule, name), count in counts.items()]


def _refusals(manifest: Manifest) -> Section:
    """A reason that holds in every layer is said once, with the number of layers."""
    if not manifest["refused"]:
        return Section("Left alone", ["nothing: no pass met a layer that it had to refuse"])
    layers: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    for entry in manifest["refused"]:
        layers[entry["pass"], entry["reason"]].append(entry["layer"] or "whole model")
    rows = [
        (name, reason, where[0] if len(where) == 1 else f"{where[0]} and {len(where) - 1} more")
        for (name, reason), where in layers.items()
    ]
    return Section("Left alone", columns=("pass", "why", "where"), rows=rows)


def _operators(manifest: Manifest) -> Iterator[Section]:
    for graph, columns, rows in operator_tables(manifest["stages"]):
        of = f" of {graph}" if graph else ""
        yield Section(f"Operators{of}: in the file, and as ONNX Runtime runs them", columns=columns, rows=rows)
