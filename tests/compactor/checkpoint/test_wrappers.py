"""What training tools leave in the names of tensors comes off, and the model is the one that was trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import compactor
from compactor.checkpoint import read_checkpoint
from compactor.checkpoint.wrappers import unwrap
from compactor.errors import ModelDirectoryError
from compactor.importing.encoder import load_model
from compactor.importing.encoder_decoder import load_encoder_decoder
from compactor.tasks import GENERATION, TASKS
from tests.compactor.checkpoints import hybrid_scores, sparse_args, tensors, write
from tests.compactor.families import save_encoder_decoder
from tests.compactor.stock import assert_same_answers, change_config, change_weights, rename, saved, stock

HEAD, BASE = "ForSequenceClassification", "Model"
AUTO = {HEAD: "AutoModelForSequenceClassification", BASE: "AutoModel", "ForMaskedLM": "AutoModelForMaskedLM"}
FRONTS = [
    "module.",
    "_orig_mod.",
    "_fsdp_wrapped_module.",
    "model.",
    "net.",
    "backbone.",
    "auto_model.",
    "0.auto_model.",
    "0.model.",
    "encoder.",
    "transformer.",
    "base_model.model.",
    "_orig_mod.module.",
    "module._orig_mod.",
    "model._orig_mod.module.",
    "_forward_module.model.",
]


@pytest.mark.parametrize("head", [HEAD, BASE])
@pytest.mark.parametrize("front", FRONTS)
def test_a_front_comes_off(front: str, head: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, "bert", head)
    reference = stock(AUTO[head], folder)
    notes = assert_same_answers(change_weights(folder, rename(lambda name: front + name)), reference)
    assert notes
    assert all(part in " ".join(notes) for part in front.split("."))


@pytest.mark.parametrize("family", ["distilbert", "roberta", "electra", "mpnet"])
@pytest.mark.parametrize("head", [HEAD, BASE, "ForMaskedLM"])
def test_a_front_comes_off_in_every_family(family: str, head: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, family, head)
    reference = stock(AUTO[head], folder)
    notes = assert_same_answers(change_weights(folder, rename(lambda name: f"0.auto_model.{name}")), reference)
    assert notes == ("'0.auto_model.' removed from the front of every tensor's name",)


def test_a_front_comes_off_an_image_model_under_either_names(tmp_path: Path) -> None:
    folder = saved(tmp_path, "vit", "ForImageClassification")
    reference = stock("AutoModelForImageClassification", folder)
    change_weights(folder, rename(lambda name: f"model.{name}"))
    loaded = load_model(read_checkpoint(folder))
    case = loaded.cases[0]
    with torch.no_grad():
        expected = reference(pixel_values=torch.from_numpy(case.feeds["pixel_values"])).logits
    assert torch.equal(torch.from_numpy(loaded.run(case)["logits"]), expected)


@pytest.mark.parametrize(
    "wrapper", ["_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_fpw_module._orig_mod"]
)
def test_a_wrapper_of_each_block_comes_off(wrapper: str, tmp_path: Path) -> None:
    folder = saved(tmp_path)
    reference = stock(AUTO[HEAD], folder)
    change_weights(
        folder,
        rename(lambda name: name.replace("layer.1.", f"layer.1.{wrapper}.").replace("bert.", f"bert.{wrapper}.")),
    )
    notes = assert_same_answers(folder, reference)
    for part in wrapper.split("."):
        assert any(note.startswith(f"'{part}.'") for note in notes)


def test_the_base_models_name_may_stand_before_a_base_model_under_a_front(tmp_path: Path) -> None:
    folder = saved(tmp_path, "bert", BASE)
    reference = stock("AutoModel", folder)
    assert_same_answers(change_weights(folder, rename(lambda name: f"encoder.bert.{name}")), reference)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "electra", "mpnet"])
def test_a_trunk_without_its_name_keeps_the_head_beside_it(family: str, tmp_path: Path) -> None:
    """transformers 4 refuses such a folder as corrupted; 5 reads it as we do."""
    folder = saved(tmp_path, family)
    reference = stock(AUTO[HEAD], folder)
    assert_same_answers(change_weights(folder, rename(lambda name: name.removeprefix(f"{family}."))), reference)


def test_a_folder_that_needs_nothing_gets_no_note(tmp_path: Path) -> None:
    for head in (HEAD, BASE):
        folder = saved(tmp_path, "bert", head, name=head)
        assert assert_same_answers(folder, stock(AUTO[head], folder)) == ()


def test_inspect_says_the_same(tmp_path: Path) -> None:
    folder = change_weights(saved(tmp_path), rename(lambda name: f"net._orig_mod.{name}"))
    notes = compactor.inspect(folder).notes
    assert notes[:2] == read_checkpoint(folder).notes
    assert len(notes[:2]) == 2


def test_two_tensors_under_one_name_are_refused() -> None:
    with pytest.raises(ModelDirectoryError, match=r"'_orig_mod\.a\.weight', 'a\.weight' would all be 'a\.weight'"):
        unwrap(["a.weight", "_orig_mod.a.weight"], "folder")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda t: {p + n: v for n, v in t.items() for p in ("student.", "teacher.")}, id="two-models"),
        pytest.param(lambda t: {n.replace("bert.", "encoder."): v for n, v in t.items()}, id="head-outside"),
        pytest.param(
            lambda t: {**{f"model.{n}": v for n, v in t.items()}, "criterion.weight": torch.ones(3)}, id="one-outside"
        ),
    ],
)
def test_a_front_of_some_names_is_no_front(change, tmp_path: Path) -> None:
    folder = change_weights(saved(tmp_path), lambda t: {n: v.clone() for n, v in change(t).items()})
    with pytest.raises(ModelDirectoryError, match=r"the weights lack 'bert\..*; they hold '") as error:
        load_model(read_checkpoint(folder))
    assert error.value.where == str(folder)
    assert any(name in str(error.value) for name in ("student.bert", "encoder.embeddings", "criterion.weight"))


def test_a_trunk_with_its_name_and_without_is_refused(tmp_path: Path) -> None:
    folder = change_weights(
        saved(tmp_path), lambda t: {**t, **{n.removeprefix("bert."): v.clone() * 2 for n, v in t.items()}}
    )
    with pytest.raises(ModelDirectoryError, match=r"both with 'bert\.' before their name and without it"):
        load_model(read_checkpoint(folder))


def test_a_family_whose_names_begin_with_model_keeps_them(tmp_path: Path) -> None:
    """ModernBERT's base model is called ``model``, as Lightning's is."""
    import transformers

    torch.manual_seed(0)
    config = transformers.ModernBertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        pad_token_id=0,
        cls_token_id=1,
        sep_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    transformers.ModernBertModel(config).save_pretrained(tmp_path / "base")
    reference = stock("AutoModel", tmp_path / "base")
    for front in ("model.", "model.model."):
        shutil.copytree(tmp_path / "base", tmp_path / front)
        change_weights(tmp_path / front, rename(lambda name, front=front: front + name))
        change_config(tmp_path / front, architectures=["ModernBertModel"])
        notes = assert_same_answers(tmp_path / front, reference)
        removed = "'model.' removed from the front of every tensor's name"
        assert notes == ((removed,) if front == "model.model." else ())


@pytest.mark.parametrize("family", ["bart", "marian"])
@pytest.mark.parametrize("front", ["module.", "net._orig_mod.", "model."])
def test_a_front_comes_off_a_model_that_writes(family: str, front: str, tmp_path: Path) -> None:
    folder = save_encoder_decoder(tmp_path / "model", family, planted=None)
    reference = stock("AutoModelForSeq2SeqLM", folder).state_dict()
    change_weights(folder, rename(lambda name: front + name))
    checkpoint = read_checkpoint(folder)
    assert checkpoint.notes
    got = load_encoder_decoder(checkpoint, TASKS[GENERATION]).module.state_dict()
    assert got.keys() == reference.keys()
    assert all(torch.equal(got[name], reference[name]) for name in reference)


def test_a_front_comes_off_before_masks_are_folded(tmp_path: Path) -> None:
    weights = {**tensors(), **hybrid_scores()}
    plain = read_checkpoint(write(tmp_path / "plain", weights, masks=sparse_args()))
    wrapped = {f"model._orig_mod.{name}": tensor.clone() for name, tensor in weights.items()}
    checkpoint = read_checkpoint(write(tmp_path / "wrapped", wrapped, masks=sparse_args()))
    assert checkpoint.format == "nn_pruning"
    assert checkpoint.tensors.keys() == plain.tensors.keys()
    assert all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in plain.tensors.items())
    assert any((tensor == 0).any() for tensor in plain.tensors.values())
