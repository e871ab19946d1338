"""The manifest ``compactor.json``: what an artefact was made from, what was removed, and the proof.

``manifest.schema.json`` beside this file is the only definition of its shape. It is checked here by a reader of
the few JSON Schema keywords that it uses, so that opening an artefact needs no schema library.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import json
import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from compactor.errors import ModelDirectoryError

MANIFEST_NAME = "compactor.json"
SCHEMA_VERSION = 1

_MAX_BYTES = 64 * 2**20  # a manifest of a 100-layer model is below 1 MiB; anything larger is not one
_JSON_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}


@functools.cache
def manifest_schema() -> dict[str, Any]:
    """The JSON Schema of ``compactor.json``, as a dictionary. Do not modify it."""
    text = importlib.resources.files("compactor").joinpath("manifest.schema.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def manifest_problems(manifest: object) -> list[str]:
    """Every way in which ``manifest`` departs from the schema, as ``place: problem``; empty when there is none."""
    schema = manifest_schema()
    problems = list(_problems(manifest, schema, "manifest", schema["$defs"]))
    if not problems and isinstance(manifest, dict):
        problems.extend(_unsafe_files(manifest))
    return problems


def dump_manifest(manifest: dict[str, Any]) -> str:
    """``manifest`` as the text of ``compactor.json``.

    Raises:
        ValueError: The manifest does not follow the schema or holds a NaN. Only our own code writes one.
    """
    problems = manifest_problems(manifest)
    if problems:
        raise ValueError("invalid manifest: " + "; ".join(problems))
    return json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def load_manifest(out_dir: str | Path) -> dict[str, Any]:
    """Read and check the manifest of an artefact.

    Raises:
        ModelDirectoryError: There is none, it is damaged, or it was written by a newer compactor.
    """
    path = Path(out_dir) / MANIFEST_NAME
    remake = "export the model again, with --overwrite"
    if not path.is_file():
        raise ModelDirectoryError(
            f"no '{MANIFEST_NAME}': this is not a folder that compactor exported",
            where=str(out_dir),
            todo="give the OUT_DIR of an earlier 'compactor export'",
        )
    if path.stat().st_size > _MAX_BYTES:
        raise ModelDirectoryError("the manifest is too large to be one", where=str(path), todo=remake)
    try:
        manifest = json.loads(path.read_text("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ModelDirectoryError(f"the manifest is not JSON: {error}", where=str(path), todo=remake) from error

    version = manifest.get("schema") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ModelDirectoryError(
            f"the manifest has schema {version}; this compactor reads up to {SCHEMA_VERSION}",
            where=str(path),
            todo="upgrade compactor, or export the model again with this one",
        )
    problems = manifest_problems(manifest)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ModelDirectoryError(f"damaged manifest: {problems[0]}{more}", where=str(path), todo=remake)
    checked: dict[str, Any] = manifest
    return checked


def artefact_file_problems(manifest: dict[str, Any], out_dir: str | Path) -> list[str]:
    """The model files of the artefact that are missing or have another size than the manifest states."""
    problems = []
    for stage in manifest["stages"]:
        if stage["file"] is None:
            continue
        path = Path(out_dir) / stage["file"]
        if not path.is_file():
            problems.append(f"'{stage['file']}' is missing")
            continue
        data = path.with_name(f"{path.name}_data")  # weights beyond protobuf's limit
        size = path.stat().st_size + (data.stat().st_size if data.is_file() else 0)
        if size != stage["bytes"]:
            problems.append(f"'{stage['file']}' has {size} bytes, {stage['bytes']} were written")
    return problems


def source_file_problems(manifest: dict[str, Any], model_dir: str | Path) -> list[str]:
    """The files of the checkpoint that are missing or no longer those the artefact was made from."""
    problems = []
    for recorded in manifest["source"]["files"]:
        path = Path(model_dir) / recorded["name"]
        if not path.is_file():
            problems.append(f"'{recorded['name']}' is missing")
        elif path.stat().st_size != recorded["bytes"] or _sha256(path) != recorded["sha256"]:
            problems.append(f"'{recorded['name']}' is not the file that was exported")
    return problems


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unsafe_files(manifest: dict[str, Any]) -> Iterator[str]:
    """File names that would lead out of the folder: whoever reads the manifest opens what it names."""
    for group, key, entries in (("stages", "file", manifest["stages"]), ("files", "name", manifest["source"]["files"])):
        for entry in entries:
            name = entry[key]
            if name is not None and not is_inside_name(name):
                yield f"{group}: '{name}' leads out of the folder"


def is_inside_name(name: str) -> bool:
    """Whether ``name`` is a relative path, with ``/`` only, that stays below the folder it is joined to."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and not set(name) & set("\\:\0")


def _problems(value: object, schema: dict[str, Any], place: str, definitions: dict[str, Any]) -> Iterator[str]:
    """Check ``value`` against ``schema``: the keywords that ``manifest.schema.json`` uses, and only those."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].removeprefix("#/$defs/")]
    if "oneOf" in schema:
        yield from _one_of_problems(value, schema["oneOf"], place, definitions)
        return
    if "const" in schema and (value != schema["const"] or isinstance(value, bool) != isinstance(schema["const"], bool)):
        yield f"{place}: expected {schema['const']!r}, got {_short(value)}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place}: expected one of {', '.join(map(str, schema['enum']))}, got {_short(value)}"
        return
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    if types and not any(_has_type(value, name) for name in types):
        yield f"{place}: expected {' or '.join(types)}, got {_short(value)}"
        return
    if isinstance(value, (int, float)) and value < schema.get("minimum", value):
        yield f"{place}: expected at least {schema['minimum']}, got {value}"
    elif isinstance(value, (int, float)) and value >= schema.get("exclusiveMaximum", math.inf):
        yield f"{place}: expected less than {schema['exclusiveMaximum']}, got {value}"
    elif isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            yield f"{place}: wrong number of items, {len(value)}"
        for index, item in enumerate(value):
            yield from _problems(item, schema.get("items", {}), f"{place}[{index}]", definitions)
    elif isinstance(value, dict):
        yield from (f"{place}: '{name}' is missing" for name in schema.get("required", []) if name not in value)
        others = schema.get("additionalProperties", {})
        for name, item in value.items():
            inner = schema.get("properties", {}).get(name, others)
            yield from _problems(item, inner, f"{place}.{name}", definitions)


def _one_of_problems(
    value: object, options: list[dict[str, Any]], place: str, definitions: dict[str, Any]
) -> Iterator[str]:
    """The problems of the option that comes nearest, so that the message names the field and not the choice."""
    tried = [list(_problems(value, option, place, definitions)) for option in options]
    yield from min(tried, key=len)


def _has_type(value: object, name: str) -> bool:
    if isinstance(value, bool):  # a bool is an int to Python, not to JSON
        return name == "boolean"
    return isinstance(value, _JSON_TYPES[name])


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
