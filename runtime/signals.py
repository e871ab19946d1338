"""Keep a process's own answer to SIGTERM while Ray starts: Ray puts its own in its place, which exits at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def own_sigterm() -> Iterator[None]:
    """Handle SIGTERM afterwards as before; where nobody did, as Ctrl-C, so that what is running ends in order."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, signal.default_int_handler if before is signal.SIG_DFL else before)
