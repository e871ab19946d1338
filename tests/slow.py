"""Which cases of a test are slow: see CONTRIBUTING.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def slow_unless(quick: Callable[[Any], bool], cases: Iterable[Any]) -> list[Any]:
    """The cases, of which those that are not ``quick`` are marked slow."""
    return [case if quick(case) else _marked(case) for case in cases]


def slow_after_first(cases: Iterable[Any]) -> list[Any]:
    """The cases, of which all but the first are marked slow."""
    first, *others = cases
    return [first, *map(_marked, others)]


def _marked(case: Any) -> Any:
    if isinstance(case, type(pytest.param())):
        return case._replace(marks=[*case.marks, pytest.mark.slow])
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.slow)
