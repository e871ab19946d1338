"""Every family and every task through a whole run; what is written opens in stock transformers with its zeros."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from compactor.checkpoint.pruning_record import read_record_file
from compactor.trainer.config import PruneConfig
from compactor.trainer.pruning import prune
from tests.compactor.trainer.tiny import BAD, GOOD, OTHER, write_model, write_sentences, write_tokenizer
from tests.slow import slow_after_first

VOCABULARY = 4 + len((*GOOD, *BAD, *OTHER))
FAST = {"steps": 6, "batch_size": 8, "eval_steps": 6, "score_learning_rate": 0.5, "learning_rate": 1e-3}
ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
}
BART = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 40,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 3,
    "forced_eos_token_id": 3,
}


def write_family(folder: Path, family: str) -> Path:
    import transformers as hf

    torch.manual_seed(0)
    match family:
        case "roberta":
            model = hf.RobertaForSequenceClassification(hf.RobertaConfig(**ENCODER))
        case "electra":
            model = hf.ElectraForSequenceClassification(hf.ElectraConfig(embedding_size=8, **ENCODER))
        case "distilbert":
            sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 40}
            config = hf.DistilBertConfig(vocab_size=VOCABULARY, pad_token_id=0, **sizes)
            model = hf.DistilBertForSequenceClassification(config)
        case "bart":
            model = hf.BartForSequenceClassification(hf.BartConfig(id2label={0: "bad", 1: "good"}, **BART))
        case "bart-summaries":
            model = hf.BartForConditionalGeneration(hf.BartConfig(**BART))
        case "bert-questions":
            model = hf.BertForQuestionAnswering(hf.BertConfig(**ENCODER))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def check_zeros(folder: Path, auto_class: str) -> None:
    """The model that stock transformers open has zeros where the masks have them, and nowhere else."""
    import transformers

    model = getattr(transformers, auto_class).from_pretrained(folder)
    weights = dict(model.named_parameters())
    record = read_record_file(folder)
    assert record.matrices
    for matrix in record.matrices:
        weight = weights[f"{matrix.module}.weight"]
        assert torch.equal(weight != 0, matrix.expand(record.live[matrix.group], tuple(weight.shape)))


@pytest.mark.parametrize("family", slow_after_first(["bart", "roberta", "electra", "distilbert"]))
def test_families_are_pruned_by_structure(tmp_path, family):
    model = write_family(tmp_path / "model", family)
    train = write_sentences(tmp_path / "train.tsv", 40)
    config = PruneConfig(target_density=0.5, attention_block="4x4", **FAST)
    result = prune(model, train, train, tmp_path / "out", config=config)

    final = result.record["final"]
    assert final["density"] == pytest.approx(0.5, abs=0.06)
    kinds = [(layer["stack"], layer["kind"]) for layer in final["layers"]]
    encoder = [("encoder", "attention"), ("encoder", "feed_forward")]
    decoder = [("decoder", "attention"), ("decoder", "cross_attention"), ("decoder", "feed_forward")]
    assert kinds == (encoder + decoder if family == "bart" else encoder)
    check_zeros(tmp_path / "out", "AutoModelForSequenceClassification")


def test_questions(tmp_path):
    model = write_family(tmp_path / "model", "bert-questions")
    paragraphs = [
        {
            "context": f"the film was {word} a story",
            "qas": [
                {"id": str(i), "question": "was the film", "answers": [{"text": word, "answer_start": 13}]},
            ],
        }
        for i, word in enumerate((*GOOD, *BAD))
    ]
    data = tmp_path / "questions.json"
    data.write_text(json.dumps({"version": "1.1", "data": [{"title": "films", "paragraphs": paragraphs}]}))
    config = PruneConfig(max_length=20, stride=4, target_density=0.6, attention_block="4x4", **FAST)
    result = prune(model, data, data, tmp_path / "out", config=config)

    assert result.record["task"] == "question-answering"
    assert set(result.record["final"]["metrics"]) == {"squad_f1", "exact_match"}
    assert all(row["distillation_loss"] is not None for row in result.record["log"])  # MODEL taught itself
    check_zeros(tmp_path / "out", "AutoModelForQuestionAnswering")


def test_summaries(tmp_path):
    model = write_family(tmp_path / "model", "bart-summaries")
    data = write_summaries(tmp_path / "summaries.jsonl")
    settings = {"max_length": 16, "target_length": 8, "beams": 2, "target_density": 0.6, "attention_block": "4x4"}
    result = prune(model, data, data, tmp_path / "out", config=PruneConfig(method="hybrid-nt", **settings, **FAST))

    assert result.record["task"] == "summarization"
    assert set(result.record["final"]["metrics"]) == {"rouge1", "rouge2", "rougeL"}
    check_zeros(tmp_path / "out", "AutoModelForSeq2SeqLM")


def test_a_tokenizer_of_no_model_s_class_is_written_for_both_versions_of_transformers(tmp_path):
    from transformers import AutoTokenizer

    from compactor.trainer.folders import save_inputs

    write_tokenizer(tmp_path / "written")
    save_inputs(AutoTokenizer.from_pretrained(tmp_path / "written"), tmp_path / "ours")
    stated = json.loads((tmp_path / "ours" / "tokenizer_config.json").read_text())
    assert stated["tokenizer_class"] == "PreTrainedTokenizerFast"
    opened = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert opened("the film was good")["input_ids"][0] == opened.cls_token_id == 2


def write_summaries(path: Path) -> Path:
    rows = [{"document": f"the {word} film was a {word} story", "summary": f"{word} film"} for word in (*GOOD, *BAD)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def generation_settings(folder: Path) -> dict[str, object]:
    content = json.loads((folder / "generation_config.json").read_text())
    if content["eos_token_id"] == [3]:  # so the Trainer of transformers 4 puts it
        content["eos_token_id"] = 3
    return content


def test_a_summarizer_keeps_its_generation_settings_and_its_tied_embeddings(tmp_path):
    from safetensors.torch import load_file
    from transformers import AutoModelForSeq2SeqLM, GenerationConfig

    model = write_family(tmp_path / "model", "bart-summaries")
    own = GenerationConfig(
        decoder_start_token_id=3, eos_token_id=3, pad_token_id=0, max_length=9, num_beams=3, length_penalty=2.0
    )
    own.save_pretrained(model)
    data = write_summaries(tmp_path / "summaries.jsonl")
    settings = {"max_length": 16, "target_length": 8, "beams": 2, "target_density": 0.6, "attention_block": "4x4"}
    out = prune(model, data, data, tmp_path / "out", config=PruneConfig(method="hybrid-nt", **settings, **FAST)).path

    for folder in (out, out / "checkpoints" / "checkpoint-6"):  # generation in evaluations changed neither
        assert generation_settings(folder) == generation_settings(model)
    assert not {"lm_head.weight", "model.encoder.embed_tokens.weight"} & load_file(out / "model.safetensors").keys()
    opened = AutoModelForSeq2SeqLM.from_pretrained(out)
    shared = opened.get_input_embeddings().weight
    assert opened.lm_head.weight is shared and opened.model.decoder.embed_tokens.weight is shared


def test_summaries_are_no_longer_than_the_model_s_positions(tmp_path):
    from transformers import BartForConditionalGeneration

    model = write_family(tmp_path / "model", "bart-summaries")  # 40 positions; 142 tokens are the default
    endless = BartForConditionalGeneration.from_pretrained(model)
    endless.final_logits_bias[0, 3] = -1e4  # never ends a summary by itself
    endless.save_pretrained(model)
    data = write_summaries(tmp_path / "summaries.jsonl")
    result = prune(model, data, data, tmp_path / "out", config=PruneConfig(method="dense", beams=1, **FAST))
    assert result.record["final"]["metrics"]["rouge1"]["n"] == 6


def test_an_evaluation_that_generates_makes_masked_weights_once(tmp_path, monkeypatch):
    from compactor.trainer.masks import MaskedWeight
    from compactor.trainer.trainer import PruningTrainer

    calls: list[int] = []
    forward, evaluate = MaskedWeight.forward, PruningTrainer.evaluate

    def counted(self, weight):
        calls[-1:] = [calls[-1] + 1] if calls else []
        return forward(self, weight)

    def evaluated(self, *args, **kwargs):
        calls.append(0)
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(PruningTrainer, "evaluate", evaluated)
    monkeypatch.setattr(MaskedWeight, "forward", counted)
    model = write_family(tmp_path / "model", "bart-summaries")
    data = write_summaries(tmp_path / "summaries.jsonl")
    settings = {"max_length": 16, "target_length": 8, "attention_block": "4x4"}
    prune(model, data, data, tmp_path / "out", config=PruneConfig(method="hybrid-nt", **settings, **FAST))
    assert calls == [16]  # each of 12 matrices of attention and 4 of feed-forward, for all tokens of all summaries


def test_a_pre_trained_model_gets_a_head_and_needs_a_teacher_with_the_data_s_labels(tmp_path):
    from transformers import BertConfig, BertModel

    from compactor.errors import UsageError

    torch.manual_seed(0)
    BertModel(BertConfig(**ENCODER)).save_pretrained(tmp_path / "plain")
    write_tokenizer(tmp_path / "plain")
    train = write_sentences(tmp_path / "train.tsv", 40)
    with pytest.raises(UsageError, match="not fine-tuned"):
        prune(tmp_path / "plain", train, train, tmp_path / "out", config=PruneConfig(**FAST))
    result = prune(tmp_path / "plain", train, train, tmp_path / "nt", config=PruneConfig(method="hybrid-nt", **FAST))
    assert json.loads((result.path / "config.json").read_text())["architectures"] == ["BertForSequenceClassification"]
    teacher = write_model(tmp_path / "teacher")
    result = prune(tmp_path / "plain", train, train, tmp_path / "taught", config=PruneConfig(**FAST), teacher=teacher)
    assert result.record["teacher"] == "teacher"
