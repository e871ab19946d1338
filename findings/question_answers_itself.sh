#!/usr/bin/env bash
# transformers 4.57.6, torch 2.13.0; Python 3.11.
#
# The question-answering pipeline masks the question, so that an answer comes from the context. Where the tokenizer pads
# on the left (padding_side "left", as XLNet's) it puts the context first and masks nothing: the mask is written as
# `tok != 1 if question_first else 0`, which is 0 for every token. A span of the question wins where the model likes it,
# and its token numbers are then read as places in the context. Here the logits prefer the second word of the question.
#
# Seen: the answer, and its place in the context "red green blue"
#   right green (4, 9)
#   left green (4, 9)
# With padding on the left no token of the context has a high score: the "green" is the context's second word, at the
# place of the question's second word.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==4.57.6
"$work/venv/bin/python" - 2> /dev/null <<'PY' | tee "$work/seen"
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForQuestionAnswering, PreTrainedTokenizerFast, pipeline

words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "which", "colour", "red", "green", "blue"]
made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
made.pre_tokenizer = pre_tokenizers.Whitespace()
made.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
)


class Prefers(BertForQuestionAnswering):
    """Its logits are high at one word alone."""

    word = 0

    def forward(self, input_ids, **others):
        logits = torch.where(input_ids == self.word, 9.0, 0.0)
        return {"start_logits": logits, "end_logits": logits}


config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
for side, word in (("right", "green"), ("left", "colour")):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", padding_side=side
    )
    model = Prefers(config)
    model.word = words.index(word)
    answer = pipeline("question-answering", model=model, tokenizer=tokenizer)(
        question="which colour", context="red green blue"
    )
    print(side, answer["answer"], (answer["start"], answer["end"]))
PY
diff "$work/seen" - << 'SEEN'
right green (4, 9)
left green (4, 9)
SEEN
