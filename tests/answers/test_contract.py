"""The contract of ``docs/runtime.md``, setting by setting: honoured as the reference honours it, refused, or inert.

Each row of its table has a probe here, which changes that one setting of a small folder, or names the test that does.
A probe of a setting that is honoured also sees that the reference's answers change: it cannot pass by ignoring both.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import sentence_transformers
import torch

import compactor
import compactor.runtime
from compactor.errors import ModelDirectoryError
from tests.answers.references import SENTENCE_FOLDERS, agree, ours, reference, save_roberta, save_scorer
from tests.consumers.folders import save_text_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, example_checkpoint: Path) -> Callable[[str], Path]:
    """A folder by its kind: the name of a class, or a kind of sentence-transformers folder."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            home = tmp_path_factory.mktemp(kind)
            torch.manual_seed(1)
            if kind in SENTENCE_FOLDERS:
                plain, build = SENTENCE_FOLDERS[kind]
                build(make(plain), home / "masked")
            elif kind == "RobertaForSequenceClassification":
                save_roberta(home / "masked", example_checkpoint)
            elif kind == "one output":
                shutil.copytree(make("BertForSequenceClassification"), home / "masked")
                save_scorer(home / "masked")
            else:
                save_text_model(home / "masked", kind, example_checkpoint)
            made[kind] = home / "masked"
        return made[kind]

    return make


# The probes


@dataclasses.dataclass(frozen=True)
class Probe:
    """One change of one setting.

    Attributes:
        kind: Of the folder that is changed.
        value: What the setting becomes; or a function that changes the folder.
        changes: Whether the reference's answers change; None where that depends on its version.
        judge: The kind whose reference judges, where it is another.
        tolerance: Of the numbers.
        six: Whether sentence-transformers 6 brought it.
    """

    kind: str
    value: Any
    changes: bool | None = True
    judge: str | None = None
    tolerance: float = 3e-4
    six: bool = False


BERT, TAGS, FILL = "BertForSequenceClassification", "BertForTokenClassification", "BertForMaskedLM"
CONFIG, TOKENS, FAST, SPECIAL = "config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"
SENTENCES, ENCODER = "config_sentence_transformers.json", "sentence_bert_config.json"
POOLING, DENSE, NORM = "Pooling/config.json", "Dense/config.json", "LayerNorm/config.json"
SPLADE, MASK = "SpladePooling/config.json", "MultiVectorMask/config.json"
TANH = "torch.nn.modules.activation.Tanh"


def in_fast(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / FAST, **changes)


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**content, **changes}), encoding="utf-8")


def _normalizer(folder: Path) -> None:
    content = json.loads((folder / FAST).read_text("utf-8"))
    steps = [{"type": "Replace", "pattern": {"String": "film"}, "content": "story"}, content["normalizer"]]
    edit(folder / FAST, normalizer={"type": "Sequence", "normalizers": steps})


def _added(folder: Path) -> None:
    content = json.loads((folder / FAST).read_text("utf-8"))
    token = {"id": content["model"]["vocab"]["film"], "content": "it", "special": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    edit(folder / FAST, added_tokens=[*content["added_tokens"], {**token, **flags}])


def _decoder_entry(folder: Path) -> None:
    number = json.loads((folder / FAST).read_text("utf-8"))["model"]["vocab"]["film"]
    flags = {"lstrip": True, "rstrip": False, "normalized": False, "single_word": False, "special": False}
    edit(folder / TOKENS, added_tokens_decoder={str(number): {"content": "film", **flags}})


def _truncation(folder: Path) -> None:
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    edit(folder / FAST, truncation=truncation)


def _one_name(folder: Path) -> None:
    """The mask token is named in this file alone, and is another than [MASK]."""
    config = json.loads((folder / TOKENS).read_text("utf-8"))
    config.pop("mask_token", None)
    (folder / TOKENS).write_text(json.dumps(config))
    edit(folder / SPECIAL, mask_token="[MASK]")


HONOURED: dict[tuple[str, str], Probe] = {
    (CONFIG, "problem_type"): Probe(BERT, "multi_label_classification"),
    (CONFIG, "id2label"): Probe(BERT, {"1": "good", "0": "bad"}),
    (CONFIG, "hidden_act"): Probe(BERT, "relu"),
    (CONFIG, "layer_norm_eps"): Probe(BERT, 0.5),
    (CONFIG, "pad_token_id"): Probe("RobertaForSequenceClassification", 0),
    (CONFIG, "sbert_ce_default_activation_function"): Probe("one output", TANH, judge="one output by CrossEncoder"),
    (CONFIG, "sentence_transformers"): Probe(
        "one output", {"activation_fn": TANH, "version": "5.0"}, judge="one output by CrossEncoder"
    ),
    (TOKENS, "model_input_names"): Probe(BERT, ["input_ids", "attention_mask"]),
    (TOKENS, "split_special_tokens"): Probe(BERT, True, changes=None),
    (TOKENS, "do_lower_case"): Probe(TAGS, False, changes=None),
    (TOKENS, "strip_accents"): Probe(TAGS, False, changes=None),
    (TOKENS, "tokenize_chinese_chars"): Probe(TAGS, False, changes=None),
    (TOKENS, "tokenizer_class"): Probe(TAGS, "DistilBertTokenizer", changes=None),
    (TOKENS, "added_tokens_decoder"): Probe(TAGS, _decoder_entry, changes=None),
    (TOKENS, "clean_up_tokenization_spaces"): Probe(FILL, True, changes=None),
    (TOKENS, "unk_token"): Probe(TAGS, "film", changes=None),
    (SPECIAL, "mask_token"): Probe(FILL, _one_name, changes=None),
    (SPECIAL, "additional_special_tokens"): Probe(TAGS, ["film"], changes=None),
    (FAST, "normalizer"): Probe(BERT, _normalizer, changes=None),  # transformers 5 makes its own for BERT
    (FAST, "pre_tokenizer"): Probe(BERT, {"type": "WhitespaceSplit"}, changes=None),
    (FAST, "post_processor"): Probe(BERT, None, changes=None),
    (FAST, "added_tokens"): Probe(BERT, _added, changes=None),
    (FAST, "decoder"): Probe(FILL, {"type": "WordPiece", "prefix": "a", "cleanup": False}, changes=None),
    (ENCODER, "do_lower_case"): Probe("vectors", True, changes=None),
    (SENTENCES, "prompts"): Probe("vectors", {"query": "other : ", "document": ""}, changes=False),
    (SENTENCES, "default_prompt_name"): Probe("vectors", "query"),
    (SENTENCES, "truncate_dim"): Probe("vectors", 5),
    (SENTENCES, "activation_fn"): Probe("scores", TANH),
    (SENTENCES, "max_active_dims"): Probe("sparse", 3, six=True),
    (POOLING, "pooling_mode"): Probe("vectors", "lasttoken"),
    (POOLING, "include_prompt"): Probe("vectors", False, changes=False),
    (DENSE, "activation_function"): Probe("vectors", "torch.nn.modules.activation.ReLU"),
    (DENSE, "module_output_name"): Probe("vectors", "sentence_embedding", changes=False),
    (SPLADE, "pooling_strategy"): Probe("sparse", "sum"),
    (SPLADE, "activation_function"): Probe("sparse", "log1p_relu"),
    (ENCODER, "query_length"): Probe("token vectors", 4),
    (ENCODER, "document_length"): Probe("token vectors", 4),
    (ENCODER, "query_expansion"): Probe("token vectors", {"strategy": "fixed", "length": 20}),
    (MASK, "skiplist_words"): Probe("token vectors", ["film", ",", "("]),
    (MASK, "skiplist_tasks"): Probe(
        "token vectors", lambda folder: edit(_file(folder, MASK), skiplist_words=["film"], skiplist_tasks=["query"])
    ),
    (MASK, "keep_only_token_ids"): Probe("token vectors", [1000, 1001, 101], changes=None),
}

INERT: dict[tuple[str, str], Probe] = {
    (CONFIG, "label2id"): Probe(BERT, {"worse": 0, "better": 1}),
    (CONFIG, "function_to_apply"): Probe(BERT, "none"),
    (CONFIG, "output_hidden_states"): Probe(BERT, True),
    (CONFIG, "output_attentions"): Probe(BERT, True),
    (CONFIG, "return_dict"): Probe(BERT, False),
    (CONFIG, "use_cache"): Probe(BERT, True),
    (CONFIG, "chunk_size_feed_forward"): Probe(BERT, 1),
    (CONFIG, "classifier_dropout"): Probe(BERT, 0.5),
    (CONFIG, "auto_map"): Probe(BERT, {"AutoModelForSequenceClassification": "modeling_mine.Mine"}),
    (CONFIG, "dtype"): Probe(BERT, "float16"),
    (FAST, "truncation"): Probe(BERT, _truncation),
    (SENTENCES, "similarity_fn_name"): Probe("vectors", "euclidean"),
    (SENTENCES, "activation_fn without modules.json"): Probe(
        "one output", lambda folder: edit(folder / SENTENCES, model_type="CrossEncoder", activation_fn=TANH)
    ),
    (SENTENCES, "__version__"): Probe("vectors", {"sentence_transformers": "2.2.0"}),
    (SENTENCES, "keep_in_fp32_modules"): Probe("scores", ["0.model.classifier"]),
    (ENCODER, "unpad_inputs"): Probe("vectors", False),
    (DENSE, "new_setting"): Probe("vectors", 7),
}

REFUSED: dict[tuple[str, str], Probe] = {
    (CONFIG, "is_decoder"): Probe(BERT, True),
    (CONFIG, "quantization_config"): Probe(BERT, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    (ENCODER, "transformer_task"): Probe("vectors", "text-generation"),
    (ENCODER, "modality_config"): Probe("vectors", {"text": {"method": "get_text_features"}}),
    (ENCODER, "module_output_name"): Probe("vectors", "scores"),
    (ENCODER, "processing_kwargs"): Probe("vectors", {"text": {"max_length": 3}}),
    (ENCODER, "model_args"): Probe("vectors", {"num_hidden_layers": 1}),
    (ENCODER, "tokenizer_args"): Probe("vectors", {"do_lower_case": False}),
    (ENCODER, "config_args"): Probe("vectors", {"hidden_act": "relu"}),
    (ENCODER, "tokenizer_name_or_path"): Probe("vectors", "elsewhere"),
    (SENTENCES, "model_type"): Probe("vectors", "BirdEncoder"),
    (POOLING, "new_setting"): Probe("vectors", 7),
    (NORM, "new_setting"): Probe("vectors", 7),
    ("modules.json", "type"): Probe("vectors", lambda folder: _rename_last(folder, "sentence_transformers.models.CNN")),
}

# Settings whose tests stand elsewhere: file, key, the function that tests it.
ELSEWHERE: dict[tuple[str, str], str] = {
    (
        CONFIG,
        "max_position_embeddings",
    ): "tests.compactor.importing.test_limits.test_the_longest_text_is_answered_and_no_longer_one",
    (CONFIG, "pruned_heads"): "tests.compactor.checkpoint.test_pruned_heads",
    (CONFIG, "tie_word_embeddings"): "tests.compactor.exporting.test_export_families",
    (CONFIG, "prefix"): "tests.answers.test_slow_tokenizers.test_settings_of_writing",
    (CONFIG, "task_specific_params"): "tests.compactor.exporting.test_export_decoders_refused",
    (TOKENS, "model_max_length"): "tests.compactor.companions.test_tokenizer.test_the_limit_is_the_smallest_that_binds",
    (TOKENS, "padding_side"): (
        "tests.compactor.companions.test_tokenizer.test_a_question_comes_last_where_padding_is_on_the_left"
    ),
    (TOKENS, "truncation_side"): (
        "tests.compactor.companions.test_tokenizer.test_what_is_too_long_is_cut_as_the_reference_cuts"
    ),
    (TOKENS, "chat_template"): (
        "tests.answers.test_sentence_refusals.test_texts_that_would_become_messages_are_refused"
    ),
    (ENCODER, "max_seq_length"): "tests.compactor.companions.test_tokenizer.test_the_limit_is_the_smallest_that_binds",
    (DENSE, "bias"): "tests.answers.test_sentence_answers.test_projections",
    (DENSE, "use_residual"): "tests.answers.test_sentence_answers.test_residual_projections",
    (DENSE, "module_input_name"): "tests.answers.test_sentence_answers.test_a_projection_of_tokens",
    (POOLING, "pooling_mode_*"): "tests.answers.test_sentence_answers.test_flags_of_old_folders",
    ("router_config.json", "structure"): "tests.answers.test_sentence_answers.test_routes",
    ("router_config.json", "route_mappings"): "tests.answers.test_sentence_answers.test_routes",
    ("modules.json", "path"): (
        "tests.compactor.companions.test_copying.test_copies_the_modules_of_sentence_transformers"
    ),
    (
        "generation_config.json",
        "all that generate reads",
    ): "tests.answers.test_slow_tokenizers.test_settings_of_writing",
    ("generation_config.json", "num_return_sequences"): (
        "tests.answers.test_slow_tokenizers.test_settings_that_no_text_can_be_written_by"
    ),
    **{
        ("preprocessor_config.json", key): (
            "tests.compactor.companions.test_image_processor.test_pixels_are_the_references"
        )
        for key in (
            *("image_processor_type", "size", "resample", "crop_pct", "crop_size", "rescale_factor", "image_mean"),
            "do_flip_channel_order",
        )
    },
    ("preprocessor_config.json", "do_pad"): (
        "tests.compactor.companions.test_image_processor.test_what_cannot_be_honoured_is_refused_by_name"
    ),
}


def _file(folder: Path, name: str) -> Path:
    """A file by its name; that of a module by the module's."""
    module, _, rest = name.partition("/")
    return next(folder.glob(f"*_{module}")) / rest if rest else folder / name


def _rename_last(folder: Path, kind: str) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[-1]["type"] = kind
    (folder / "modules.json").write_text(json.dumps(modules))


def prepare(bases: Callable[[str], Path], probe: Probe, key: tuple[str, str], home: Path) -> Path:
    if (probe.six or probe.kind == "token vectors") and sentence_transformers.__version__ < "6":
        pytest.skip("sentence-transformers has it since version 6")
    folder = home / "masked"
    shutil.copytree(bases(probe.kind), folder)
    if callable(probe.value):
        probe.value(folder)
    else:
        edit(_file(folder, key[0]), **{key[1]: probe.value})
    return folder


def names(keys: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{file}:{key}" for file, key in keys]


def first_of_each_file_is_quick(keys: Iterable[tuple[str, str]]) -> list[Any]:
    first = {key[0]: key for key in reversed([*keys])}
    marks = {key: () if first[key[0]] == key else pytest.mark.slow for key in keys}
    return [pytest.param(key, marks=mark, id=":".join(key)) for key, mark in marks.items()]


@pytest.mark.parametrize("key", first_of_each_file_is_quick(HONOURED))
def test_honoured_as_the_reference_does(key, bases, tmp_path):
    probe = HONOURED[key]
    folder = prepare(bases, probe, key, tmp_path)
    judge = probe.judge or probe.kind
    expected = reference(judge, folder)
    found = ours(judge if judge in ("scores", "one output by CrossEncoder") else probe.kind, folder, tmp_path / "out")
    assert agree(found, expected, probe.tolerance), (found, expected)
    if probe.changes is not None:
        assert agree(expected, reference(probe.kind, bases(probe.kind)), probe.tolerance) != probe.changes


@pytest.mark.parametrize("key", first_of_each_file_is_quick(INERT))
def test_inert_in_the_reference_and_here(key, bases, tmp_path):
    probe = INERT[key]
    folder = prepare(bases, probe, key, tmp_path)
    expected = reference(probe.kind, bases(probe.kind))
    assert agree(ours(probe.kind, folder, tmp_path / "out"), expected, probe.tolerance)


@pytest.mark.parametrize("key", REFUSED, ids=names(list(REFUSED)))
def test_refused_by_name(key, bases, tmp_path):
    probe = REFUSED[key]
    folder = prepare(bases, probe, key, tmp_path)
    with pytest.raises(ModelDirectoryError) as caught:
        compactor.export(folder, tmp_path / "out", precision=["fp32"])
    said = str(caught.value)
    assert key[1] in said or "CNN" in said or "decoder" in said
    assert caught.value.todo
    assert not (tmp_path / "out").exists()


def documented() -> dict[tuple[str, str], str]:
    """The rows of the table in the docs: file and key, and what becomes of it."""
    text = (ROOT / "docs" / "runtime.md").read_text(encoding="utf-8")
    section = text.partition("\n## What of a folder changes an answer\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \| (honoured|refused|inert)\b", section, re.MULTILINE)
    return {(file, key): status for file, key, status in rows}


def test_the_table_of_the_docs_is_the_list_that_is_walked():
    walked = dict.fromkeys(HONOURED, "honoured") | dict.fromkeys(INERT, "inert") | dict.fromkeys(REFUSED, "refused")
    table = documented()
    assert {key: table[key] for key in table if key not in ELSEWHERE} == walked
    assert set(ELSEWHERE) <= set(table)


@pytest.mark.parametrize("key", ELSEWHERE, ids=names(list(ELSEWHERE)))
def test_what_is_tested_elsewhere_is_tested_there(key):
    path = ELSEWHERE[key]
    module, _, name = path.rpartition(".") if ".test_" in path.partition(".test_")[2] else (path, "", "")
    assert importlib.util.find_spec(module) is not None
    if name:
        assert callable(getattr(importlib.import_module(module), name))
