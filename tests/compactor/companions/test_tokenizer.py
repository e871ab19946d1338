"""What an artefact's tokenizer does to a text is what the checkpoint's does, wherever the checkpoint says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.normalizers import Lowercase

from compactor.companions.tokenizer import read_tokenizer
from compactor.errors import ModelDirectoryError
from compactor.runtime.encoding import Encoded, TextEncoder
from compactor.runtime.errors import ArtefactError
from compactor.tasks import TASKS

TEXTS = [
    "A gripping film",
    "İstanbul, Ünïcödé and 東京 film",
    " two  spaces\tand a tab ",
    "a [MASK] and a [SEP] film",
    "don't stop -- zanzibar <mask>",
]
PAIRS = [("A gripping film", "what a bore"), ("what", "A Film " * 3)]


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**content, **changes}), encoding="utf-8")


@pytest.fixture
def source(tmp_path: Path, example_checkpoint: Path) -> Path:
    """A folder with the example's tokenizer, as BERT has it."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(example_checkpoint / name, folder / name)
    return folder


def carried(source: Path, tmp_path: Path, task: str = "text-classification", **options: Any) -> TextEncoder:
    """The tokenizer of ``source``, written to an artefact and opened there."""
    tokenizer = read_tokenizer(source, TASKS[task])
    assert tokenizer is not None
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    shutil.copy(source / "config.json", out)
    config = json.loads((source / "config.json").read_text())
    tokenizer.write(out, max_tokens=options.pop("max_tokens", 128), config=config)
    limit = json.loads((out / "tokenizer_config.json").read_text())["model_max_length"]
    return TextEncoder(out, task=task, limit=options.pop("limit", limit), **options)


def assert_same(encoder: TextEncoder, reference: Any, items: list[Any], **options: Any) -> None:
    found = encoder.encode(items)
    for item, each in zip(items, found, strict=True):
        assert isinstance(each, Encoded), each
        expected = reference(
            *((item,) if isinstance(item, str) else item), return_token_type_ids=True, verbose=False, **options
        )
        assert each.windows[0].ids == expected["input_ids"], item
        assert each.windows[0].type_ids == expected["token_type_ids"], item


def set_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def _cased(folder: Path) -> None:
    set_json(folder / "tokenizer.json", lambda content: content["normalizer"].update(lowercase=False))
    edit(folder / "tokenizer_config.json", do_lower_case=False)


def _only_vocabulary(folder: Path) -> None:
    vocabulary = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").unlink()


def _token_elsewhere(folder: Path) -> None:
    set_json(folder / "tokenizer_config.json", lambda content: content.pop("mask_token", None))
    edit(folder / "special_tokens_map.json", mask_token="[MASK]")


VARIANTS: dict[str, Callable[[Path], None]] = {
    "as it is": lambda folder: None,
    "cased": _cased,
    "do_lower_case of the config against the file": lambda folder: edit(
        folder / "tokenizer_config.json", do_lower_case=False
    ),
    "strip_accents": lambda folder: edit(folder / "tokenizer_config.json", strip_accents=False),
    "tokenize_chinese_chars": lambda folder: edit(folder / "tokenizer_config.json", tokenize_chinese_chars=False),
    "vocab.txt alone": _only_vocabulary,
    "added tokens": lambda folder: edit(
        folder / "tokenizer_config.json",
        added_tokens_decoder={
            "13458": {"content": "zanzibar", "lstrip": True, "rstrip": False, "normalized": False, "special": False}
        },
    ),
    "special tokens in a file of their own": _token_elsewhere,
    "additional special tokens": lambda folder: edit(
        folder / "special_tokens_map.json", additional_special_tokens=["film"]
    ),
    "split_special_tokens": lambda folder: edit(folder / "tokenizer_config.json", split_special_tokens=True),
    "truncation and padding in tokenizer.json": lambda folder: set_json(
        folder / "tokenizer.json",
        lambda content: content.update(
            truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
            padding={
                "strategy": {"Fixed": 16},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "[PAD]",
            },
        ),
    ),
    "a class by its old name": lambda folder: edit(
        folder / "tokenizer_config.json", tokenizer_class="DistilBertTokenizer"
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_tokens_are_the_references(name: str, source: Path, tmp_path: Path) -> None:
    VARIANTS[name](source)
    reference = transformers.AutoTokenizer.from_pretrained(source)
    encoder = carried(source, tmp_path)
    assert_same(encoder, reference, [*TEXTS, *PAIRS])


def test_the_variants_tell_something(source: Path, tmp_path: Path) -> None:
    """A variant whose tokens are those of the plain folder would prove nothing."""
    plain = transformers.AutoTokenizer.from_pretrained(source)(TEXTS)["input_ids"]
    different = {}
    for name in ("cased", "added tokens", "split_special_tokens"):
        folder = tmp_path / name.replace(" ", "-")
        shutil.copytree(source, folder)
        VARIANTS[name](folder)
        different[name] = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS)["input_ids"] != plain
    assert all(different.values()), different


def _byte_level(folder: Path) -> None:
    tokenizer = Tokenizer(
        models.BPE({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4, **_bytes(5)}, [], unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    fast = transformers.RobertaTokenizerFast(tokenizer_object=tokenizer, add_prefix_space=True)
    fast.save_pretrained(folder)


def _bytes(first: int) -> dict[str, int]:
    return {letter: first + i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


def _pieces(folder: Path) -> None:
    pieces = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "▁",
        "▁a",
        "▁A",
        "film",
        "▁film",
        "▁what",
        "▁bore",
        *map(chr, range(33, 127)),
    ]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0 - i / 100) for i, piece in enumerate(pieces)], unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    ).save_pretrained(folder)


def _esm(folder: Path) -> None:
    (folder / "vocab.txt").write_text(
        "\n".join(["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWC", "<mask>"])
    )
    edit(folder / "tokenizer_config.json", tokenizer_class="EsmTokenizer")


@pytest.mark.parametrize("build", [_byte_level, _pieces, _esm], ids=["byte-level", "sentencepiece", "esm"])
def test_other_kinds_of_tokenizers(build: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    build(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    items: list[Any] = ["LAGVS", "M K T"] if build is _esm else [TEXTS[0], TEXTS[2], *PAIRS]
    assert_same(carried(folder, tmp_path), transformers.AutoTokenizer.from_pretrained(folder), items)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("item", [TEXTS[0] + " and on and on", PAIRS[1], ("A gripping film by a director", "what")])
def test_what_is_too_long_is_cut_as_the_reference_cuts(side: str, item: Any, source: Path, tmp_path: Path) -> None:
    edit(source / "tokenizer_config.json", truncation_side=side, model_max_length=7)
    reference = transformers.AutoTokenizer.from_pretrained(source)
    assert_same(carried(source, tmp_path, truncate=True), reference, [item], truncation=True)
    assert "too long" in carried(source, tmp_path).encode([item])[0].reason  # type: ignore[union-attr]


def test_a_question_comes_last_where_padding_is_on_the_left(source: Path, tmp_path: Path) -> None:
    edit(source / "tokenizer_config.json", padding_side="left")
    encoder = carried(source, tmp_path, task="question-answering")
    (found,) = encoder.encode([("what ?", "A gripping film")])
    reference = transformers.AutoTokenizer.from_pretrained(source)("A gripping film", "what ?")
    assert encoder.context_first and found.windows[0].ids == reference["input_ids"]  # type: ignore[union-attr]


@pytest.mark.parametrize("names", [["input_ids", "attention_mask"], ["input_ids", "token_type_ids", "attention_mask"]])
def test_token_types_reach_the_model_where_the_tokenizer_says_so(
    names: list[str], source: Path, tmp_path: Path
) -> None:
    edit(source / "tokenizer_config.json", model_input_names=names)
    assert carried(source, tmp_path).settings.token_types == ("token_type_ids" in names)


@pytest.mark.parametrize(
    ("stated", "sentences", "max_tokens", "limit"),
    [
        pytest.param(64, None, 128, 64, id="the-tokenizer-binds"),
        pytest.param(64.0, None, 128, 64, id="as-a-float"),
        pytest.param(10**30, None, 62, 62, id="the-model-binds"),
        pytest.param(None, None, 62, 62, id="null"),
        pytest.param(64, 32, 128, 32, id="sentence-transformers-binds"),
        pytest.param(64, 100, 128, 100, id="sentence-transformers-decides"),
        pytest.param(64, 500, 128, 128, id="and-the-model-binds-it"),
    ],
)
def test_the_limit_is_the_smallest_that_binds(
    stated: Any, sentences: int | None, max_tokens: int, limit: int, source: Path, tmp_path: Path
) -> None:
    edit(source / "tokenizer_config.json", model_max_length=stated)
    if sentences is not None:
        (source / "modules.json").write_text("[]")
        edit(source / "sentence_bert_config.json", max_seq_length=sentences)
    encoder = carried(source, tmp_path, max_tokens=max_tokens)
    assert encoder.limit == limit
    if sentences is not None:
        st = pytest.importorskip("sentence_transformers")
        assert st  # the reference is tested in test_export_sentence_transformers.py


@pytest.mark.parametrize("lower", [False, True])
def test_do_lower_case_of_sentence_transformers(lower: bool, source: Path, tmp_path: Path) -> None:
    _cased(source)
    (source / "modules.json").write_text("[]")
    edit(source / "sentence_bert_config.json", do_lower_case=lower)
    reference = transformers.AutoTokenizer.from_pretrained(source)
    before = reference.backend_tokenizer.normalizer
    if lower:
        reference.backend_tokenizer.normalizer = normalizers.Sequence([Lowercase(), before])
    assert_same(carried(source, tmp_path), reference, [*TEXTS, *PAIRS])
    plain = transformers.AutoTokenizer.from_pretrained(source)(TEXTS[0])["input_ids"]
    assert (reference(TEXTS[0])["input_ids"] != plain) == lower


def test_the_mask_token_is_named_for_who_has_no_transformers(source: Path, tmp_path: Path) -> None:
    _only_vocabulary(source)
    (source / "tokenizer_config.json").write_text("{}")
    carried(source, tmp_path, task="fill-mask")
    assert json.loads((tmp_path / "out/tokenizer_config.json").read_text())["mask_token"] == "[MASK]"


def test_pointers_to_code_are_dropped(source: Path, tmp_path: Path) -> None:
    edit(source / "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Tokenizer", None]})
    tokenizer = read_tokenizer(source, TASKS["text-classification"])
    assert tokenizer is not None
    (tmp_path / "out").mkdir()
    tokenizer.write(tmp_path / "out", max_tokens=None, config={})
    assert "auto_map" not in json.loads((tmp_path / "out/tokenizer_config.json").read_text())


def test_the_sources_own_file_is_kept_where_it_says_it_all(source: Path, tmp_path: Path) -> None:
    carried(source, tmp_path)
    edit(source / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    carried(source, tmp_path)
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_no_tokenizer_is_no_error(tmp_path: Path) -> None:
    assert read_tokenizer(tmp_path, TASKS["text-classification"]) is None
    assert read_tokenizer(tmp_path, TASKS["image-classification"]) is None


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {"type": "None"}}'])
def test_a_damaged_tokenizer_is_refused(content: str, source: Path) -> None:
    (source / "tokenizer.json").write_text(content)
    with pytest.raises(ModelDirectoryError, match="cannot open the tokenizer") as caught:
        read_tokenizer(source, TASKS["text-classification"])
    assert len(str(caught.value).splitlines()) <= 3


def test_links_that_lead_out_are_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "private.json").write_text((source / "tokenizer.json").read_text())
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.json").symlink_to(tmp_path / "private.json")
    with pytest.raises(ModelDirectoryError, match="leads out of the model directory"):
        read_tokenizer(source, TASKS["text-classification"])


@pytest.mark.parametrize("task", ["token-classification", "question-answering"])
def test_places_in_a_text_need_a_tokenizer_that_knows_them(task: str, tmp_path: Path) -> None:
    _esm(tmp_path)
    with pytest.raises(ModelDirectoryError, match="where in a text a token is"):
        read_tokenizer(tmp_path, TASKS[task])
    with pytest.raises(ArtefactError, match="where in a text a token is"):
        TextEncoder(tmp_path, task=task, limit=None)


def test_lower_casing_needs_a_tokenizer_that_can_be_told_to(tmp_path: Path) -> None:
    _esm(tmp_path)
    (tmp_path / "modules.json").write_text("[]")
    edit(tmp_path / "sentence_bert_config.json", do_lower_case=True)
    with pytest.raises(ModelDirectoryError, match="do_lower_case"):
        read_tokenizer(tmp_path, TASKS["feature-extraction"])


def test_a_foreign_side_is_refused(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "out")
    edit(tmp_path / "out/tokenizer_config.json", truncation_side="middle")
    with pytest.raises(ArtefactError, match="truncation_side"):
        TextEncoder(tmp_path / "out", task="text-classification", limit=8)
