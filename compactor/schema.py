"""Read our own JSON documents, and check them against their JSON Schema.

The schema beside each document's module is the only definition of its shape. It is checked by a reader of the few
JSON Schema keywords that ours use, so that opening an artefact or a report needs no schema library.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from compactor.errors import ModelDirectoryError

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
def read_schema(package: str, name: str) -> dict[str, Any]:
    """The JSON Schema in the file ``name`` of ``package``, as a dictionary. Do not modify it."""
    text = importlib.resources.files(package).joinpath(name).read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def schema_problems(value: object, schema: dict[str, Any], place: str) -> list[str]:
    """Every way in which ``value`` departs from ``schema``, as ``place: problem``; empty when there is none.

    Args:
        value: What ``json.loads`` gave.
        schema: What ``read_schema`` gave.
        place: What to call the whole of ``value``.
    """
    return list(_problems(value, schema, place, schema.get("$defs", {})))


def load_document(
    path: Path,
    *,
    name: str,
    version: int,
    max_bytes: int,
    problems: Callable[[object], list[str]],
    remedy: str,
    kind: str | None = None,
) -> dict[str, Any]:
    """Read a JSON document that states its version under ``schema``, and check it.

    Args:
        path: Its file, which exists.
        name: What people call it: ``manifest``.
        version: The newest version that is understood.
        max_bytes: A larger file is not read.
        problems: Every way in which the content departs from its schema, as ``place: problem``.
        remedy: What to do about a damaged one.
        kind: What it must state under ``kind``; None where it states nothing.

    Raises:
        ModelDirectoryError: It is damaged, or was written by a newer compactor.
    """
    if path.stat().st_size > max_bytes:
        raise ModelDirectoryError(f"the {name} is too large to be one", where=str(path), todo=remedy)
    try:
        document = json.loads(path.read_text("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ModelDirectoryError(f"the {name} is not JSON: {error}", where=str(path), todo=remedy) from error

    if kind is not None and (not isinstance(document, dict) or document.get("kind") != kind):
        raise ModelDirectoryError(f"this is not a {name}: its 'kind' is not '{kind}'", where=str(path), todo=remedy)
    stated = document.get("schema") if isinstance(document, dict) else None
    if isinstance(stated, int) and stated > version:
        raise ModelDirectoryError(
            f"the {name} has schema {stated}; this compactor reads up to {version}",
            where=str(path),
            todo=f"upgrade compactor, or {remedy}",
        )
    found = problems(document)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ModelDirectoryError(f"damaged {name}: {found[0]}{more}", where=str(path), todo=remedy)
    checked: dict[str, Any] = document
    return checked


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def _problems(value: object, schema: dict[str, Any], place: str, definitions: dict[str, Any]) -> Iterator[str]:
    """Check ``value`` against ``schema``: the keywords that our schemas use, and only those."""
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
    if isinstance(value, (int, float)):
        yield from _number_problems(value, schema, place)
    elif isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            yield f"{place}: wrong number of items, {len(value)}"
        items = schema.get("items", {})
        if not _are_fine_numbers(value, items, definitions):
            for index, item in enumerate(value):
                yield from _problems(item, items, f"{place}[{index}]", definitions)
    elif isinstance(value, dict):
        yield from (f"{place}: '{name}' is missing" for name in schema.get("required", []) if name not in value)
        others = schema.get("additionalProperties", {})
        for name, item in value.items():
            inner = schema.get("properties", {}).get(name, others)
            yield from _problems(item, inner, f"{place}.{name}", definitions)


def _number_problems(value: float, schema: dict[str, Any], place: str) -> Iterator[str]:
    if not -sys.float_info.max <= value <= sys.float_info.max:  # NaN, or 1e999
        yield f"{place}: expected a finite number, got {_short(value)}"
    elif value < schema.get("minimum", value):
        yield f"{place}: expected at least {schema['minimum']}, got {value}"
    elif value >= schema.get("exclusiveMaximum", math.inf):
        yield f"{place}: expected less than {schema['exclusiveMaximum']}, got {value}"


def _are_fine_numbers(values: list[Any], schema: dict[str, Any], definitions: dict[str, Any]) -> bool:
    """Whether ``schema`` surely takes all of ``values``: the short way for a report's million samples."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].removeprefix("#/$defs/")]
    return (
        schema.keys() <= {"type", "minimum", "description"}
        and schema.get("type") == "number"
        and set(map(type, values)) == {float}
        and all(map(math.isfinite, values))
        and min(values) >= schema.get("minimum", -math.inf)
    )


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
