"""An artefact as a function: the answers are the masked model's, each in its place, and a bad item harms no other."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer

import compactor.runtime
from compactor.runtime.answers import Answered, Classified, Embedded, Filled, Refused, Tagged, Written
from compactor.runtime.errors import ArtefactError

TEXTS = [
    "a charming and often affecting journey .",
    "unflinchingly bleak and desperate",
    "it 's slow -- very , very slow , and it goes on for longer than anybody could wish it to go on .",
    "good",
    "allows us to hope that nolan is poised to embark a major career as a commercial yet inventive filmmaker .",
]
CONTEXT = "the film was made in paris by a young director . it won a prize . " * 12


@pytest.fixture(scope="module")
def classifier(text_artefact):
    return compactor.runtime.load(text_artefact("BertForSequenceClassification")[1], precision="fp32", threads=1)


def reference(masked, class_name, *texts):
    """The tokenizer's encoding of one item and what PyTorch makes of it, without padding."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(masked)
    feeds = tokenizer(*texts, return_tensors="pt")
    with torch.inference_mode():
        return tokenizer, feeds, getattr(transformers, class_name).from_pretrained(masked).float().eval()(**feeds)


def test_labels_are_the_masked_models(text_artefact, classifier):
    masked, _ = text_artefact("BertForSequenceClassification")
    answers = classifier(TEXTS)
    assert all(isinstance(answer, Classified) for answer in answers)
    for text, answer in zip(TEXTS, answers, strict=True):
        _, _, outputs = reference(masked, "BertForSequenceClassification", text)
        expected = outputs.logits.softmax(-1)[0].numpy()
        np.testing.assert_allclose(answer.scores, expected, atol=1e-5)
        assert answer.label == answer.labels[expected.argmax()]
        assert answer.score == pytest.approx(float(expected.max()), abs=1e-5)
        assert answer.to_json()["scores"].keys() == set(answer.labels)


def test_int8_by_token_answers_a_text_as_among_63_others(token_artefact, film_texts):
    """And close to fp32; one scale for the whole batch does neither."""
    model = compactor.runtime.load(token_artefact, precision="int8", threads=1, max_batch=64)
    together, alone = model(film_texts), [model([text])[0] for text in film_texts]
    assert [answer.label for answer in together] == [answer.label for answer in alone]
    np.testing.assert_allclose(
        [answer.scores for answer in together], [answer.scores for answer in alone], rtol=0, atol=1e-6
    )
    exact = compactor.runtime.load(token_artefact, precision="fp32", threads=1)(film_texts)
    assert np.abs(np.array([a.scores for a in together]) - [a.scores for a in exact]).max() < 0.06


def test_pairs_are_encoded_as_pairs(text_artefact, classifier):
    masked, _ = text_artefact("BertForSequenceClassification")
    _, _, outputs = reference(masked, "BertForSequenceClassification", TEXTS[0], TEXTS[1])
    expected = outputs.logits.softmax(-1)[0].numpy()
    for pair in ((TEXTS[0], TEXTS[1]), [TEXTS[0], TEXTS[1]], {"text": TEXTS[0], "text_pair": TEXTS[1]}):
        np.testing.assert_allclose(classifier([pair])[0].scores, expected, atol=1e-5)
    assert np.abs(classifier(TEXTS[0]).scores - expected).max() > 1e-3


def test_a_single_text_gets_a_single_answer(classifier):
    assert isinstance(classifier(TEXTS[0]), Classified)
    assert isinstance(classifier(""), Refused)
    assert classifier([]) == []


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("\x00", "no token is left"),
        (3, "got int"),
        (None, "got nothing"),
        (b"bytes", "got bytes"),
        ("\ud800", "Unicode"),
        (("a",), "got 1 parts"),
        (("a", "b", "c"), "got 3 parts"),
        (("a", None), "got nothing"),
        ({"sentence": "a"}, "expected 'text' in the item, found \"sentence\""),
        ("long " * 200, r"too long: \d+ tokens, and the model takes 128"),
    ],
    ids=repr,
)
def test_a_bad_item_is_refused_and_the_rest_answered(classifier, bad, reason):
    answers = classifier([TEXTS[0], bad, TEXTS[1]])
    assert isinstance(answers[1], Refused)
    assert re.search(reason, answers[1].reason)
    assert answers[1].to_json() == {"error": answers[1].reason}
    for answer, text in zip(answers[::2], TEXTS[:2], strict=True):
        np.testing.assert_allclose(answer.scores, classifier(text).scores, atol=1e-5)


def test_truncation_answers_what_is_too_long(text_artefact):
    masked, artefact = text_artefact("BertForSequenceClassification")
    model = compactor.runtime.load(artefact, precision="fp32", threads=1, truncate=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(masked)
    feeds = tokenizer("long " * 200, truncation=True, max_length=128, return_tensors="pt")
    with torch.inference_mode():
        module = transformers.BertForSequenceClassification.from_pretrained(masked).float().eval()
        expected = module(**feeds).logits.softmax(-1)[0].numpy()
    np.testing.assert_allclose(model("long " * 200).scores, expected, atol=1e-5)


def test_order_survives_every_batching(text_artefact):
    """Distinct texts, batches of every kind: each answer is its own text's."""
    _, artefact = text_artefact("BertForSequenceClassification")
    texts = [" ".join(TEXTS[i % 5].split()[: 1 + i % 17]) + f" number {i}" for i in range(61)]
    alone = compactor.runtime.load(artefact, precision="fp32", threads=1, max_batch=1)(texts)
    for max_batch, batch_tokens in ((64, 4096), (7, 4096), (64, 40), (64, 1)):
        model = compactor.runtime.load(
            artefact, precision="fp32", threads=1, max_batch=max_batch, batch_tokens=batch_tokens
        )
        found = [answer.scores for answer in model(texts)]
        np.testing.assert_allclose(found, [answer.scores for answer in alone], atol=1e-5)
    assert len({float(answer.scores[0]) for answer in alone}) == len(texts)


def test_batches_keep_to_their_budget(text_artefact, monkeypatch):
    _, artefact = text_artefact("BertForSequenceClassification")
    model = compactor.runtime.load(artefact, precision="fp32", threads=1, max_batch=4, batch_tokens=64)
    shapes = []
    collate = model._runner._collate

    def watch(windows):
        feeds = collate(windows)
        shapes.append(feeds["input_ids"].shape)
        return feeds

    monkeypatch.setattr(model._runner, "_collate", watch)
    model(TEXTS * 4)
    assert sum(rows for rows, _ in shapes) == len(TEXTS) * 4
    assert all(rows <= 4 and rows * length <= 64 for rows, length in shapes)
    assert len(shapes) > 5
    # Longest first, each batch of like lengths.
    assert [length for _, length in shapes] == sorted((length for _, length in shapes), reverse=True)


def test_threads_share_one_model(text_artefact):
    """Fifty calls from eight threads give what one thread gives."""
    _, artefact = text_artefact("BertForSequenceClassification")
    model = compactor.runtime.load(artefact, precision="fp32", threads=1)
    expected = [answer.scores for answer in model(TEXTS)]
    failures = []

    def work():
        for _ in range(7):
            try:
                np.testing.assert_allclose([answer.scores for answer in model(TEXTS)], expected, atol=1e-5)
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_entities_are_the_tagged_words(text_artefact):
    masked, artefact = text_artefact("BertForTokenClassification")
    tokenizer, _feeds, outputs = reference(masked, "BertForTokenClassification", TEXTS[0])
    labels = outputs.logits[0].argmax(-1).tolist()
    answer = compactor.runtime.load(artefact, precision="fp32", threads=1, aggregation="first")(TEXTS[0])
    assert isinstance(answer, Tagged)
    # This model's labels are LABEL_0 and LABEL_1: no "O", so every word is in an entity of its first token's label.
    words = tokenizer(TEXTS[0]).word_ids()
    firsts = [i for i, word in enumerate(words) if word is not None and words[i - 1] != word]
    runs = [labels[i] for n, i in enumerate(firsts) if n == 0 or labels[firsts[n - 1]] != labels[i]]
    assert [entity.label for entity in answer.entities] == [f"LABEL_{label}" for label in runs]
    assert "".join(entity.text for entity in answer.entities).replace(" ", "") == TEXTS[0].replace(" ", "")
    assert all(TEXTS[0][entity.start : entity.end] == entity.text for entity in answer.entities)
    assert all(0.5 <= entity.score <= 1 for entity in answer.entities)


def test_bio_tags_and_outside(text_artefact, tmp_path):
    """The same model with BIO names: ``O`` is left out, ``B-`` and ``I-`` become the entity's name."""
    masked, artefact = text_artefact("BertForTokenClassification")
    shutil.copytree(artefact, tmp_path / "bio")
    config = json.loads((tmp_path / "bio/config.json").read_text())
    config["id2label"] = {"0": "O", "1": "B-LOC"}
    (tmp_path / "bio/config.json").write_text(json.dumps(config))
    tokenizer, _, outputs = reference(masked, "BertForTokenClassification", TEXTS[2])
    words = tokenizer(TEXTS[2]).word_ids()
    tagged = sum(
        outputs.logits[0, i].argmax() == 1 for i, word in enumerate(words) if word is not None and words[i - 1] != word
    )
    answer = compactor.runtime.load(tmp_path / "bio", precision="fp32", threads=1, aggregation="first")(TEXTS[2])
    assert 0 < tagged < len(set(words)) - 1
    assert [entity.label for entity in answer.entities] == ["LOC"] * int(tagged)  # each B- begins a new one


def test_answers_are_spans_of_the_context(text_artefact):
    masked, artefact = text_artefact("BertForQuestionAnswering")
    context = "the film was made in paris by a young director ."
    tokenizer, _feeds, outputs = reference(masked, "BertForQuestionAnswering", "where was it made ?", context)
    encoding = tokenizer("where was it made ?", context, return_offsets_mapping=True)
    inside = [i for i, sequence in enumerate(encoding.sequence_ids(0)) if sequence == 1]
    allowed = [0, *inside]
    start, end = outputs.start_logits[0, allowed].softmax(-1), outputs.end_logits[0, allowed].softmax(-1)
    best = max(
        (float(start[1 + i] * end[1 + j]), inside[i], inside[j])
        for i in range(len(inside))
        for j in range(i, len(inside))
    )
    none = float(start[0] * end[0])
    # Both forms of the item, with an answer and with the choice of none; no two spans of this text read the same.
    for no_answer in (False, True):
        model = compactor.runtime.load(artefact, precision="fp32", threads=1, no_answer=no_answer)
        _check_answer(model, context, encoding, best, none if no_answer else 0.0)


def _check_answer(model, context, encoding, best, none):
    for item in ({"question": "where was it made ?", "context": context}, ("where was it made ?", context)):
        answer = model([item])[0]
        assert isinstance(answer, Answered)
        if none > best[0]:
            assert (answer.text, answer.start, answer.end) == ("", 0, 0)
        else:
            offsets = encoding["offset_mapping"]
            assert (answer.start, answer.end) == (offsets[best[1]][0], offsets[best[2]][1])
            assert answer.text == context[answer.start : answer.end]
        assert answer.score == pytest.approx(max(best[0], none), rel=1e-3)


def test_a_long_context_is_read_in_windows(text_artefact):
    _, artefact = text_artefact("BertForQuestionAnswering")
    model = compactor.runtime.load(artefact, precision="fp32", threads=1)
    (encoded,) = model.encode([("who made it ?", CONTEXT)])
    assert len(encoded.windows) > 1 and encoded.tokens <= 128
    covered = {span for window in encoded.windows for span in window.offsets}
    whole = Tokenizer.from_file(str(artefact / "tokenizer.json")).encode(CONTEXT)
    assert set(whole.offsets) - {(0, 0)} <= covered
    answer = model([("who made it ?", CONTEXT)])[0]
    assert CONTEXT[answer.start : answer.end] == answer.text


def test_questions_that_cannot_be_asked(text_artefact):
    _, artefact = text_artefact("BertForQuestionAnswering")
    model = compactor.runtime.load(artefact, precision="fp32", threads=1)
    good = ("who made it ?", "a director made it .")
    answers = model(["who ?", good, {"question": "who ?"}, ("who " * 150, "he"), ("who ?", "")])
    assert [isinstance(answer, Refused) for answer in answers] == [True, False, True, True, True]
    assert "question" in answers[0].reason and "context" in answers[2].reason
    assert answers[1] == model([good])[0]


@pytest.mark.parametrize(("question", "context", "answered"), [(20, 200, True), (140, 200, False), (100, 10, True)])
def test_how_long_a_question_may_be(text_artefact, question, context, answered):
    """As long as it fits beside its context; where that is cut, as long as windows go on from one another."""
    _, artefact = text_artefact("BertForQuestionAnswering")
    model = compactor.runtime.load(artefact, precision="fp32", threads=1)
    short = ("who made it ?", "a director made it .")
    first, second = model([("a " * question, "film " * context), short])
    assert isinstance(first, Answered if answered else Refused)
    assert answered or f"{question} tokens" in first.reason
    assert second == model([short])[0]


def test_a_prompt_of_half_a_character_is_refused(text_artefact):
    _, artefact = text_artefact("BertModel")
    with pytest.raises(ValueError, match="not valid Unicode"):
        compactor.runtime.load(artefact, precision="fp32", threads=1)(["a film"], prompt="\ud800")


def test_no_answer_wins_only_where_every_window_says_so():
    """Of two windows one is sure that it holds nothing, the other holds the answer."""
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    from compactor.runtime.encoding import Encoded
    from compactor.runtime.reading import ReadingOptions
    from compactor.runtime.reading.spans import AnswerReader

    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(["[C]", "[U]", "q", "a", "b", "c"])}, "[U]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[C] $A", pair="[C] $A:0 $B:1", special_tokens=[("[C]", 0)])
    windows = tuple(tokenizer.encode("q", text) for text in ("a b", "a c"))
    item = Encoded(windows, "a c")

    def logits(position):
        values = np.full(4, -4.0, np.float32)
        values[position] = 4.0
        return {"start_logits": values, "end_logits": values}

    read = AnswerReader(ReadingOptions(no_answer=True), classifier=0)
    assert read(item, [logits(0), logits(3)]).text == "c"
    assert read(item, [logits(0), logits(0)]).text == ""
    assert read(item, [logits(2), logits(3)]).text in ("a", "c")
    assert read(item, [logits(1), logits(3)]).text == "c"  # the question's own tokens are no answer


def test_masks_are_filled(text_artefact):
    masked, artefact = text_artefact("BertForMaskedLM")
    text = "a [MASK] film , and a [MASK] cast"
    tokenizer, feeds, outputs = reference(masked, "BertForMaskedLM", text)
    model = compactor.runtime.load(artefact, precision="fp32", threads=1)
    answer = model(text)
    assert isinstance(answer, Filled) and len(answer.fills) == 2
    positions = (feeds["input_ids"][0] == tokenizer.mask_token_id).nonzero()[:, 0]
    for position, fills in zip(positions, answer.fills, strict=True):
        scores, ids = outputs.logits[0, position].softmax(-1).topk(5)
        assert [fill.token for fill in fills] == [tokenizer.decode([int(i)]) for i in ids]
        np.testing.assert_allclose([fill.score for fill in fills], scores.numpy(), rtol=1e-3)
    refused = model(["no mask here", text])
    assert isinstance(refused[0], Refused) and "[MASK]" in refused[0].reason
    assert isinstance(refused[1], Filled)


@pytest.mark.parametrize("pooling", [None, "mean", "cls", "max"])
@pytest.mark.parametrize("normalize", [False, True])
def test_vectors_are_pooled_as_the_folder_says(text_artefact, tmp_path, pooling, normalize):
    masked, artefact = text_artefact("BertModel")
    folder = tmp_path / "vectors"
    shutil.copytree(artefact, folder)
    if pooling is not None:
        modules = [{"type": "sentence_transformers.models.Transformer", "path": ""}]
        modules.append({"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"})
        if normalize:
            modules.append({"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"})
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        name = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}[pooling]
        flags = {f"pooling_mode_{other}": other == name for other in ("mean_tokens", "cls_token", "max_tokens")}
        (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 32, **flags}))
    model = compactor.runtime.load(folder, precision="fp32", threads=1)
    for text, answer in zip(TEXTS, model(TEXTS), strict=True):
        assert isinstance(answer, Embedded) and answer.vector.dtype == np.float32
        _, _, outputs = reference(masked, "BertModel", text)
        states = outputs.last_hidden_state[0]
        expected = {"cls": states[0], "max": states.max(0).values}.get(pooling, states.mean(0))
        if pooling is not None and normalize:
            expected = expected / expected.norm()
        np.testing.assert_allclose(answer.vector, expected.numpy(), atol=2e-4)


def test_unknown_pooling_is_refused(text_artefact, tmp_path):
    _, artefact = text_artefact("BertModel")
    folder = tmp_path / "vectors"
    shutil.copytree(artefact, folder)
    first = {"type": "sentence_transformers.models.Transformer", "path": ""}
    for kind, says in (("models.CNN", "'CNN' is not built"), ("models.Dense", "activation_function")):
        (folder / "1").mkdir(exist_ok=True)
        (folder / "1/config.json").write_text(json.dumps({"activation_function": "torch.nn.Softshrink"}))
        modules = [first, {"type": f"sentence_transformers.{kind}", "path": "1"}]
        (folder / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(ArtefactError, match=says):
            compactor.runtime.load(folder)


def test_an_encoder_decoder_writes(pruned_bart, tmp_path):
    """A tokenizer of words beside the small BART: what it writes is what ``generate`` gives."""
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    folder = tmp_path / "writer"
    shutil.copytree(pruned_bart.path, folder)
    config = pruned_bart.module.config
    vocabulary = {f"w{i}": i for i in range(config.vocab_size)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w3"))
    tokenizer.pre_tokenizer = Whitespace()
    bos, eos = f"w{config.bos_token_id}", f"w{config.eos_token_id}"
    tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=[(bos, config.bos_token_id), (eos, config.eos_token_id)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    texts = ["w10 w11 w12 w13", "w20 w21", "w30 w31 w32 w33 w34 w35 w36"]
    answers = compactor.runtime.load(folder, precision="fp32", threads=1)(texts)
    assert all(isinstance(answer, Written) for answer in answers)
    for text, answer in zip(texts, answers, strict=True):
        ids = torch.tensor([tokenizer.encode(text).ids])
        with torch.inference_mode():
            expected = pruned_bart.module.generate(input_ids=ids, attention_mask=torch.ones_like(ids))
        assert answer.text == tokenizer.decode(expected[0].tolist(), skip_special_tokens=True).strip()


def test_loading_and_answering_takes_no_torch(text_artefact):
    _, artefact = text_artefact("BertForSequenceClassification")
    code = (
        "import sys, compactor.runtime\n"
        f"print(compactor.runtime.load({str(artefact)!r})('a film').label)\n"
        "assert not {'torch', 'transformers', 'onnx'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("negative", "positive")


def test_numbers_out_of_range(text_artefact):
    _, artefact = text_artefact("BertForSequenceClassification")
    for options in ({"max_batch": 0}, {"batch_tokens": 0}, {"threads": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            compactor.runtime.load(artefact, **options)


def test_a_token_that_the_model_does_not_know_is_refused(text_artefact, tmp_path):
    _, artefact = text_artefact("BertForSequenceClassification")
    shutil.copytree(artefact, tmp_path / "foreign")
    tokenizer = Tokenizer.from_file(str(artefact / "tokenizer.json"))
    tokenizer.add_tokens(["zanzibar"])
    tokenizer.save(str(tmp_path / "foreign/tokenizer.json"))
    model = compactor.runtime.load(tmp_path / "foreign", precision="fp32", threads=1)
    answers = model([TEXTS[0], "in zanzibar", TEXTS[1]])
    assert isinstance(answers[1], Refused) and "the model knows 13458" in answers[1].reason
    assert [isinstance(answer, Classified) for answer in answers] == [True, False, True]


def test_a_damaged_tokenizer_is_said(text_artefact, tmp_path):
    """No tokenizer, a damaged one: an error of loading that names the folder."""
    _, artefact = text_artefact("BertForSequenceClassification")
    folder = tmp_path / "broken"
    shutil.copytree(artefact, folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ArtefactError, match="cannot be opened"):
        compactor.runtime.load(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ArtefactError, match="there is no tokenizer"):
        compactor.runtime.load(folder)
