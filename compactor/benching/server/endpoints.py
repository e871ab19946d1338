"""Endpoints that the server scenario sends requests to: what they are asked, and whether they answer.

An endpoint is not started by ``bench``, and whoever runs it chose its model, its threads and its batches. It takes
texts, since it tokenizes by itself.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactor.benching.server.http_load import (
    Item,
    Reply,
    closed_loop,
    item_texts,
    plain_body,
    post_once,
    run,
    v2_body,
)
from compactor.benching.server.urls import Url
from compactor.errors import UsageError
from compactor.evaluation.datafiles import Table, read_lengths, read_table, shown
from compactor.evaluation.texts import DOCUMENTS, PAIRS, QUESTIONS, SINGLES

CLOCK_NOTE = (
    "Latencies of an endpoint hold all that its client waits for: tokenization, serialisation, the network, and what "
    "the client itself takes. Those of models that bench runs itself hold none of these."
)

_WORDS = ("tokens", "words")
_CHECK_S = 30.0  # for the first answer: it may load something
_LONE_REQUESTS = 200


@dataclasses.dataclass(frozen=True)
class Texts:
    """What is asked of the endpoints.

    Attributes:
        items: All of the file.
        places: Where each is in it.
        path: The file.
    """

    items: Sequence[Item]
    places: Sequence[str]
    path: Path

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(N,) characters in each item."""
        return np.array([sum(map(len, item_texts(item).values())) for item in self.items], np.int64)


# What is asked


def read_texts(path: Path, task: str | None) -> Texts:
    """The texts of a data file as an endpoint takes them.

    Args:
        path: TSV, JSON lines or SQuAD's form, under the usual column names. Labels do not matter.
        task: What the models beside the endpoint are for; None asks the columns: a question with a context, two texts
            that belong together, or one.

    Raises:
        UsageError: It cannot be read, or has no text.
    """
    if read_lengths(path) is not None:
        raise UsageError(
            "an endpoint takes texts, and this file holds lengths", where=str(path), todo="give a file of texts"
        )
    table = read_table(path)
    return Texts(_items(table, task), table.places, path)


def _items(table: Table, task: str | None) -> list[Item]:
    pairs = PAIRS if task in (None, "text-classification") else ()
    if task in (None, "question-answering"):
        pairs = (QUESTIONS, *pairs)
    pair = next((pair for pair in pairs if table.find(pair[0]) and table.find(pair[1])), None)
    if pair is not None:
        firsts, seconds = (table.texts(table.find(name) or name) for name in pair)
        if pair == QUESTIONS:
            return [dict(zip(QUESTIONS, both, strict=True)) for both in zip(firsts, seconds, strict=True)]
        return list(zip(firsts, seconds, strict=True))
    words = table.find(*_WORDS)
    if words is not None and task in (None, "token-classification"):
        return [" ".join(map(str, row)) if isinstance(row, list) else str(row) for row in table.column(words)]
    names = tuple(dict.fromkeys((*SINGLES, *DOCUMENTS)))
    single = table.find(*names)
    if single is None:
        raise UsageError(
            f"there is no column of text: none of {', '.join(names)}",
            where=str(table.path),
            todo=f"rename one of its columns: {', '.join(table.columns)}",
        )
    return list(table.texts(single))


def write_items(items: Sequence[Item], path: Path) -> Path:
    """Write items for another process to read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(items)), encoding="utf-8")
    return path


def load_items(path: Path) -> list[Item]:
    """What ``write_items`` wrote."""
    return [tuple(item) if isinstance(item, list) else item for item in json.loads(path.read_text(encoding="utf-8"))]


def make_body(url: Url, item: Item) -> bytes:
    """The request of one item, in the endpoint's protocol."""
    return v2_body([item]) if url.route == "v2" else plain_body([item])


# Whether it answers


def check_endpoint(url: Url, texts: Texts) -> None:
    """Ask it for the longest text and the shortest, and look at the answers.

    Raises:
        UsageError: It cannot be reached, does not know the model, or does not answer as its protocol says.
    """
    sizes = texts.sizes
    for row in dict.fromkeys((int(sizes.argmax()), int(sizes.argmin()))):
        reply = _ask(url, make_body(url, texts.items[row]))
        place = f"{texts.places[row]} of {texts.path.name}"
        if reply.status != 200:
            raise _refusal(url, reply, place)
        problem = _find_problem(url, reply)
        if problem is not None:
            raise UsageError(
                f"the endpoint answers something else than a model does: {problem}",
                where=url.text,
                todo="give the address of a model: .../v2/models/NAME/infer, or .../predict of compactor serve",
            )


def lone_ms(url: Url, texts: Texts, seconds: float) -> float:
    """The median latency of one request after the other.

    Raises:
        UsageError: None was answered.
    """
    bodies = [make_body(url, item) for item in texts.items[:_LONE_REQUESTS]]
    found = run(closed_loop(url.text, bodies, 1, seconds, most=len(bodies), timeout_s=_CHECK_S))
    if not found.ok.any():
        raise UsageError(
            f"the endpoint answers no request: status {found.statuses[0]}", where=url.text, todo="see its log"
        )
    return float(np.median(1e3 * found.latencies_s))


def _ask(url: Url, content: bytes) -> Reply:
    """One request.

    Raises:
        UsageError: There is no answer.
    """
    import aiohttp

    try:
        return run(post_once(url.text, content, timeout_s=_CHECK_S))
    except TimeoutError:
        raise UsageError(
            f"the endpoint did not answer within {_CHECK_S:g} s", where=url.text, todo="see its log"
        ) from None
    except (aiohttp.ClientError, OSError) as error:
        raise UsageError(
            f"the endpoint cannot be reached: {error}",
            where=url.text,
            todo="start the server, or check host and port; bench starts none",
        ) from error


def _refusal(url: Url, reply: Reply, place: str) -> UsageError:
    """What a status other than 200 means."""
    said = f"{reply.status} {shown(reply.body.decode('utf-8', 'replace'))}"
    if reply.status == 404:
        what = "there is no model at this address" if url.model is None else f"there is no model '{url.model}'"
        return UsageError(f"{what}: {said}", where=url.text, todo="check the model's name and the path")
    if reply.status in (502, 503, 504):
        return UsageError(
            f"the endpoint is not ready: {said}", where=url.text, todo="wait until it is; bench wants it idle"
        )
    if reply.status in (400, 413, 422):
        todo = f"change {place}, or let the server take it"
        return UsageError(f"the endpoint refuses the text in {place}: {said}", where=url.text, todo=todo)
    return UsageError(f"the endpoint answers {said}", where=url.text, todo="see its log")


def _find_problem(url: Url, reply: Reply) -> str | None:
    """Why this is no answer to one item; None where it is one."""
    try:
        document: Any = json.loads(reply.body)
    except (ValueError, RecursionError):
        return f"no JSON, {shown(reply.body.decode('utf-8', 'replace'))}"
    outputs = document.get("outputs") if isinstance(document, Mapping) else None
    if not isinstance(outputs, list) or not outputs:
        return f"no 'outputs' in {shown(document)}"
    first = outputs[0]
    if url.route == "plain":
        return None if len(outputs) == 1 else f"{len(outputs)} outputs for one text"
    shape = first.get("shape") if isinstance(first, Mapping) else None
    if not isinstance(shape, list) or not shape or shape[0] != 1:
        return f"an output for one text of shape {shown(shape)}"
    return None
