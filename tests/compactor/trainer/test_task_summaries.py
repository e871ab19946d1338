from __future__ import annotations

import numpy as np
import pytest

from compactor.errors import UsageError
from compactor.trainer.tasks import open_task
from tests.compactor.trainer.task_fakes import bart_ids, bart_like, evaluate, table

ROWS = [
    {"document": "what is it ? it is the film .", "summary": "the film"},
    {"document": "it is not a good film .", "summary": "a bad film"},
]


def summarize(rows=ROWS, train=None, *, tokenizer=None, max_length=12, target_length=6):
    return open_task(
        "summarization",
        table(*(rows if train is None else train), name="train.jsonl"),
        table(*rows),
        tokenizer or bart_like(),
        labels=None,
        max_length=max_length,
        target_length=target_length,
    )


def test_a_document_goes_in_and_its_summary_is_the_label():
    data = summarize()
    assert list(data.train) == [
        {"input_ids": bart_ids("<s> what is it ? it is the film . </s>"), "labels": bart_ids("<s> the film </s>")},
        {"input_ids": bart_ids("<s> it is not a good film . </s>"), "labels": bart_ids("<s> a bad film </s>")},
    ]
    assert (data.task, data.metric, data.label_names, data.notes) == ("summarization", "rouge2", (), ())
    assert data.references == (("the film",), ("a bad film",))


@pytest.mark.parametrize("names", [("article", "highlights"), ("Text", "Target"), ("document", "summary")])
def test_columns_by_their_usual_names(names):
    rows = [{names[0]: "it is", names[1]: "it"}, {names[0]: "a film", names[1]: "film"}]
    data = summarize(rows)
    assert data.train[1] == {"input_ids": bart_ids("<s> a film </s>"), "labels": bart_ids("<s> film </s>")}


def test_long_documents_and_summaries_are_cut_and_counted():
    data = summarize(max_length=10, target_length=4)
    assert data.train[0]["input_ids"] == bart_ids("<s> what is it ? it is the film </s>")
    assert data.train[1]["labels"] == bart_ids("<s> a bad </s>")
    assert data.notes == (
        "1 of 2 training documents were cut to 10 tokens.",
        "1 of 2 training summaries were cut to 4 tokens.",
        "1 of 2 evaluation documents were cut to 10 tokens.",
        "1 of 2 evaluation summaries were cut to 4 tokens.",
    )
    assert data.references[1] == ("a bad film",)  # what is scored against is not cut


def test_summaries_are_tokenized_as_what_a_model_writes():
    tokenizer = bart_like()
    targets = []
    tokenizer._switch_to_target_mode = lambda: targets.append(True)  # where some tokenizers change the language
    summarize(tokenizer=tokenizer)
    assert len(targets) == 2  # of training and of evaluation


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_end_in_what_the_loss_does_not_look_at(side):
    data = summarize(tokenizer=bart_like(padding_side=side))
    batch = data.collate(data.train)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["labels"].tolist() == [[*bart_ids("<s> the film </s>"), -100], bart_ids("<s> a bad film </s>")]
    padding = bart_ids("<pad> <pad>")
    ids = batch["input_ids"][1].tolist()
    assert (ids[:2] if side == "left" else ids[-2:]) == padding
    assert batch["attention_mask"][1].sum() == 9


def test_summaries_are_read_without_padding_and_special_tokens():
    data = summarize()
    ids = np.array(
        [
            [*bart_ids("</s> <s> the film </s>"), -100, -100],
            bart_ids("</s> <s> a good film </s> <pad>"),
        ]
    )
    assert data.read(ids) == data.read((ids, None)) == ["the film", "a good film"]
    assert ids[0, -1] == -100  # what was given is not changed


def test_scores_and_their_errors():
    data = summarize()
    ids = np.array([[*bart_ids("<s> the film </s>"), -100], bart_ids("<s> a good film </s>")])
    scores = data.score(ids, None)
    assert scores == pytest.approx({"rouge1": (1 + 2 / 3) / 2, "rouge2": 0.5, "rougeL": (1 + 2 / 3) / 2})
    judged = data.judge(ids)
    assert {name: each["value"] for name, each in judged.items()} == pytest.approx(scores)
    assert judged["rouge2"]["se"] == pytest.approx(0.5)
    assert {each["n"] for each in judged.values()} == {2}


def test_an_empty_summary_scores_nothing():
    data = summarize()
    assert data.score(np.array([bart_ids("</s> <s> </s>"), [-100] * 3]), None) == dict.fromkeys(
        ("rouge1", "rouge2", "rougeL"), 0.0
    )


@pytest.mark.parametrize("predictions", [np.zeros((2, 4, 15)), np.zeros((2, 4)), np.zeros((3, 4), np.int64)])
def test_logits_and_other_counts_are_our_mistake(predictions):
    with pytest.raises(ValueError, match="expected token ids of 2 summaries"):
        summarize().read(predictions)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"summary": "a"}, "there is no column of documents: none of document, article, text"),
        ({"text": "a"}, "there is no column of summaries: none of summary, highlights, target"),
        ({"text": "a", "summary": None}, "'summary' of line 1 is not text: null"),
    ],
)
def test_columns_that_are_missing_or_not_text_are_refused(row, message):
    with pytest.raises(UsageError, match=message):
        summarize([row, row])


def test_what_trainer_gathers_is_read(tmp_path):
    pytest.importorskip("accelerate")
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=15,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        max_position_embeddings=32,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
        init_std=1.0,  # so that it has something to say
    )
    model = BartForConditionalGeneration(config).eval()
    data = summarize([*ROWS, {"document": "it", "summary": "film"}])
    options = {"predict_with_generate": True, "generation_max_length": 7, "generation_num_beams": 1}
    predictions, labels = evaluate(data, model, tmp_path, **options)
    alone = []
    for feature in data.evaluation:
        batch = data.collate([feature])
        del batch["labels"]
        ids = model.generate(**batch, max_length=7, num_beams=1, do_sample=False)
        alone.append(data.tokenizer.decode(ids[0], skip_special_tokens=True).strip())
    assert data.read(predictions) == alone
    assert any(alone)
    assert data.score(predictions, labels).keys() == {"rouge1", "rouge2", "rougeL"}
