"""What one may choose of a server, with the defaults; plain values, so that a cluster's config can hold them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import RuntimeSetupError
from ..reading_options import AGGREGATIONS
from ..threads import usable_cores

_THREADS = 1  # of a replica: on short texts a second one gains less than a second replica


@dataclasses.dataclass(frozen=True)
class ServeSettings:
    """A server of one artefact.

    Attributes:
        artefact: Its folder; on a cluster, at the same path on every node.
        name: The model's name in URLs; that of the folder when omitted.
        precision: As in ``compactor.runtime.load``.
        provider: The same.
        truncate: The same.
        aggregation: The same.
        answer_tokens: The same.
        no_answer: The same.
        fills: The same.
        threads: Of a replica; 1 when omitted.
        min_replicas: Replicas when nothing is to be done.
        max_replicas: Replicas under load, at most; when omitted as many as this machine has cores for.
        max_batch: Texts that are run together, at most.
        batch_tokens: Positions of a batch, padding included, at most.
        batch_wait_ms: How long a text may wait for others of its length while the replica has nothing to do.
        max_ongoing: Requests that a replica works on at a time, those waiting for a batch among them.
        max_queued: Requests that wait for a replica beside those, at most, in each proxy; the next is answered 503.
        max_texts: Texts of a request, at most.
        max_body_bytes: Size of a request, at most.
        timeout_s: After this a request is answered 504.
    """

    artefact: str
    name: str | None = None
    precision: str | None = None
    provider: str | None = None
    truncate: bool = False
    aggregation: str = "simple"
    answer_tokens: int = 15
    no_answer: bool = False
    fills: int = 5
    threads: int | None = None
    min_replicas: int = 1
    max_replicas: int | None = None
    max_batch: int = 32
    batch_tokens: int = 4096
    batch_wait_ms: float = 1.0
    max_ongoing: int = 64
    max_queued: int = 128
    max_texts: int = 128
    max_body_bytes: int = 1 << 20
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                lowest = 0 if field.name in ("batch_wait_ms", "max_queued", "min_replicas") else 1
                if not value >= lowest if field.name != "timeout_s" else not value > 0:
                    raise RuntimeSetupError(f"expected {field.name} of at least {lowest}, got {value}")
        if self.aggregation not in AGGREGATIONS:
            raise RuntimeSetupError(
                f"there is no aggregation '{self.aggregation}'", todo=f"choose from: {', '.join(AGGREGATIONS)}"
            )
        if self.name is not None and (not self.name.strip() or "/" in self.name):
            raise RuntimeSetupError(f"'{self.name}' is no name for a model: it stands in URLs, between slashes")
        if self.max_replicas is not None and self.max_replicas < max(self.min_replicas, 1):
            raise RuntimeSetupError(f"max_replicas is {self.max_replicas}, below min_replicas ({self.min_replicas})")

    @classmethod
    def from_args(cls, args: Mapping[str, Any]) -> ServeSettings:
        """From the ``args`` of a Serve config.

        Raises:
            RuntimeSetupError: There is no setting of some name, or a value is out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        foreign = sorted(set(args) - known)
        if foreign or "artefact" not in args:
            what = f"there is no setting '{foreign[0]}'" if foreign else "the setting 'artefact' is missing"
            raise RuntimeSetupError(what, where="args of the Serve config", todo=f"choose from: {', '.join(known)}")
        return cls(**args)

    def to_args(self) -> dict[str, Any]:
        """Those that differ from the default, and the artefact."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name == "artefact" or getattr(self, field.name) != field.default
        }

    @property
    def model_name(self) -> str:
        """The model's name in URLs."""
        return self.name or Path(self.artefact).resolve().name

    @property
    def replica_threads(self) -> int:
        """Threads of a replica, which are also the CPUs that it asks Ray for."""
        return self.threads or _THREADS

    @property
    def most_replicas(self) -> int:
        """Replicas under load, at most."""
        return self.max_replicas or max(self.min_replicas, usable_cores() // self.replica_threads, 1)
