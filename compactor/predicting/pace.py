"""How far it is, how fast it goes, and what time is left; told now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from compactor.console import Progress

_ON_A_TERMINAL_S = 0.5
_IN_A_LOG_S = 20.0  # a line each; a night's work is some thousand of them


class Pace:
    """Counts rows.

    Args:
        total: Rows in all.
        done: Rows that an earlier run answered.
        progress: Told a line, but not at every call of ``add``.
        clock: Seconds.
    """

    def __init__(
        self, total: int, done: int, progress: Progress, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.done, self._before = total, done, done
        self._progress, self._clock = progress, clock
        self._start = clock()
        self._first: tuple[float, int] | None = None  # when the first chunk was done, and how many rows then
        self._told = float("-inf")
        self._every_s = _ON_A_TERMINAL_S if sys.stderr.isatty() else _IN_A_LOG_S

    @property
    def seconds(self) -> float:
        """Since the beginning of this run."""
        return self._clock() - self._start

    @property
    def rate(self) -> float:
        """Rows a second in this run, its start included."""
        return (self.done - self._before) / self.seconds if self.seconds > 0 else 0.0

    def add(self, rows: int) -> None:
        """Count ``rows`` that were answered."""
        self.done += rows
        now = self._clock()
        if self._first is None:
            self._first = (now, self.done)
        if now - self._told >= self._every_s or self.done == self.total:
            self._told = now
            self._progress(self.line())

    def line(self) -> str:
        """``12,288 of 67,349 rows (18 %), 1,024 rows/s, 54 s left``."""
        parts = [f"{self.done:,} of {self.total:,} rows ({100 * self.done // max(self.total, 1)} %)"]
        moment, done = self._first or (self._clock(), self.done)
        if self.done > done and self._clock() > moment:  # from the first chunk on: what came before was a start
            rate = (self.done - done) / (self._clock() - moment)
            parts.append(f"{format_rate(rate)} rows/s")
            if self.done < self.total:
                parts.append(f"{format_duration((self.total - self.done) / rate)} left")
        return ", ".join(parts)


def format_rate(rate: float) -> str:
    """Three digits, or all of a large number: ``1,024``, ``3.14``."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def format_duration(seconds: float) -> str:
    """``54 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
