"""The comparison of families: what is made with how many steps, how answers are held against each other, the page."""

from __future__ import annotations

import argparse
import json

import pytest

from benchmarks import speedup
from benchmarks._texts import Texts
from benchmarks._workshop import EXAMPLE, GRAPHS
from compactor.benching.card import machine_card
from tests.compactor.trainer.tiny import write_sentences


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What ``prune_to_speed`` was asked for, by family."""
    found = {}
    for name in ("train.tsv", "dev.tsv", "test.tsv"):
        write_sentences(tmp_path / name, 12)

    def prune_to_speed(model, data, out, settings, **options):
        found[out.name] = (model, data, settings, options)
        out.mkdir()
        (out / "costs.json").write_text("{}")

    monkeypatch.setattr(speedup, "prune_to_speed", prune_to_speed)
    return found


def test_every_model_at_three_times_has_as_many_steps(asked, tmp_path):
    args = argparse.Namespace(data=tmp_path, dense=tmp_path / "dense", embedder=None, pairs=None, steps=80)
    args.learning_rate = 1e-4
    work = tmp_path / "work"
    speedup.prepare(work, args)
    for family in speedup.chosen_families(None, embeds=False):
        speedup.make(family, work, args, 1)
    steps = {}
    for family in speedup.FAMILIES:
        if family.training is None or family.id not in asked:
            continue
        settings, options = asked[family.id][2:]
        each = options["training"].steps
        before = sum(target <= 3.0 for target in settings.speedups) if family.training["method"] == "tuned" else 1
        steps[family.id] = each * before
    assert set(steps.values()) == {80} and len(steps) >= 4
    assert asked["one-shot"][2].costs is None
    assert asked["gradual"][2].costs == work / "one-shot" / "costs.json", "all go by the same costs"
    assert asked["one-shot"][1] == work / "texts.tsv" and asked["hybrid"][1] == tmp_path / "train.tsv"


def test_unknown_families_are_named():
    with pytest.raises(SystemExit, match="no family is called 'hybird'; there are: one-shot"):
        speedup.chosen_families("hybird", embeds=False)
    assert [family.id for family in speedup.chosen_families("hybrid,one-shot", embeds=False)] == ["one-shot", "hybrid"]
    assert not any(family.embeds for family in speedup.chosen_families(None, embeds=False))


def test_answers_are_held_against_the_whole_model_and_against_hybrid(token_artefact, tmp_path):
    lines = (EXAMPLE.parent / "sst2.tsv").read_text().splitlines()[:41]
    (tmp_path / "test.tsv").write_text("\n".join(lines) + "\n")
    fp32, int8 = (token_artefact / "onnx" / GRAPHS[name] for name in ("fp32", "int8"))
    args = argparse.Namespace(data=tmp_path, dense=EXAMPLE)
    graphs = {"dense": int8, "hybrid/3.0x": fp32, "gradual/3.0x": int8, "gradual/4.0x": int8}
    found = speedup.judge_labels(fp32, graphs, args)
    texts = Texts.read(EXAMPLE, tmp_path / "test.tsv")
    apart = int((texts.ask(fp32) != texts.ask(int8)).sum())
    assert found["dense"]["difference"]["changed"] == apart
    assert found["hybrid/3.0x"]["difference"]["value"] == 0 and found["hybrid/3.0x"]["against"] is None
    assert found["gradual/3.0x"]["against"]["changed"] == apart
    assert found["gradual/4.0x"]["against"] is None, "hybrid has no model of that speed"


def test_the_page():
    quality = {"value": 0.8796, "se": 0.011}
    apart = {"value": -0.0126, "se": 0.0077}
    ratio = {"value": 1.7, "low": 1.65, "high": 1.75}
    rows = [
        {"id": "dense", "speed": None, "quality": quality, "difference": apart, "against": None},
        {"id": "gradual/2.0x", "speed": ratio, "quality": quality, "difference": apart, "against": apart},
    ]
    report = {"variants": [], "verdict": {"valid": True, "reasons": []}}
    family = {"models": [{"name": "2.0x", "target": 2.0}], "training": {"steps": 40}}
    result = {
        "machine": machine_card(),
        "command": "python it",
        "steps": 80,
        "failed": {"hybrid": "RuntimeError: none"},
        "families": {"gradual": family},
        "sentences": {"rows": rows, "report": report},
        "vectors": None,
    }
    page = speedup.render(json.loads(json.dumps(result)))
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert lines[2] == "| dense |  | 1.00× | 87.96 | -1.26 ± 0.77 |  |  |"
    assert lines[3] == ("| gradual | 2× | 1.70× [1.65, 1.75] missed | 87.96 | -1.26 ± 0.77 | -1.26 ± 0.77 | 40 |")
    assert "hybrid: RuntimeError: none." in page and "VALID" in page and "XQuAD" not in page
