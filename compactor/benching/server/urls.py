"""TARGETs that are URLs: where an endpoint listens, and which of two protocols it speaks.

http://127.0.0.1:8000/v2/models/NAME/infer      KServe's V2 protocol (Open Inference Protocol)
http://127.0.0.1:8000/predict                   the plain route of `compactor serve`
"""

from __future__ import annotations

import dataclasses
import re
import urllib.parse
from typing import Literal, TypeGuard

from compactor.errors import UsageError

Route = Literal["v2", "plain"]

_SCHEME = re.compile(r"https?://", re.IGNORECASE)
_V2 = re.compile(r"/v2/models/([^/]+)(/versions/[^/]+)?/infer/?")
_TODO = "give http://HOST:PORT/v2/models/NAME/infer, or http://HOST:PORT/predict"


@dataclasses.dataclass(frozen=True)
class Url:
    """Where requests are posted.

    Attributes:
        text: As the user gave it.
        host: Name or number, with the port where one was given.
        route: The protocol that is spoken there.
        model: Its name; None where the route does not say.
    """

    text: str
    host: str
    route: Route
    model: str | None

    @property
    def label(self) -> str:
        """For tables."""
        return f"{self.model or 'endpoint'} at {self.host}"


def is_url(target: object) -> TypeGuard[str]:
    """Whether a TARGET is a URL, and no path."""
    return isinstance(target, str) and _SCHEME.match(target) is not None


def parse_url(text: str) -> Url:
    """The parts of a URL.

    Raises:
        UsageError: It is none, holds a password, or is no route to a model.
    """
    try:
        parts = urllib.parse.urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"this is no URL: {error}", where=text, todo=_TODO) from error
    if parts.username is not None or parts.password is not None:
        shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        raise UsageError("the URL holds a user's name, and would stand in the report", where=shown, todo=_TODO)
    if not parts.hostname or re.search(r"\s", text) or port == 0:
        raise UsageError("this is no URL of a server", where=text, todo=_TODO)
    if parts.query or parts.fragment:
        raise UsageError("the URL has something behind its path", where=text, todo=_TODO)
    found = _V2.fullmatch(parts.path)
    if found is None and parts.path.rstrip("/").rpartition("/")[2] != "predict":
        raise UsageError("the URL is neither of the two routes that a model answers at", where=text, todo=_TODO)
    model = None if found is None else urllib.parse.unquote(found[1])
    return Url(text, parts.netloc, "plain" if found is None else "v2", model)
