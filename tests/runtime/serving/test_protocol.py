"""The Open Inference Protocol and the plain route, on values: what is read, what is written, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactor.runtime.answers import (
    Answered,
    Classified,
    Embedded,
    Entity,
    Fill,
    Filled,
    Refused,
    Sparse,
    Tagged,
    TokenVectors,
    Written,
)
from compactor.runtime.serving.protocol import (
    BadRequest,
    describe_model,
    first_refusal,
    input_names,
    output_types,
    parse,
    read_inference,
    read_parameters,
    read_plain,
    write_inference,
)

CLASSIFY, ASK = "text-classification", "question-answering"
KINDS = {CLASSIFY: Classified, ASK: Answered, "fill-mask": Filled}
GOOD = Classified("good", 0.75, np.array([0.25, 0.75], np.float32), ("bad", "good"))
BAD = Classified("bad", 0.5, np.array([0.5, 0.5], np.float32), ("bad", "good"))


def tensor(name="text", data=("a", "b"), **changes):
    return {"name": name, "shape": [len(data)], "datatype": "BYTES", "data": list(data), **changes}


def test_texts_pairs_and_questions():
    assert read_inference({"inputs": [tensor()]}, CLASSIFY, KINDS[CLASSIFY], 8) == (["a", "b"], None, None)
    assert read_inference({"inputs": [tensor(shape=[2, 1])], "id": "7"}, CLASSIFY, KINDS[CLASSIFY], 8) == (
        ["a", "b"],
        "7",
        None,
    )
    both = {"inputs": [tensor("text_pair", "cd"), tensor("text", "ab")], "outputs": [{"name": "label"}]}
    assert read_inference(both, CLASSIFY, KINDS[CLASSIFY], 8) == ([("a", "c"), ("b", "d")], None, ["label"])
    asked = {"inputs": [tensor("question", "a"), tensor("context", "b")]}
    assert read_inference(asked, ASK, KINDS[ASK], 8)[0] == [("a", "b")]


@pytest.mark.parametrize(
    ("body", "task", "words"),
    [
        ([], CLASSIFY, "JSON object"),
        (None, CLASSIFY, "JSON object"),
        ({}, CLASSIFY, "'inputs'"),
        ({"inputs": []}, CLASSIFY, "at least one tensor"),
        ({"inputs": {}}, CLASSIFY, "at least one tensor"),
        ({"inputs": ["a"]}, CLASSIFY, "must be an object"),
        ({"inputs": [tensor("words")]}, CLASSIFY, 'no input "words"'),
        ({"inputs": [tensor(None)]}, CLASSIFY, "no input null"),
        ({"inputs": [tensor(datatype="FP32")]}, CLASSIFY, "BYTES"),
        ({"inputs": [tensor(data="abc")]}, CLASSIFY, None),  # a string is split by the helper: good
        ({"inputs": [{**tensor(), "data": "ab"}]}, CLASSIFY, "list of strings"),
        ({"inputs": [{**tensor(), "data": None}]}, CLASSIFY, "list of strings"),
        ({"inputs": [tensor(data=("a", 3))]}, CLASSIFY, "list of strings"),
        ({"inputs": [tensor(shape=None)]}, CLASSIFY, "'shape'"),
        ({"inputs": [tensor(shape=[3])]}, CLASSIFY, "holds 2 texts"),
        ({"inputs": [tensor(shape=[1, 2])]}, CLASSIFY, "holds 2 texts"),
        ({"inputs": [tensor(shape=[True, True])]}, CLASSIFY, "whole numbers"),
        ({"inputs": [tensor(shape=[-2])]}, CLASSIFY, "whole numbers"),
        ({"inputs": [tensor(data=(), shape=[0])]}, CLASSIFY, "is empty"),
        ({"inputs": [tensor(), tensor()]}, CLASSIFY, "given twice"),
        ({"inputs": [tensor("text_pair")]}, CLASSIFY, "'text' is missing"),
        ({"inputs": [tensor(), tensor("text_pair", "a")]}, CLASSIFY, "differ in shape"),
        ({"inputs": [tensor("question")]}, ASK, "'context' is missing"),
        ({"inputs": [tensor()], "id": 3}, CLASSIFY, "'id'"),
        ({"inputs": [tensor()], "outputs": "label"}, CLASSIFY, "'outputs'"),
        ({"inputs": [tensor()], "outputs": [{"name": "logits"}]}, CLASSIFY, 'no output "logits"'),
        ({"inputs": [tensor("text_pair")]}, "fill-mask", 'no input "text_pair"'),
    ],
)
def test_what_is_no_request(body, task, words):
    if words is None:
        read_inference(body, task, KINDS[task], 8)
        return
    with pytest.raises(BadRequest, match=words) as caught:
        read_inference(body, task, KINDS[task], 8)
    assert caught.value.status == 400


def test_too_many_texts():
    with pytest.raises(BadRequest, match="8 texts at most, this one 9") as caught:
        read_inference({"inputs": [tensor(data="abcdefghi")]}, CLASSIFY, KINDS[CLASSIFY], 8)
    assert caught.value.status == 413
    with pytest.raises(BadRequest) as caught:
        read_plain({"inputs": ["a"] * 9}, 8)
    assert caught.value.status == 413


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["name", "shape", "datatype", "data"])
TENSORS = st.dictionaries(KEYS, JSON | st.sampled_from(["text", "BYTES", [1], ["a"]]), max_size=4)


@given(JSON | st.fixed_dictionaries({"inputs": st.lists(TENSORS, max_size=2)}))
def test_nothing_but_a_refusal_comes_of_rubbish(body):
    for read in (lambda: read_inference(body, CLASSIFY, KINDS[CLASSIFY], 4)[0], lambda: read_plain(body, 4)):
        try:
            assert isinstance(read(), list)
        except BadRequest as error:
            assert 400 <= error.status < 500 and str(error)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"a": NaN', b"[" * 100_000])
def test_what_is_no_json(body):
    with pytest.raises(BadRequest, match="not JSON"):
        parse(body)


def test_replies_are_tensors():
    reply = write_inference("m", Classified, [GOOD, BAD], "7", None)
    assert reply == {
        "model_name": "m",
        "model_version": "1",
        "id": "7",
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["good", "bad"]},
            {"name": "score", "datatype": "FP32", "shape": [2], "data": [0.75, 0.5]},
            {"name": "scores", "datatype": "FP32", "shape": [2, 2], "data": [0.25, 0.75, 0.5, 0.5]},
        ],
    }
    only = write_inference("m", Classified, [GOOD], None, ["label"])
    assert [output["name"] for output in only["outputs"]] == ["label"] and "id" not in only


@pytest.mark.parametrize(
    ("task", "answer", "data"),
    [
        (ASK, Answered("Paris", 0.5, 3, 8), {"answer": "Paris", "score": 0.5, "start": 3, "end": 8}),
        ("text2text-generation", Written("done"), {"text": "done"}),
        ("feature-extraction", Embedded(np.array([1, 2], np.float32)), {"vector": [1.0, 2.0]}),
        (
            "token-classification",
            Tagged((Entity("LOC", 1.0, 0, 5, "Paris"),)),
            {"entities": '[{"label": "LOC", "score": 1.0, "start": 0, "end": 5, "text": "Paris"}]'},
        ),
        ("fill-mask", Filled(((Fill("é", 0.5),),)), {"fills": '[[{"token": "é", "score": 0.5}]]'}),
        (
            "fill-mask",
            Sparse(np.array([3, 7]), np.array([0.5, 2], np.float32)),
            {"indices": "[3, 7]", "weights": "[0.5, 2.0]"},
        ),
        ("feature-extraction", TokenVectors(np.ones((2, 1), np.float32)), {"vectors": "[[1.0], [1.0]]"}),
    ],
)
def test_every_task_has_outputs(task, answer, data):
    reply = write_inference("m", type(answer), [answer], None, None)
    assert {output["name"]: output["data"] for output in reply["outputs"]} == {
        name: value if isinstance(value, list) else [value] for name, value in data.items()
    }
    described = describe_model("m", task, type(answer), ())
    assert [entry["name"] for entry in described["outputs"]] == list(output_types(type(answer)))
    assert [entry["name"] for entry in described["inputs"]] == list(input_names(task))
    json.dumps([reply, described])


def test_parameters_are_of_all_texts_of_a_request():
    assert read_parameters({"inputs": "a"}) == read_parameters({"parameters": None}) == {}
    stated = {"role": "query", "prompt_name": "ask"}
    assert read_parameters({"parameters": stated}) == stated
    for wrong, says in (([], "an object"), ({"top_k": 3}, "no parameter .top_k."), ({"role": 3}, "'role' must be")):
        with pytest.raises(BadRequest, match=says):
            read_parameters({"parameters": wrong})


def test_the_plain_route_takes_one_or_many():
    assert read_plain({"inputs": "a"}, 4) == ["a"]
    assert read_plain({"inputs": ["a", {"text": "b"}]}, 4) == ["a", {"text": "b"}]
    assert read_plain({"inputs": {"question": "q", "context": "c"}}, 4) == [{"question": "q", "context": "c"}]
    for body in ([], {}, {"inputs": []}):
        with pytest.raises(BadRequest) as caught:
            read_plain(body, 4)
        assert caught.value.status == 422


def test_the_first_refusal_is_named():
    assert first_refusal([GOOD]) is None
    assert first_refusal([Refused("it is empty")]) == "it is empty"
    assert first_refusal([GOOD, Refused("it is empty"), Refused("too long")]) == "item 1: it is empty"
