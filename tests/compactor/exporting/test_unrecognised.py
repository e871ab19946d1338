"""What an export says of sublayers that no pass could work on, and where it says it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
import transformers

from compactor.commands.explain import explanation
from compactor.exporting.summary import export_sections, loss_sentence, unrecognised_sections
from compactor.exporting.unrecognised import find_unrecognised
from compactor.manifest import load_manifest
from compactor.passes.pipeline import canonicalisation
from compactor.passes.runner import Record, run_passes
from tests.compactor.fakes import run
from tests.compactor.manifests import example_manifest
from tests.models import Architecture, build
from tests.planting import attention_node, read_elsewhere

BERT = {
    **{"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 24, "max_position_embeddings": 32},
}


def canonical(model: ir.Model, positions: int | None = 12) -> list[dict[str, str]]:
    """What is not recognised of ``model`` after the canonical passes."""
    record = Record()
    run_passes(model, canonicalisation(positions=positions), record)
    return find_unrecognised(model, record.refused)


@pytest.mark.parametrize("form", ["3d", "4d", "spelled", "merged"])
@pytest.mark.parametrize("activation", ["gelu", "silu", "erf-gelu"])
def test_of_a_model_that_is_recognised_nothing_is_said(form: str, activation: str) -> None:
    arch = Architecture(form=form, activation=activation, gated=True, layers=2, mask="additive", head="tokens")
    assert canonical(build(arch)) == []


@pytest.mark.parametrize("knobs", [{"head_norm": "rms"}, {"rotary": "half", "turns": "angles"}, {"kv_heads": 2}])
def test_nor_of_heads_that_are_normalised_turned_or_shared(knobs: dict[str, Any]) -> None:
    assert canonical(build(Architecture(form="4d", front="ids", **knobs))) == []


@pytest.mark.parametrize("form", ["4d", "spelled"])
def test_the_first_reason_for_an_attention_is_told(form: str) -> None:
    """What follows, that its operands are no heads split from one matrix, would say nothing to anybody."""
    model = build(Architecture(form=form, mask="additive", rotary="half", turns="angles", layers=2))
    found = canonical(model, positions=None)
    assert [(each["path"], each["kind"]) for each in found] == [
        ("layers.0.attention", "attention"),
        ("layers.1.attention", "attention"),
    ]
    assert {each["reason"] for each in found} == {"queries and keys: nothing limits the positions"}


def test_a_softmax_that_weighs_values_is_an_attention() -> None:
    model = build(Architecture(head="mixed"))  # every position sees every other, not split into heads
    [found] = canonical(model)
    assert found["kind"] == "attention" and "reason" in found


def test_an_attention_whose_logits_are_capped_keeps_its_reason() -> None:
    model = build(Architecture(layers=2))
    attention_node(model).attributes["softcap"] = ir.AttrFloat32("softcap", 5.0)
    [found] = canonical(model)
    assert found["path"] == "layers.0.attention"
    assert "soft cap" in found["reason"]


def test_a_softmax_of_something_else_is_none() -> None:
    assert canonical(build(Architecture(activation="softmax"))) == []


def test_a_feed_forward_whose_inner_value_is_used_elsewhere_is_told() -> None:
    [found] = canonical(read_elsewhere(build(Architecture(layers=2)), "1.active"))
    assert found["kind"] == "feed_forward"
    assert found["reason"] == "'1.active' is used outside the block"


def test_a_feed_forward_with_a_number_for_each_neuron_is_told() -> None:
    found = canonical(build(Architecture(activation="per-neuron", layers=2)))
    assert [each["kind"] for each in found] == ["feed_forward"] * 2
    assert {each["reason"] for each in found} == {"the activation has a constant per neuron"}


# What people see of it


def manifest(*left: tuple[str, str, str]) -> dict[str, Any]:
    made = example_manifest()
    made["unrecognised"] = [{"path": path, "kind": kind, "reason": reason} for path, kind, reason in left]
    return made


LEFT = (
    ("layers.2.attention", "attention", "heads are split in another way"),
    ("layers.3.attention", "attention", "heads are split in another way"),
    ("node_MatMul_9", "feed_forward", "the activation reads 'Conv'"),
)


def test_a_reason_is_said_once_with_how_often_it_holds() -> None:
    [section] = unrecognised_sections(manifest(*LEFT))
    assert section.title == "3 of 7 sublayers were left as they are"
    assert section.rows == [
        ("attention: heads are split in another way", "2", "layers.2.attention"),
        ("feed-forward: the activation reads 'Conv'", "1", "node_MatMul_9"),
    ]


@pytest.mark.parametrize("old", [False, True])
def test_where_all_is_recognised_nothing_is_said(old: bool) -> None:
    made = manifest()
    if old:  # of a version that did not look
        del made["unrecognised"]
    assert unrecognised_sections(made) == []
    assert explanation(made)["unrecognised"] == []


def test_it_is_the_last_thing_that_an_export_says() -> None:
    sections = export_sections(manifest(*LEFT), Path("out"), shown_as=Path("out"))
    assert sections[-1].title == "3 of 7 sublayers were left as they are"
    assert "sublayers were left" not in str(sections[:-1])


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [(slice(3, 4), "nothing removed from the sublayers that were recognised"), (slice(0, 0), "nothing removed")],
)
def test_what_was_not_looked_at_is_not_said_to_be_without_dead_structure(layers: slice, sentence: str) -> None:
    made = manifest(*LEFT)
    made["layers"] = made["layers"][layers]
    assert loss_sentence(made) == sentence
    made["unrecognised"] = []
    assert loss_sentence(made).startswith("nothing to remove: every head and neuron")


def test_what_was_removed_elsewhere_is_said_as_ever() -> None:
    assert loss_sentence(manifest(*LEFT)) == loss_sentence(manifest())


# A real model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers, of which head 1 and ten neurons are dead."""
    folder = tmp_path_factory.mktemp("unrecognised") / "model"
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**BERT)).eval().requires_grad_(False)
    for name, tensor in model.named_parameters():
        if name.endswith("bias"):
            tensor.normal_(0, 0.1)
        if name.endswith("attention.output.dense.weight"):
            tensor[:, 8:] = 0
        elif name.endswith("output.dense.weight"):
            tensor[:, :10] = 0
    model.save_pretrained(folder)
    return folder


def test_a_stock_model_is_recognised_as_a_whole(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", checkpoint, tmp_path / "out", "--precision", "fp32") == 0
    assert "were left as they are" not in capsys.readouterr().out
    assert load_manifest(tmp_path / "out")["unrecognised"] == []


def test_what_is_not_recognised_is_said_wherever_people_look(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose neurons have a factor each: its attention shrinks, its feed-forward does not, and all is exact."""
    intermediate = transformers.models.bert.modeling_bert.BertIntermediate
    forward = intermediate.forward

    def scaled(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = forward(self, hidden_states)
        return result * torch.linspace(0.5, 1.5, BERT["intermediate_size"])

    monkeypatch.setattr(intermediate, "forward", scaled)
    assert run("export", checkpoint, tmp_path / "out", "--precision", "fp32") == 0

    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.strip()]
    at = lines.index("2 of 4 sublayers were left as they are")
    assert lines[at + 1] == "why times first"
    assert lines[-1].startswith("feed-forward: the activation has a constant per neuron 2 ")
    assert at >= len(lines) - 4, "the last lines"
    assert any(line.startswith("removed 2 of 4 heads") for line in lines)

    made = load_manifest(tmp_path / "out")
    assert [layer["kind"] for layer in made["layers"]] == ["attention"] * 2
    assert [(each["kind"], each["reason"]) for each in made["unrecognised"]] == [
        ("feed_forward", "the activation has a constant per neuron")
    ] * 2

    assert run("explain", tmp_path / "out") == 0
    assert "2 of 4 sublayers were left as they are" in capsys.readouterr().out
    assert run("explain", tmp_path / "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["unrecognised"] == made["unrecognised"]
