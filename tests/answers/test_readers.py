"""Answers read off the same outputs as transformers' pipelines read them, on random outputs and odd tokenizers."""

from __future__ import annotations

import itertools
import json
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.pipelines.text_classification import TextClassificationPipeline
from transformers.pipelines.token_classification import AggregationStrategy, TokenClassificationPipeline

from compactor.runtime.answers import Answered, Refused
from compactor.runtime.encoding import Encoded
from compactor.runtime.reading import AGGREGATIONS, ReadingOptions
from compactor.runtime.reading.entities import EntityReader
from compactor.runtime.reading.fills import FillReader
from compactor.runtime.reading.labels import LabelReader
from compactor.runtime.reading.spans import AnswerReader
from compactor.runtime.tokenizer import TokenizerSettings

SEEDS = st.integers(0, 2**32 - 1)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "who", "?", "a", "b", "x", "##y", "##z", "the", ".", "-"]


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _with_template(tokenizer, "[CLS]", "[SEP]", 2, 3)


def byte_level() -> Tokenizer:
    alphabet = {character: i + 4 for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    special = {"<unk>": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3}
    merged = {"Ġ.": 300, "Ġa": 301, "ab": 302}
    merges = [("Ġ", "."), ("Ġ", "a"), ("a", "b")]
    tokenizer = Tokenizer(models.BPE({**special, **alphabet, **merged}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_template(tokenizer, "[CLS]", "[SEP]", 1, 2)


def unigram() -> Tokenizer:
    pieces = ["<unk>", "[CLS]", "[SEP]", "[MASK]", "▁", "▁a", "a", "b", "▁the", "x", "yz", ".", "▁."]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _with_template(tokenizer, "[CLS]", "[SEP]", 1, 2)


def _with_template(tokenizer: Tokenizer, first: str, last: str, *ids: int) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=list(zip((first, last), ids, strict=True)),
    )
    tokenizer.add_special_tokens(["[CLS]", "[SEP]", "[MASK]"])
    return tokenizer


KINDS = {"wordpiece": (wordpiece(), "[UNK]"), "bytes": (byte_level(), "<unk>"), "unigram": (unigram(), "<unk>")}


def pipeline(kind: type, **attributes: object) -> object:
    """A pipeline with nothing but what its ``postprocess`` reads."""
    made = kind.__new__(kind)
    made.framework = "pt"
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def config_of(**fields: object) -> types.SimpleNamespace:
    return types.SimpleNamespace(config=types.SimpleNamespace(**fields))


# Labels


@pytest.mark.parametrize("problem", [None, "single_label_classification", "multi_label_classification", "regression"])
@settings(deadline=None, max_examples=30)
@given(labels=st.integers(1, 5), scale=st.sampled_from([0.1, 3.0, 12.0]), seed=SEEDS)
def test_labels(problem, labels, scale, seed):
    logits = (np.random.default_rng(seed).standard_normal(labels) * scale).astype(np.float32)
    names = {i: f"name {i}" for i in range(labels)}
    fields = {"problem_type": problem, "num_labels": labels, "id2label": names, "function_to_apply": None}
    reference = pipeline(TextClassificationPipeline, model=config_of(**fields), function_to_apply=None)
    outputs = {"logits": torch.tensor(logits)[None]}
    best = reference.postprocess(outputs, top_k=1, _legacy=True)
    every = reference.postprocess(outputs, top_k=None, _legacy=False)
    artefact = types.SimpleNamespace(
        config={"problem_type": problem}, labels=tuple(names.values()), folder=Path("nowhere")
    )
    answer = LabelReader(artefact)(None, [{"logits": logits}])
    assert answer.label == best["label"]
    assert answer.score == pytest.approx(best["score"], rel=1e-5, abs=1e-40)
    expected = {each["label"]: each["score"] for each in every}
    assert answer.to_json()["scores"] == pytest.approx(expected, rel=1e-5, abs=1e-40)


def test_labels_of_one_name_keep_their_scores():
    artefact = types.SimpleNamespace(config={}, labels=("same", "same", "other"), folder=Path("nowhere"))
    answer = LabelReader(artefact)(None, [{"logits": np.array([1.0, 2.0, 0.5], np.float32)}])
    assert sum(answer.to_json()["scores"].values()) == pytest.approx(1)
    assert len(answer.to_json()["scores"]) == 3


# Entities


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A folder that names the unknown token of a tokenizer, by its kind."""
    folders = {}
    for kind, (_, unknown) in KINDS.items():
        folders[kind] = tmp_path_factory.mktemp(kind)
        (folders[kind] / "tokenizer_config.json").write_text(json.dumps({"unk_token": {"content": unknown}}))
    return folders


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@settings(deadline=None, max_examples=25)
@given(
    text=st.sampled_from(["abc xyz the a.", "a-b xyz", "  a 🙂 abé x", "thea.bx", "a   b", "東京 a"]),
    names=st.sampled_from(
        [
            ["O", "B-X", "I-X", "I-Y"],
            ["o", "E-X", "S-X", "L-Y-Z"],
            ["B-O", "I-a-b", "-", "B-"],
            ["LABEL_0", "LABEL_1", "O"],
        ]
    ),
    seed=SEEDS,
)
def test_entities(folder_of, kind, aggregation, text, names, seed):
    tokenizer, unknown = KINDS[kind]
    encoding = tokenizer.encode(text)
    logits = (np.random.default_rng(seed).standard_normal((len(encoding), len(names))) * 2).astype(np.float32)
    reference = pipeline(
        TokenClassificationPipeline,
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown),
        model=config_of(id2label=dict(enumerate(names))),
    )
    outputs = {
        "logits": torch.tensor(logits)[None],
        "sentence": text,
        "input_ids": torch.tensor([encoding.ids]),
        "offset_mapping": torch.tensor([encoding.offsets]),
        "special_tokens_mask": torch.tensor([encoding.special_tokens_mask]),
        "is_last": True,
    }
    with pytest.warns(UserWarning) if _warns(kind, aggregation, encoding) else _silence():
        expected = reference.postprocess([outputs], AggregationStrategy[aggregation.upper()])
    artefact = types.SimpleNamespace(labels=tuple(names), folder=folder_of[kind])
    reader = EntityReader(artefact, types.SimpleNamespace(tokenizer=tokenizer), ReadingOptions(aggregation))
    found = reader(Encoded((encoding,), text), [{"logits": logits}]).entities
    assert [(each.label, each.start, each.end) for each in found] == [
        (each.get("entity_group", each.get("entity")), each["start"], each["end"]) for each in expected
    ]
    assert [each.score for each in found] == pytest.approx([float(each["score"]) for each in expected], rel=1e-4)


def _warns(kind, aggregation, encoding):
    heuristic = kind != "wordpiece" and aggregation not in ("none", "simple")
    return heuristic and not all(encoding.special_tokens_mask)


def _silence():
    import contextlib

    return contextlib.nullcontext()


# Questions


@pytest.mark.skipif(transformers.__version__ >= "5", reason="transformers 5 has no question-answering pipeline")
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60)
@given(
    no_answer=st.booleans(),
    longest=st.sampled_from([1, 3, 15]),
    scale=st.sampled_from([0.5, 3.0, 30.0]),
    windows=st.integers(1, 3),
    seed=SEEDS,
)
def test_answers_to_questions(kind, no_answer, longest, scale, windows, seed):
    from transformers.pipelines.question_answering import QuestionAnsweringPipeline

    tokenizer, unknown = KINDS[kind]
    context = " ".join(["a", "b", "ayz", "the", ".", "A", "xy"] * 5)
    cut = Tokenizer.from_str(tokenizer.to_str())
    whole = len(cut.encode("a ?", context))
    cut.enable_truncation(whole if windows == 1 else whole // windows + 8, strategy="only_second", stride=2)
    first = cut.encode("a ?", context)
    encodings = [first, *first.overflowing]
    rng = np.random.default_rng(seed)
    logits = [[(rng.standard_normal(len(each)) * scale).astype(np.float32) for _ in "se"] for each in encodings]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown, cls_token="[CLS]", pad_token="[SEP]")
    reference = pipeline(QuestionAnsweringPipeline, tokenizer=fast)
    outputs = []
    for encoding, (start, end) in zip(encodings, logits, strict=True):
        outside = [
            0 if sequence == 1 or token == fast.cls_token_id else 1
            for sequence, token in zip(encoding.sequence_ids, encoding.ids, strict=True)
        ]
        outputs.append(
            {
                "start": torch.tensor(start)[None],
                "end": torch.tensor(end)[None],
                "p_mask": np.array([outside]),
                "attention_mask": torch.ones(1, len(encoding), dtype=torch.long),
                "encoding": encoding,
                "example": types.SimpleNamespace(context_text=context),
                "input_ids": torch.tensor([encoding.ids]),
            }
        )
    expected = reference.postprocess(outputs, handle_impossible_answer=no_answer, max_answer_len=longest)
    reader = AnswerReader(ReadingOptions(answer_tokens=longest, no_answer=no_answer), classifier=fast.cls_token_id)
    found = reader(
        Encoded(tuple(encodings), context), [{"start_logits": start, "end_logits": end} for start, end in logits]
    )
    assert found.score == pytest.approx(expected["score"], rel=1e-4, abs=1e-12)
    assert (found.text.lower(), found.end - found.start) == (
        expected["answer"].lower(),
        expected["end"] - expected["start"],
    )


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, longest=st.integers(1, 6), scale=st.sampled_from([0.5, 3.0]))
def test_the_answer_is_the_likeliest_span(seed, longest, scale):
    """Against every span of one window, where no two read the same."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[C]", "q", *"abcdefgh"])}, "[C]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[C] $A", pair="[C] $A:0 $B:1", special_tokens=[("[C]", 0)]
    )
    context = " ".join("abcdefgh")
    window = tokenizer.encode("q", context)
    rng = np.random.default_rng(seed)
    start, end = (rng.standard_normal(len(window)).astype(np.float32) * scale for _ in "se")
    inside = [0, *range(2, 10)]
    starts, ends = (np.exp(each[inside]) / np.exp(each[inside]).sum() for each in (start, end))
    spans = {
        (first, last): starts[first] * ends[last]
        for first, last in itertools.product(range(1, 9), repeat=2)
        if 0 <= last - first < longest
    }
    (first, last), score = max(spans.items(), key=lambda pair: pair[1])
    outputs = [{"start_logits": start, "end_logits": end}]
    item = Encoded((window,), context)
    found = AnswerReader(ReadingOptions(answer_tokens=longest), classifier=0)(item, outputs)
    assert found.text == " ".join("abcdefgh"[first - 1 : last])
    assert found.score == pytest.approx(score, rel=1e-5)
    none = AnswerReader(ReadingOptions(answer_tokens=longest, no_answer=True), classifier=0)(item, outputs)
    assert none == (found if score >= starts[0] * ends[0] else Answered("", none.score, 0, 0))
    assert none.score == pytest.approx(max(score, starts[0] * ends[0]), rel=1e-5)


# Masks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cleans", [False, True])
def test_tokens_are_written_as_the_pipeline_writes_them(kind, cleans, tmp_path):
    """Every token of a vocabulary: special ones, spaces and punctuation too."""
    tokenizer, unknown = KINDS[kind]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unknown, mask_token="[MASK]", clean_up_tokenization_spaces=cleans
    )
    size = tokenizer.get_vocab_size()
    real = cleans and not (kind == "bytes" and transformers.__version__ >= "5")
    encoder = types.SimpleNamespace(tokenizer=fast.backend_tokenizer, settings=TokenizerSettings(cleans_up=real))
    read = FillReader(types.SimpleNamespace(folder=tmp_path), encoder, ReadingOptions(fills=size))
    encoding = fast.backend_tokenizer.encode("a [MASK]")
    known = sorted(tokenizer.get_vocab().values())
    logits = np.full((len(encoding), max(known) + 1), -np.float32(1e4))
    logits[:, known] = np.linspace(3, 1, size, dtype=np.float32)
    found = read(Encoded((encoding,), "a [MASK]"), [{"logits": logits}]).fills[0]
    assert [each.token for each in found] == [fast.decode([number]) for number in known]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value, tmp_path):
    tokenizer, _ = KINDS["wordpiece"]
    encoder = types.SimpleNamespace(tokenizer=tokenizer, settings=TokenizerSettings())
    artefact = types.SimpleNamespace(folder=tmp_path, labels=("O", "B"), config={})
    single, pair = tokenizer.encode("a [MASK]"), tokenizer.encode("who", "a b")

    def spoiled(*shape: int) -> np.ndarray:
        array = np.ones(shape, np.float32)
        array[-2 if len(shape) == 1 else slice(None), ...] = value
        return array

    options = ReadingOptions()
    given = {
        "labels": (LabelReader(artefact), single, {"logits": spoiled(2)}),
        "entities": (EntityReader(artefact, encoder, options), single, {"logits": spoiled(len(single), 2)}),
        "fills": (FillReader(artefact, encoder, options), single, {"logits": spoiled(len(single), 15)[::-1]}),
        "spans": (
            AnswerReader(options, classifier=2),
            pair,
            {"start_logits": spoiled(len(pair)), "end_logits": np.ones(len(pair), np.float32)},
        ),
    }
    for name, (read, window, outputs) in given.items():
        answer = read(Encoded((window,), "a b"), [outputs])
        assert isinstance(answer, Refused) and "finite" in answer.reason, name
