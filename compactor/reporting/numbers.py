"""Numbers as people read them: three digits, units, intervals; never more digits than the measurement has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compactor.console import format_bytes, format_count

MINUS = "\N{MINUS SIGN}"
_PLACES = ((99.95, 0), (9.995, 1), (0.9995, 2), (0.09995, 3))  # behind the point, from a size on

bytes_text = format_bytes


def count(number: float) -> str:
    """How many, less any fraction: ``85.1 M``."""
    return format_count(int(number))


def digits(value: float) -> str:
    """Three digits, and thousands apart: ``0.773``, ``9.42``, ``83.4``, ``1,240``.

    >>> [digits(number) for number in (0, 0.00123, 0.7731, 9.4249, 83.41, 661.2, 1239.7)]
    ['0', '0.00123', '0.773', '9.42', '83.4', '661', '1,240']
    """
    size = abs(value)
    places = next((places for least, places in _PLACES if size >= least), None)
    text = f"{size:.3g}" if places is None else f"{size:,.{places}f}"
    return f"{MINUS}{text}" if value < 0 and text != "0" else text


def duration(ms: float) -> str:
    """A time for a sentence: ``0.773 ms``, ``9.42 ms``, ``1.24 s``."""
    return f"{digits(ms / 1e3)} s" if ms >= 999.5 else f"{digits(ms)} ms"


def times(value: float) -> str:
    """A ratio: ``9.54×``, ``10.2×``, ``0.83×``."""
    return f"{value:,.0f}×" if value >= 99.95 else f"{value:.1f}×" if value >= 9.995 else f"{value:.2f}×"


def interval(low: float | None, high: float | None) -> str:
    """The two ends of an interval of ratios: ``[9.27, 9.84]``; nothing where too few processes ran for one."""
    return "" if low is None or high is None else f"[{times(low)[:-1]}, {times(high)[:-1]}]"


def with_interval(ratio: Mapping[str, Any]) -> str:
    """A ratio and how sure it is: ``9.54× [9.27, 9.84]``."""
    return f"{times(ratio['value'])} {interval(ratio['low'], ratio['high'])}".rstrip()


def rate(per_second: float) -> str:
    """Things per second: ``385``, ``49.3 k``."""
    return digits(per_second) if per_second < 9999.5 else count(per_second)


def percent(share: float) -> str:
    """A share of one: ``33.5 %``."""
    return f"{100 * share:.1f} %"


def score(value: float, se: float | None = None) -> str:
    """A metric in percent, with its standard error where that is known: ``84.63 ± 1.22 %``."""
    text = signed(100 * value, plus=False)
    return f"{text} %" if se is None else f"{text} ± {100 * se:.2f} %"


def score_of(metric: Mapping[str, Any]) -> str:
    """The same of a document's metric."""
    return score(metric["value"], metric.get("se"))


def points(difference: Mapping[str, Any]) -> str:
    """A paired difference of a metric, in points: a minus sign, ``0.12 ± 0.41``."""
    return f"{signed(100 * difference['value'])} ± {100 * difference['se']:.2f}"


def signed(value: float, *, plus: bool = True) -> str:
    """Two decimals and a sign; nothing before zero."""
    text = f"{abs(value):.2f}"
    if float(text) == 0:
        return text
    return f"{MINUS if value < 0 else '+' if plus else ''}{text}"
