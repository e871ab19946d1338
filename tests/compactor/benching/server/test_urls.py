"""Which TARGETs are URLs, and what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from compactor.benching.server.urls import is_url, parse_url
from compactor.errors import UsageError

V2 = "http://127.0.0.1:8000/v2/models/small/infer"


@pytest.mark.parametrize(
    ("text", "route", "model", "label"),
    [
        (V2, "v2", "small", "small at 127.0.0.1:8000"),
        ("https://host/v2/models/a%20b/versions/1/infer", "v2", "a b", "a b at host"),
        ("HTTP://[::1]:80/predict", "plain", None, "endpoint at [::1]:80"),
        ("http://host:8000/app/predict/", "plain", None, "endpoint at host:8000"),
    ],
)
def test_the_path_says_which_protocol(text, route, model, label):
    url = parse_url(text)
    assert (url.text, url.route, url.model, url.label) == (text, route, model, label)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("http://", "no URL of a server"),
        ("http:///predict", "no URL of a server"),
        ("http://host:0/predict", "no URL of a server"),
        ("http://host:99999/predict", "no URL"),
        ("http://host:port/predict", "no URL"),
        ("http://[::1/predict", "no URL"),
        ("http://ho st/predict", "no URL of a server"),
        ("http://host:8000/", "neither of the two routes"),
        ("http://host/v2/models/small", "neither of the two routes"),
        ("http://host/v2/models//infer", "neither of the two routes"),
        ("http://host/predict?x=1", "behind its path"),
        ("http://host/predict#x", "behind its path"),
    ],
)
def test_refuses_what_is_no_address_of_a_model(text, what):
    with pytest.raises(UsageError, match=what) as refused:
        parse_url(text)
    assert refused.value.where == text


def test_a_password_does_not_get_into_a_message():
    with pytest.raises(UsageError, match="user's name") as refused:
        parse_url("http://me:secret@host/predict")
    assert "secret" not in str(refused.value)


def test_targets_are_paths_or_urls():
    assert is_url(V2) and not is_url("http") and not is_url(Path(V2)) and not is_url("ftp://host/predict")
