"""The ``README.md`` of an artefact: what model pages read, what became of the checkpoint, and how to open it.

Nothing in it tells where files lay on the machine that made it.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compactor.console import Section
from compactor.exporting.recipe import Recipe
from compactor.exporting.summary import made_sections, next_steps, unrecognised_sections
from compactor.runtime.folder import MODULES

CARD = "README.md"
_CARRIED = ("license", "license_name", "license_link", "language", "datasets")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_PIPELINES = {"feature-extraction", "fill-mask", "image-classification", "image-feature-extraction"} | {
    "question-answering",
    "text-classification",
    "token-classification",
}


def write_card(directory: Path, manifest: Mapping[str, Any], recipe: Recipe, source: Path, *, name: str) -> None:
    """Write the card of a complete artefact.

    Args:
        directory: The artefact.
        manifest: Its manifest.
        recipe: What it was asked for.
        source: The model directory, whose own card says the licence.
        name: What the artefact is called.
    """
    from huggingface_hub import ModelCardData

    head = {key: value for key, value in _front_matter(manifest, source, directory).items() if value}
    facts = dict(manifest)
    ways = [f"compactor:  compactor.runtime.load({name!r})", *next_steps(facts, directory, shown_as=Path(name))]
    sections = [*made_sections(facts), *unrecognised_sections(facts), Section("How to open it", ways)]
    lines = ["---", ModelCardData(**head).to_yaml().rstrip(), "---", f"# {name}", "", _made(manifest, recipe, name)]
    for section in sections:
        lines += ["", *_markdown(section)]
    (directory / CARD).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _front_matter(manifest: Mapping[str, Any], source: Path, directory: Path) -> dict[str, Any]:
    """What model pages read; the licence and the like are the source's, as far as its card says them."""
    theirs = _metadata(source)
    known = manifest["task"] if manifest["task"] in _PIPELINES else None
    pipeline = "sentence-similarity" if (directory / MODULES).is_file() else known
    return {
        "library_name": "onnx",
        "pipeline_tag": theirs.get("pipeline_tag") or pipeline,
        "base_model": _base_model(source) or theirs.get("base_model"),
        **{name: theirs.get(name) for name in _CARRIED},
        "tags": ["onnx", "onnxruntime", *manifest["recipe"]["precision"], "compactor"],
    }


def _metadata(source: Path) -> dict[str, Any]:
    """The front matter of the source's card; empty where it has none, or one that is broken."""
    from huggingface_hub import metadata_load

    path = source / CARD
    if not path.is_file():
        return {}
    try:
        found = metadata_load(path)
    except Exception:  # of YAML, of its encoding, of what is no mapping: the source's card is not ours to judge
        return {}
    return found if isinstance(found, dict) else {}


def _base_model(source: Path) -> str | None:
    """The name on a hub that the source's config was loaded from, where it says one."""
    from compactor.checkpoint.config import read_json_object

    config = source / "config.json"
    stated = read_json_object(config).get("_name_or_path") if config.is_file() else None
    return stated if isinstance(stated, str) and _HUB_NAME.fullmatch(stated) else None


def _made(manifest: Mapping[str, Any], recipe: Recipe, name: str) -> str:
    source = manifest["source"]["path_name"]
    typed = shlex.join(["compactor", "export", source, name, *_options(recipe, manifest["recipe"]["layout"])])
    version = manifest["versions"]["compactor"]
    return (
        f"`{source}`, compiled by compactor {version} for ONNX Runtime: what cannot change an output is not in it, and "
        f"every graph was compared with the checkpoint before it was written.\n\n```\n{typed}\n```"
    )


def _options(recipe: Recipe, layout: str) -> Iterator[str]:
    """What was asked for, as it is typed; of a file its name alone."""
    if layout != "hf":
        yield from ("--layout", layout)
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if value == field.default or value is None:
            continue
        option = field.name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{option}" if value else f"--no-{option}"
        elif isinstance(value, Path):
            yield from (f"--{option}", value.name)
        elif isinstance(value, str | int | float):
            yield from (f"--{option}", f"{value:g}" if isinstance(value, float) else str(value))
        else:
            yield from (f"--{option}", ",".join(value))


def _markdown(section: Section) -> Iterator[str]:
    if section.title:
        yield from (f"## {section.title}", "")
    for line in section.lines:
        term, colon, rest = line.strip().partition(":  ")  # a tool and what is typed there
        yield f"- {term}: `{rest}`" if colon else f"- {line.strip()}"
    if section.columns:
        yield from ([""] if section.lines else [])
        yield "| " + " | ".join(column.removeprefix(">") for column in section.columns) + " |"
        yield "|" + "|".join("---:" if column.startswith(">") else "---" for column in section.columns) + "|"
        for row in section.rows:
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
