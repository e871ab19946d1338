"""The sizes that a benchmark names are the sizes it plants."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import plant
from tests.benchmarks.made_up import ENTRY

FULL_HEAD = 4 * 8 * 32  # weights of one head in Q, K, V and O


def _masks(entry: plant.Entry, layer: int = 0, seed: int = 0) -> dict[str, np.ndarray]:
    return plant.layer_masks(entry, layer, np.random.default_rng(seed))


def _live_heads(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(mask.reshape(4, -1).any(axis=1)).tolist()


@pytest.mark.parametrize("layer", [0, 1])
def test_exactly_the_kept_heads_live_in_all_four_matrices(layer: int) -> None:
    masks = _masks(ENTRY, layer)
    alive = _live_heads(masks["attention.self.query"])
    assert len(alive) == ENTRY.kept_heads[layer]
    assert _live_heads(masks["attention.self.key"]) == alive
    assert _live_heads(masks["attention.self.value"]) == alive
    assert _live_heads(masks["attention.output.dense"].T) == alive


def test_surviving_heads_keep_their_full_width() -> None:
    masks = _masks(dataclasses.replace(ENTRY, attention_nnz=(0, 0)))
    for name in ("query", "key", "value"):
        assert masks[f"attention.self.{name}"].any(axis=1).sum() == 2 * ENTRY.head_size
    assert masks["attention.output.dense"].any(axis=0).sum() == 2 * ENTRY.head_size


@pytest.mark.parametrize("layer", [0, 1])
def test_live_attention_weights_come_within_a_block_of_the_published_number(layer: int) -> None:
    live = sum(int(mask.sum()) for name, mask in _masks(ENTRY, layer).items() if name.startswith("attention"))
    assert abs(live - ENTRY.attention_nnz[layer]) <= 4 * 4 / 2


def test_attention_dies_in_whole_blocks() -> None:
    for name, mask in _masks(ENTRY).items():
        if name.startswith("attention"):
            blocks = mask.reshape(8, 4, 8, 4).swapaxes(1, 2).reshape(64, 16)
            assert set(blocks.sum(axis=1).tolist()) == {0, 16}


@pytest.mark.parametrize("live", [2 * FULL_HEAD, 2 * FULL_HEAD + 100])
def test_a_filled_entry_leaves_no_zero_inside_its_heads(live: int) -> None:
    entry = dataclasses.replace(ENTRY, attention_nnz=(live, live), attention_block=(1, 1))
    masks = _masks(entry)
    assert sum(int(mask.sum()) for name, mask in masks.items() if name.startswith("attention")) == 2 * FULL_HEAD


@pytest.mark.parametrize("layer", [0, 1])
def test_a_neuron_lives_in_both_matrices_or_in_none(layer: int) -> None:
    masks = _masks(ENTRY, layer)
    up, down = masks["intermediate.dense"], masks["output.dense"]
    assert up.shape == (40, 32)
    assert np.array_equal(up, down.T)
    assert up.any(axis=1).sum() == up.all(axis=1).sum() == ENTRY.kept_ffn[layer]


def test_the_seed_decides_where_zeros_go() -> None:
    same, other = _masks(ENTRY, seed=0), _masks(ENTRY, seed=1)
    assert all(np.array_equal(mask, same[name]) for name, mask in _masks(ENTRY, seed=0).items())
    assert any(not np.array_equal(mask, same[name]) for name, mask in other.items())


def test_a_planted_folder_exports_at_the_sizes_planted(tmp_path: Path) -> None:
    from compactor.checkpoint import read_checkpoint

    plant.plant(tmp_path / "pruned", ENTRY)
    plant.plant(tmp_path / "dense", plant.dense_twin(ENTRY))
    pruned, dense = (read_checkpoint(tmp_path / name).tensors for name in ("pruned", "dense"))
    assert json.loads((tmp_path / "pruned" / "config.json").read_text())["architectures"] == [
        "BertForQuestionAnswering"
    ]
    assert pruned.keys() == dense.keys()
    for name, tensor in pruned.items():
        assert bool((dense[name] != 0).all()) or "LayerNorm" in name or "word_embeddings" in name
        assert bool(((tensor == dense[name]) | (tensor == 0)).all()), "the twin has the same weights where not zero"
        if name.endswith("bias"):
            assert bool((tensor != 0).all())
    rows = pruned["bert.encoder.layer.1.intermediate.dense.weight"]
    assert int(rows.any(dim=1).sum()) == ENTRY.kept_ffn[1]


def test_a_classifier_twin_can_be_asked_for(tmp_path: Path) -> None:
    plant.plant(tmp_path, ENTRY, task="text-classification")
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == ["BertForSequenceClassification"]


def test_check_sizes_passes_what_matches_and_names_what_does_not() -> None:
    def layers(neurons: int) -> list[dict[str, object]]:
        sizes = zip(ENTRY.kept_heads, (7, neurons), strict=True)
        return [
            entry
            for heads, width in sizes
            for entry in (
                {"kind": "attention", "heads": [4, heads]},
                {"kind": "feed_forward", "width": [40, width]},
            )
        ]

    plant.check_sizes(ENTRY, layers(3))
    with pytest.raises(AssertionError, match=r"\(7, 3\).*\(7, 4\)"):
        plant.check_sizes(ENTRY, layers(4))


def test_the_shipped_entries_add_up_to_their_published_totals() -> None:
    raw = json.loads(plant.SHAPES.read_text(encoding="utf-8"))["checkpoints"]
    entries = plant.read_entries()
    assert len(entries) == len(raw) > 12
    for entry, published in zip(entries, raw, strict=True):
        assert len(entry.kept_heads) == len(entry.kept_ffn) == len(entry.attention_nnz) == published["layers"]
        assert entry.heads * entry.head_size == entry.hidden
        assert 0 < min(entry.kept_heads) and max(entry.kept_heads) <= entry.heads
        assert sum(entry.attention_nnz) + 2 * entry.hidden * sum(entry.kept_ffn) == published["linear_nnz"]


def test_every_shipped_entry_has_a_folder_of_its_own() -> None:
    entries = plant.read_entries()
    assert len({entry.slug for entry in entries}) == len(entries)


def test_entries_of_one_size_and_task_share_their_dense_twin() -> None:
    entries = plant.read_entries()
    twins = {plant.dense_twin(entry).slug for entry in entries if entry.task == "squadv1"}
    assert twins == {"squadv1-dense-768", "squadv1-dense-1024"}
    assert plant.dense_twin(entries[0]) == plant.dense_twin(entries[1])
    assert plant.dense_twin(entries[0]).linear_weights == 84_934_656
    assert not plant.dense_twin(entries[0]).metrics, "the score of the dense model is not in the file"


def test_a_dense_twin_has_no_zero() -> None:
    twin = plant.dense_twin(ENTRY)
    for mask in _masks(twin).values():
        assert mask.all()


@pytest.mark.parametrize(("score", "paper"), [(91.027, 2.9), (90.163, 3.2)])
def test_gpu_speeds_of_the_large_ones_are_those_of_the_paper_against_their_dense_model(
    score: float, paper: float
) -> None:
    entry = plant.find_entry(plant.read_entries(), score=score)
    assert entry.gpu_speedup / plant.dense_twin(entry).gpu_speedup == pytest.approx(paper, abs=0.05)


def test_the_headline_entry_is_filled() -> None:
    entry = plant.find_entry(plant.read_entries(), score=87.709)
    assert entry.attention_nnz == tuple(4 * entry.head_size * entry.hidden * heads for heads in entry.kept_heads)


def test_find_entry_refuses_what_is_not_there() -> None:
    with pytest.raises(LookupError, match=r"0 entries have the score 12\.0; known scores: 80\.5"):
        plant.find_entry([ENTRY], score=12.0)
    with pytest.raises(LookupError, match="2 entries"):
        plant.find_entry([ENTRY, ENTRY], score=80.5)
    with pytest.raises(LookupError, match="no entry 1; there are 1"):
        plant.find_entry([ENTRY], index=1)
