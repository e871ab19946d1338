"""Endpoints as targets: what they are asked, whether they answer, and the rows they make."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")

from compactor.benching.server import endpoints
from compactor.benching.server.endpoints import (
    check_endpoint,
    load_items,
    lone_ms,
    make_body,
    read_texts,
    write_items,
)
from compactor.benching.server.urls import parse_url
from compactor.benching.targets import resolve_targets
from compactor.errors import ModelDirectoryError, UsageError
from tests.compactor.benching.server.endpoint import endpoint

PLAIN = parse_url("http://host/predict")
V2 = parse_url("http://host/v2/models/small/infer")


def data_file(folder: Path, *lines: str) -> Path:
    path = folder / "dev.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def texts(tmp_path):
    return read_texts(data_file(tmp_path, "label\tsentence", "1\tfine", "0\tthe longest of all", "1\ta"), None)


# What is asked


@pytest.mark.parametrize(
    ("header", "row", "task", "item"),
    [
        ("sentence\tlabel", "a\t1", None, "a"),
        ("sentence1\tsentence2", "a\tb", None, ("a", "b")),
        ("sentence1\tsentence2", "a\tb", "text-classification", ("a", "b")),
        ("sentence1\tsentence2", "a\tb", "fill-mask", "a"),
        ("question\tcontext", "a\tb", None, {"question": "a", "context": "b"}),
        ("question\tcontext", "a\tb", "text-classification", "a"),
        ("tokens\tx", "a b\tc", None, "a b"),
        ("article\tsummary", "a\tb", None, "a"),
    ],
)
def test_the_columns_say_what_an_item_is(tmp_path, header, row, task, item):
    assert read_texts(data_file(tmp_path, header, row), task).items == [item]


def test_words_are_joined(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"tokens": ["a", "b"]}), encoding="utf-8")
    assert read_texts(path, "token-classification").items == ["a b"]


def test_a_file_without_texts(tmp_path):
    with pytest.raises(UsageError, match="no column of text"):
        read_texts(data_file(tmp_path, "x\ty", "1\t2"), None)
    with pytest.raises(UsageError, match="this file holds lengths"):
        read_texts(data_file(tmp_path, "12", "34"), None)


def test_items_come_back_as_they_were(tmp_path):
    items = ["a", ("b", "c"), {"question": "d", "context": "e"}]
    assert load_items(write_items(items, tmp_path / "new" / "x.json")) == items


def test_the_body_is_that_of_the_route():
    assert json.loads(make_body(PLAIN, "a")) == {"inputs": ["a"]}
    assert json.loads(make_body(V2, "a"))["inputs"][0]["name"] == "text"


# Whether it answers


@pytest.mark.parametrize("plain", [True, False])
def test_the_longest_and_the_shortest_text_are_tried(texts, plain):
    with endpoint() as server:
        check_endpoint(parse_url(server.plain_url if plain else server.url), texts)
    sent = [document["inputs"][0] for _, document in server.requests]
    assert [one if plain else one["data"][0] for one in sent] == ["the longest of all", "a"]


@pytest.mark.parametrize(
    ("behave", "what"),
    [
        ("404", "there is no model 'small': 404 .*told so"),
        ("503", "is not ready: 503"),
        ("422", "refuses the text in line 3 of dev.tsv: 422 .*told so"),
        ("500", "answers 500"),
        ("307", "answers 307"),
        ("prose", "something else than a model does: no JSON, .*<html>"),
        ("close", "cannot be reached"),
        ("half", "cannot be reached"),
    ],
)
def test_an_endpoint_that_does_not_answer_as_it_should(texts, behave, what):
    with endpoint(behave) as server, pytest.raises(UsageError, match=what) as refused:
        check_endpoint(parse_url(server.url), texts)
    assert refused.value.where == server.url
    assert refused.value.todo


def test_another_model(texts):
    with endpoint() as server, pytest.raises(UsageError, match="there is no model 'other': 404"):
        check_endpoint(parse_url(server.url.replace("small", "other")), texts)


def test_nobody_listens(texts):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and does not listen
        url = parse_url(f"http://127.0.0.1:{held.getsockname()[1]}/predict")
        with pytest.raises(UsageError, match="cannot be reached") as refused:
            check_endpoint(url, texts)
    assert "bench starts none" in str(refused.value)


def test_no_answer_in_time(texts, monkeypatch):
    monkeypatch.setattr(endpoints, "_CHECK_S", 0.2)
    with endpoint("hang") as server, pytest.raises(UsageError, match="did not answer within"):
        check_endpoint(parse_url(server.url), texts)


@pytest.mark.parametrize(
    ("route", "answer", "what"),
    [
        ("v2", [], "no 'outputs'"),
        ("v2", {"outputs": []}, "no 'outputs'"),
        ("v2", {"outputs": [{"shape": [2]}]}, "of shape \\[2\\]"),
        ("v2", {"outputs": ["label"]}, "of shape null"),
        ("plain", {"outputs": [{}, {}]}, "2 outputs for one text"),
    ],
)
def test_json_that_is_no_answer(texts, monkeypatch, route, answer, what):
    reply = endpoints.Reply(200, json.dumps(answer).encode())
    monkeypatch.setattr(endpoints, "_ask", lambda url, content: reply)
    with pytest.raises(UsageError, match=what):
        check_endpoint(V2 if route == "v2" else PLAIN, texts)


def test_a_lone_request_takes_its_time(texts):
    with endpoint(delay_s=0.02) as server:
        assert lone_ms(parse_url(server.url), texts, 0.1) >= 19
    with endpoint("503") as server, pytest.raises(UsageError, match="status 503"):
        lone_ms(parse_url(server.url), texts, 0.1)


# The rows


def test_endpoints_alone_are_rows_that_are_compared_with_nothing():
    targets = resolve_targets([], urls=[V2, PLAIN])
    assert [variant.name for variant in targets.variants] == ["small at host", "endpoint at host"]
    assert [variant.id for variant in targets.variants] == ["small-at-host", "endpoint-at-host"]
    assert (targets.baseline, targets.title, targets.own) == (None, "small at host", [])
    assert all(variant.is_endpoint for variant in targets.variants)


def test_two_endpoints_of_one_name_have_two_ids():
    other = parse_url(V2.text.replace("http:", "https:"))
    assert [variant.id for variant in resolve_targets([], urls=[V2, other]).variants] == [
        "small-at-host",
        "small-at-host-2",
    ]


def test_a_baseline_beside_an_endpoint_is_read(tmp_path):
    with pytest.raises(ModelDirectoryError, match="no such file"):
        resolve_targets([], urls=[V2], baseline=tmp_path / "missing")
