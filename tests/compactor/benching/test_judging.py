from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compactor.benching.judging import judge_quality
from compactor.benching.workload import Workload
from compactor.evaluation.inputs import InputSpec
from compactor.evaluation.quality import WORSE
from compactor.evaluation.texts import Labelled
from compactor.runtime.bucketing import Examples


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
