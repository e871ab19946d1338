"""The manifest follows its schema, and a damaged one is refused with the place that is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from compactor.errors import ModelDirectoryError
from compactor.manifest import (
    MANIFEST_NAME,
    artefact_file_problems,
    dump_manifest,
    load_manifest,
    manifest_problems,
    manifest_schema,
    source_file_problems,
)
from tests.compactor.manifests import example_manifest

Manifest = dict[str, Any]


def _write(folder: Path, content: object) -> Path:
    (folder / MANIFEST_NAME).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(manifest_schema())


def test_a_manifest_survives_writing_and_reading(tmp_path: Path) -> None:
    manifest = example_manifest()
    assert load_manifest(_write(tmp_path, dump_manifest(manifest))) == manifest


def test_fields_may_be_added_within_a_version() -> None:
    manifest = example_manifest()
    manifest["recipe"]["int8_budget"] = 0.5
    assert manifest_problems(manifest) == []
    jsonschema.validate(manifest, manifest_schema())


def _set(value: object, *keys: str | int) -> Callable[[Manifest], None]:
    def change(manifest: Any) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        manifest[keys[-1]] = value

    return change


def _drop(*keys: str | int) -> Callable[[Manifest], None]:
    def change(manifest: Any) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        del manifest[keys[-1]]

    return change


BROKEN = [
    pytest.param(_drop("layers"), "manifest: 'layers' is missing", id="no-layers"),
    pytest.param(_drop("layers", 0, "heads"), "manifest.layers[0]: 'heads' is missing", id="no-heads"),
    pytest.param(_drop("verification", "passed"), "manifest.verification: 'passed' is missing", id="not-verified"),
    pytest.param(_set(True, "schema"), "manifest.schema: expected 1, got True", id="schema-is-a-bool"),
    pytest.param(_set("tpu", "target"), "manifest.target: expected one of cpu", id="unknown-target"),
    pytest.param(_set("yes", "recipe", "pack"), "manifest.recipe.pack: expected boolean", id="pack-is-text"),
    pytest.param(_set(True, "stages", 1, "bytes"), "manifest.stages[1].bytes: expected integer", id="bytes-is-bool"),
    pytest.param(_set(-1, "stages", 1, "bytes"), "manifest.stages[1].bytes: expected at least 0", id="negative"),
    pytest.param(_set([12], "layers", 0, "heads"), "manifest.layers[0].heads: wrong number", id="one-number"),
    pytest.param(_set([], "stages"), "manifest.stages: wrong number of items, 0", id="no-stages"),
    pytest.param(_set(1, "versions", "onnx"), "manifest.versions.onnx: expected string", id="version-is-int"),
    pytest.param(
        _drop("verification", "tolerance", "compact", "rtol"),
        "manifest.verification.tolerance.compact: 'rtol' is missing",
        id="half-a-tolerance",
    ),
    pytest.param(
        _set(1.5, "verification", "tolerance", "compact", "rtol"),
        "manifest.verification.tolerance.compact.rtol: expected less than 1",
        id="tolerates-all",
    ),
    pytest.param(_set(["x"], "refused"), "manifest.refused[0]: expected object", id="refusal-is-text"),
]


@pytest.mark.parametrize(("change", "problem"), BROKEN)
def test_says_what_is_wrong_where_as_a_schema_library_does(change: Callable[[Manifest], None], problem: str) -> None:
    manifest = example_manifest()
    change(manifest)
    assert any(said.startswith(problem) for said in manifest_problems(manifest)), manifest_problems(manifest)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, manifest_schema())
    with pytest.raises(ValueError, match="invalid manifest"):
        dump_manifest(manifest)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("{", "not JSON", id="truncated"),
        pytest.param("[" * 100_000, "not JSON", id="nested-too-deep"),
        pytest.param('{"schema": NaN}', "NaN is not a number", id="not-a-number"),
        pytest.param("[]", "expected object", id="a-list"),
        pytest.param({"schema": 1}, "'source' is missing (and ", id="nearly-empty"),
        pytest.param({"schema": 2}, "has schema 2; this compactor reads up to 1", id="from-the-future"),
    ],
)
def test_refuses_a_damaged_manifest(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(ModelDirectoryError) as caught:
        load_manifest(_write(tmp_path, content))
    assert message in caught.value.what
    assert caught.value.where == str(tmp_path / MANIFEST_NAME)


def test_refuses_a_folder_without_one(tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match="not a folder that compactor exported"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..\\x", "C:x", ""])
def test_refuses_file_names_that_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    manifest = example_manifest()
    manifest["stages"][1]["file"] = name
    manifest["source"]["files"][0]["name"] = name
    assert len(manifest_problems(manifest)) == 2
    with pytest.raises(ModelDirectoryError, match="leads out of the folder"):
        load_manifest(_write(tmp_path, manifest))


def test_names_the_source_file_that_changed(tmp_path: Path) -> None:
    manifest = example_manifest()
    manifest["source"]["files"] = [
        {
            "name": "config.json",
            "bytes": 2,
            "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        },
        {"name": "model.safetensors", "bytes": 5, "sha256": "0" * 64},
    ]
    (tmp_path / "config.json").write_text("{}")
    assert source_file_problems(manifest, tmp_path) == ["'model.safetensors' is missing"]
    (tmp_path / "model.safetensors").write_text("12345")
    assert source_file_problems(manifest, tmp_path) == ["'model.safetensors' is not the file that was exported"]
    manifest["source"]["files"].pop()
    assert source_file_problems(manifest, tmp_path) == []


def test_names_the_artefact_file_that_changed(tmp_path: Path) -> None:
    manifest = example_manifest()
    manifest["stages"] = manifest["stages"][:2]
    assert artefact_file_problems(manifest, tmp_path) == ["'onnx/model.onnx' is missing"]
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"x")
    assert artefact_file_problems(manifest, tmp_path) == ["'onnx/model.onnx' has 1 bytes, 1000000 were written"]
    manifest["stages"][1]["bytes"] = 1
    assert artefact_file_problems(manifest, tmp_path) == []


def test_every_field_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "manifest.md").read_text(encoding="utf-8")

    def fields(schema: object) -> set[str]:
        if isinstance(schema, list):
            return set().union(*map(fields, schema))
        if not isinstance(schema, dict):
            return set()
        return set(schema.get("properties", {})).union(*map(fields, schema.values()))

    assert {name for name in fields(manifest_schema()) if f"`{name}`" not in text} == set()
