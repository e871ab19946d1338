from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compactor.benching.judging import judge_quality
from compactor.benching.workload import Workload
from compactor.evaluation.inputs import InputSpec
from compactor.evaluation.quality import WORSE
from compactor.evaluation.texts import Labelled, VectorTexts
from compactor.runtime.bucketing import Examples
from compactor.runtime.encoding import Encoded


def test_the_quality_block(tmp_path):
    references = [1, 0] * 8
    examples = Examples.join([{"input_ids": np.ones(3, np.int64)}] * 16, {"input_ids": 0})
    spec = InputSpec(vocabulary=9, task="text-classification", label_count=2)
    workload = Workload("data", spec, (), labelled=Labelled(examples, references), metrics=("accuracy", "f1"))

    def outputs(name, wrong) -> list[Path]:
        logits = np.eye(2)[references]
        logits[:wrong] = logits[:wrong, ::-1]
        files = [tmp_path / f"{name}.{i}.npz" for i in range(2)]
        for i, file in enumerate(files):
            np.savez(file, logits=logits[8 * i : 8 * i + 8])
        return files

    broken = tmp_path / "broken.npz"
    np.savez(broken, logits=np.full((16, 2), np.nan))
    notes: list[str] = []
    files = {"base": outputs("base", 2), "same": outputs("same", 2), "off": outputs("off", 12), "broken": [broken]}
    blocks = judge_quality(workload, files, baseline="base", notes=notes)

    assert blocks.keys() == {"base", "same", "off"}
    assert notes == [
        "The quality of broken could not be judged: the outputs are not finite numbers, so they answer nothing."
    ]
    base = blocks["base"]["metrics"]
    assert base.keys() == {"accuracy", "f1"}
    assert base["accuracy"] == {"value": 0.875, "se": pytest.approx(0.0827, abs=1e-4), "n": 16, "difference": None}
    assert blocks["same"]["metrics"]["f1"]["difference"]["changed"] == 0
    off = blocks["off"]["metrics"]["accuracy"]["difference"]
    assert off.keys() == {"value", "se", "low", "high", "changed", "p", "verdict"}
    assert (off["value"], off["changed"], off["verdict"]) == (-0.625, 10, WORSE)
    assert judge_quality(workload, files, baseline="broken")["off"]["metrics"]["f1"]["difference"] is None
    assert judge_quality(workload, files)["off"]["metrics"]["f1"]["difference"] is None

    workload.labelled = Labelled(examples, None)
    assert judge_quality(workload, files) == {}


def test_vectors_are_compared_with_the_file_and_with_the_baseline(tmp_path):
    count = 12
    queries, documents = np.arange(count), count + np.arange(count)
    items = [Encoded((), "")] * (2 * count)
    examples = Examples.join([{"input_ids": np.ones(3, np.int64)}] * (2 * count), {"input_ids": 0})
    texts = VectorTexts(items, queries, documents, np.arange(count))
    spec = InputSpec(vocabulary=9, task="feature-extraction")
    metrics = ("recall@1", "same_first_hit", "cosine")
    workload = Workload("data", spec, (), labelled=Labelled(examples, None, vectors=texts), metrics=metrics)

    def outputs(name, wrong) -> list[Path]:
        vectors = np.eye(count, dtype=np.float32)[[*range(count), *range(count)]]
        vectors[:wrong] = vectors[1 : wrong + 1]
        np.savez(tmp_path / f"{name}.npz", sentence_embedding=vectors)
        return [tmp_path / f"{name}.npz"]

    np.savez(tmp_path / "broken.npz", sentence_embedding=np.full((2 * count, 4), np.nan))
    notes: list[str] = []
    files = {"base": outputs("base", 0), "off": outputs("off", 9), "broken": [tmp_path / "broken.npz"]}
    blocks = judge_quality(workload, files, baseline="base", notes=notes)

    assert blocks.keys() == {"base", "off"} and "broken could not be judged" in notes[0]
    assert [blocks["base"]["metrics"][name]["value"] for name in metrics] == [1, 1, 1]
    off = blocks["off"]["metrics"]
    assert [off[name]["value"] for name in metrics] == [0.25, 0.25, pytest.approx(15 / 24)]
    assert off["recall@1"]["difference"]["changed"] == 9 and off["recall@1"]["difference"]["verdict"] == WORSE
    assert off["cosine"]["difference"] is None and off["same_first_hit"]["difference"] is None
    assert judge_quality(workload, files)["off"]["metrics"].keys() == {"recall@1"}
