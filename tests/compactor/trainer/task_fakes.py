"""Tiny tokenizers and tables for the tests of the tasks, and a Trainer that evaluates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compactor.evaluation.datafiles import Table

WORDS = ("a", "bad", "film", "good", "is", "it", "not", "the", "what", "?", ".")
BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
BART = ("<s>", "<pad>", "</s>", "<unk>")


def bert_like(**options: Any) -> Any:
    """Whole words, token types, and [CLS] A [SEP] B [SEP]."""
    from tokenizers import processors

    template = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return _of_words(BERT, template, pad=0, unk=1, cls=2, sep=3, **{"model_input_names": names, **options})


def bart_like(**options: Any) -> Any:
    """Whole words, no token types, and <s> A </s> </s> B </s>."""
    from tokenizers import processors

    template = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = ["input_ids", "attention_mask"]
    return _of_words(BART, template, bos=0, pad=1, eos=2, unk=3, model_input_names=names, **options)


def roberta_like(**options: Any) -> Any:
    """Bytes, whose spaces belong to the word behind them, no token types, and <s> A </s> </s> B </s>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate((*BART, *sorted(pre_tokenizers.ByteLevel.alphabet())))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.add_special_tokens(list(BART))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
        **options,
    )


def _of_words(special: Sequence[str], template: Any, **options: Any) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    roles = {role: options.pop(role) for role in ("bos", "eos", "pad", "unk", "cls", "sep") if role in options}
    vocabulary = {token: i for i, token in enumerate((*special, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special[roles["unk"]]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = template
    tokenizer.add_special_tokens(list(special))
    tokens = {f"{role}_token": special[i] for role, i in roles.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens, **options)


def bert_ids(text: str) -> list[int]:
    """The token ids of ``[CLS] the film [SEP]``."""
    return [(*BERT, *WORDS).index(token) for token in text.split()]


def bart_ids(text: str) -> list[int]:
    """The token ids of ``<s> the film </s>``."""
    return [(*BART, *WORDS).index(token) for token in text.split()]


def table(*rows: Mapping[str, Any], name: str = "data.jsonl") -> Table:
    return Table(Path(name), rows, [f"line {i + 1}" for i in range(len(rows))])


def evaluate(data: Any, model: Any, folder: Path, **options: Any) -> tuple[Any, Any]:
    """What Trainer gathers of a model on the evaluation data, in batches of two."""
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

    settings = Seq2SeqTrainingArguments(
        output_dir=str(folder),
        per_device_eval_batch_size=2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    trainer = Seq2SeqTrainer(model=model, args=settings, data_collator=data.collate)
    output = trainer.predict(data.evaluation)
    return output.predictions, output.label_ids
