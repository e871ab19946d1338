"""The JSON Schema reader agrees with a schema library on the keywords that our schemas use, and knows all of those."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from compactor.schema import read_schema, schema_problems

SCHEMAS = [("compactor", "manifest.schema.json"), ("compactor.benching", "report.schema.json")]
KNOWN = {
    *("type", "required", "properties", "additionalProperties", "items", "minItems", "maxItems", "minimum"),
    *("exclusiveMaximum", "const", "enum", "oneOf", "$ref", "$defs", "$schema", "title", "description"),
}


@pytest.mark.parametrize(("package", "name"), SCHEMAS)
def test_our_schemas_use_no_keyword_that_the_reader_does_not_know(package: str, name: str) -> None:
    def keywords(schema: object) -> set[str]:
        if isinstance(schema, list):
            return set().union(*map(keywords, schema))
        if not isinstance(schema, dict):
            return set()
        found = set(schema)
        for key, inner in schema.items():
            found |= set().union(*map(keywords, inner.values())) if key in {"properties", "$defs"} else keywords(inner)
        return found

    assert keywords(read_schema(package, name)) <= KNOWN


TIMES = {"$defs": {"time": {"type": "number", "minimum": 0}}, "type": "array", "items": {"$ref": "#/$defs/time"}}
MAYBE = {"type": ["object", "null"], "required": ["a"], "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "value", "problems"),
    [
        pytest.param(TIMES, [], [], id="no-numbers"),
        pytest.param(TIMES, [1.5, 2.5], [], id="numbers"),
        pytest.param(TIMES, [1, 2.5], [], id="numbers-of-both-types"),
        pytest.param(TIMES, [1.5, -2.5], ["x[1]: expected at least 0, got -2.5"], id="one-too-small"),
        pytest.param(TIMES, [1.5, True], ["x[1]: expected number, got True"], id="a-bool-is-no-number"),
        pytest.param(TIMES, [1.5, None], ["x[1]: expected number, got None"], id="null-is-no-number"),
        pytest.param(MAYBE, None, [], id="null-where-allowed"),
        pytest.param(MAYBE, {"a": 1}, [], id="object"),
        pytest.param(MAYBE, {}, ["x: 'a' is missing"], id="object-lacks-a-field"),
        pytest.param(MAYBE, {"a": 1.5}, ["x.a: expected integer, got 1.5"], id="field-of-another-type"),
        pytest.param(MAYBE, "null", ["x: expected object or null, got 'null'"], id="neither"),
    ],
)
def test_agrees_with_a_schema_library(schema: dict[str, Any], value: object, problems: list[str]) -> None:
    assert schema_problems(value, schema, "x") == problems
    assert jsonschema.Draft202012Validator(schema).is_valid(value) == (not problems)


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan"), 10**400])
def test_a_number_is_one_that_a_float_can_hold(number: float) -> None:
    for values in ([number], [1.5, number]):
        (problem,) = schema_problems(values, TIMES, "x")
        assert f"x[{len(values) - 1}]: expected a finite number, got " in problem
        assert len(problem) < 120
