from __future__ import annotations

import json

import pytest

from compactor.errors import ExitCode, UsageError
from compactor.evaluation.datafiles import read_lengths, read_table


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


# Tables


def test_a_tsv_is_taken_literally(write):
    table = read_table(write("a.tsv", 'sentence\tlabel\nsay "no" \t1\n"quoted\t0\nx\u2028y \x0bz\t1\n'))
    assert table.columns == ("sentence", "label")
    assert table.texts("sentence") == ['say "no" ', '"quoted', "x\u2028y \x0bz"]
    assert table.column("label") == ["1", "0", "1"]
    assert table.places == ["line 2", "line 3", "line 4"]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfsentence\tlabel\na\t1\n",
        b"sentence\tlabel\r\na\t1\r\n",
        b"sentence\tlabel\n\na\t1",
        b"sentence \t label\na\t1",
    ],
    ids=["byte-order-mark", "crlf", "blank-line-and-no-newline", "spaces-in-header"],
)
def test_harmless_variations_read_the_same(write, content):
    table = read_table(write("a.tsv", content))
    assert table.rows == [{"sentence": "a", "label": "1"}]


def test_json_lines_and_json_lists_read_the_same(write):
    rows = [{"text": "ä", "label": 1}, {"text": "b\u2028", "label": 0}]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert read_table(write("a.jsonl", lines + "\n\n")).rows == rows
    assert read_table(write("a.json", json.dumps(rows))).rows == rows
    assert read_table(write("a.json", json.dumps({"data": rows}))).rows == rows
    assert read_table(write("no_suffix", lines)).rows == rows
    assert read_table(write("no_suffix", json.dumps(rows))).rows == rows


def test_squad_becomes_a_row_a_question(write):
    content = {
        "version": "1.1",
        "data": [
            {
                "title": "t",
                "paragraphs": [
                    {"context": "c1", "qas": [{"question": "q1", "answers": []}, {"question": "q2", "answers": []}]},
                    {"context": "c2", "qas": [{"question": "q3", "answers": []}]},
                ],
            }
        ],
    }
    table = read_table(write("squad.json", json.dumps(content)))
    assert [(row["question"], row["context"]) for row in table.rows] == [("q1", "c1"), ("q2", "c1"), ("q3", "c2")]


def test_columns_are_found_whatever_their_case(write):
    table = read_table(write("a.tsv", "Sentence\tLABEL\na\t1\n"))
    assert table.find("text", "sentence") == "Sentence"
    assert table.find("label") == "LABEL"
    assert table.find("premise") is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", b"", "the file is empty"),
        ("a.tsv", b" \n\n", "the file is empty"),
        ("a.tsv", b"sentence\tlabel\n", "no examples"),
        ("a.tsv", b"sentence\tlabel\nok\t1\na\tb\t0\n", "line 3 has 3 fields and the header 2"),
        ("a.tsv", b"a\ta\n1\t2\n", "two columns have the same name"),
        ("a.tsv", b"sentence\tlabel\nok\t1\nx\0y\t0\n", "line 3 holds a zero byte"),
        ("a.tsv", b"sentence\tlabel\nok\t1\n\xff\xfe\t0\n", "line 3 is not UTF-8"),
        ("a.tsv", b"\x1f\x8b\x08garbage", "line 1 is not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', "line 3 is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', "line 2 is not an object"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("a.json", b"{", "the file is not JSON"),
        ("a.json", b"3", "expected a list of examples"),
        ("a.json", b"[1]", "entry 1 is not an object"),
        ("a.json", b"[]", "no examples"),
        ("a.json", b'{"data": [{"paragraphs": [{"qas": []}]}]}', "no examples"),
        ("a.json", b'{"data": [{"paragraphs": [{"qas": [{}]}]}]}', "not in SQuAD's form"),
    ],
)
def test_what_cannot_be_read_names_the_line(write, name, content, message):
    path = write(name, content)
    with pytest.raises(UsageError, match=message) as caught:
        read_table(path)
    assert caught.value.where == str(path)
    assert caught.value.exit_code == ExitCode.USAGE
    assert len(str(caught.value).splitlines()) <= 3


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_table(tmp_path / "missing.tsv")
    with pytest.raises(UsageError, match="is a folder"):
        read_table(tmp_path)


def test_a_row_without_the_field_is_named(write):
    table = read_table(write("a.jsonl", '{"text": "a", "label": 1}\n\n{"text": 5}\n'))
    with pytest.raises(UsageError, match="line 3 has no 'label'"):
        table.column("label")
    with pytest.raises(UsageError, match="'text' of line 3 is not text: 5"):
        table.texts("text")


# Lengths


@pytest.mark.parametrize("content", ["3\n128\n7\n", "3\r\n 128 \r\n\r\n7", "[3, 128, 7]", "\ufeff3\n128\n7"])
def test_lengths_one_a_line_or_in_a_list(write, content):
    assert read_lengths(write("lengths.txt", content)) == [3, 128, 7]


@pytest.mark.parametrize("content", ["sentence\tlabel\na\t1\n", '{"text": "a"}\n', '[{"text": "a"}]'])
def test_texts_are_no_lengths(write, content):
    assert read_lengths(write("data", content)) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("3\n0\n", "line 2 is not a length"),
        ("-1\n", "line 1 is not a length"),
        ("3\nx\n", 'line 2 is not a length: "x"'),
        ("3\n4.5\n", "line 2 is not a length"),
        ("[3, true]", "entry 2 is not a length: true"),
        ("[3, 4.0]", "entry 2 is not a length"),
        ("[]", "no lengths"),
        ("[3", "not JSON"),
        ("", "empty"),
    ],
)
def test_what_is_no_length_is_refused(write, content, message):
    with pytest.raises(UsageError, match=message):
        read_lengths(write("lengths", content))
