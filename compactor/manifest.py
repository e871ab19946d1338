"""The manifest ``compactor.json``: what an artefact was made from, what was removed, and the proof.

``manifest.schema.json`` beside this file is the only definition of its shape; ``schema.py`` checks it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from compactor.errors import ModelDirectoryError
from compactor.schema import load_document, read_schema, schema_problems

MANIFEST_NAME = "compactor.json"
SCHEMA_VERSION = 1

_MAX_BYTES = 64 * 2**20  # a manifest of a 100-layer model is below 1 MiB; anything larger is not one


def manifest_schema() -> dict[str, Any]:
    """The JSON Schema of ``compactor.json``, as a dictionary. Do not modify it."""
    return read_schema("compactor", "manifest.schema.json")


def manifest_problems(manifest: object) -> list[str]:
    """Every way in which ``manifest`` departs from the schema, as ``place: problem``; empty when there is none."""
    problems = schema_problems(manifest, manifest_schema(), "manifest")
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


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write ``compactor.json`` into an artefact under construction; without it nothing can be published."""
    (folder / MANIFEST_NAME).write_text(dump_manifest(manifest), encoding="utf-8")


def is_artefact(folder: str | Path) -> bool:
    """Whether ``folder`` was exported already."""
    return (Path(folder) / MANIFEST_NAME).is_file()


def load_manifest(out_dir: str | Path) -> dict[str, Any]:
    """Read and check the manifest of an artefact.

    Raises:
        ModelDirectoryError: There is none, it is damaged, or it was written by a newer compactor.
    """
    path = Path(out_dir) / MANIFEST_NAME
    if not path.is_file():
        raise ModelDirectoryError(
            f"no '{MANIFEST_NAME}': this is not a folder that compactor exported",
            where=str(out_dir),
            todo="give the OUT_DIR of an earlier 'compactor export'",
        )
    return load_document(
        path,
        name="manifest",
        version=SCHEMA_VERSION,
        max_bytes=_MAX_BYTES,
        problems=manifest_problems,
        remedy="export the model again, with --overwrite",
    )


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
        size = path.stat().st_size + (data.stat().st_size if data.is_file() else 0) + stage.get("shared_bytes", 0)
        if size != stage["bytes"]:
            problems.append(f"'{stage['file']}' has {size} bytes, {stage['bytes']} were written")
    for weights in manifest.get("weights", ()):
        path = Path(out_dir) / weights["file"]
        if not path.is_file() or path.stat().st_size != weights["bytes"]:
            problems.append(f"'{weights['file']}' is missing or has not the {weights['bytes']} bytes that were written")
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unsafe_files(manifest: dict[str, Any]) -> Iterator[str]:
    """File names that would lead out of the folder: whoever reads the manifest opens what it names."""
    for group, key, entries in (
        ("stages", "file", manifest["stages"]),
        ("weights", "file", manifest.get("weights", ())),
        ("files", "name", manifest["source"]["files"]),
    ):
        for entry in entries:
            name = entry[key]
            if name is not None and not is_inside_name(name):
                yield f"{group}: '{name}' leads out of the folder"


def is_inside_name(name: str) -> bool:
    """Whether ``name`` is a relative path, with ``/`` only, that stays below the folder it is joined to."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and not set(name) & set("\\:\0")
