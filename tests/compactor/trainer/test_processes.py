"""Training on two processes: both hold the same masks, and one of them writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.compactor.trainer import two_processes
from tests.compactor.trainer.tiny import write_model, write_sentences


def test_two_processes_agree_on_every_mask(tmp_path, root):
    write_model(tmp_path / "model")
    write_sentences(tmp_path / "train.tsv", 69)  # no even share
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            str(Path(two_processes.__file__)),
            str(tmp_path),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]

    first, second = (load_file(tmp_path / f"rank-{rank}-of-2.safetensors") for rank in range(2))
    assert first.keys() == second.keys() and any(not mask.bool().all() for mask in first.values())
    assert all(torch.equal(first[name], second[name]) for name in first)
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["final"]["metrics"]["accuracy"]["n"] == 69
    assert json.loads((tmp_path / "out" / "pruning.json").read_text())["processes"] == 2
