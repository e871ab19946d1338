"""Started by torchrun from ``test_processes.py``: a run of ``prune`` in which each process writes down its masks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import save_file

from compactor.trainer import pruning
from compactor.trainer.config import PruneConfig


def main(place: Path) -> None:
    """Train on what lies in ``place``."""
    finish = pruning._finish

    def write_masks_and_finish(run: Any, trainer: Any, *rest: Any) -> Any:
        masks = {group.name: group.live.to(dtype=int) for group in trainer.pruner.all_groups}
        scores = {f"{group.name}.scores": group.scores.detach().clone() for group in trainer.pruner.all_groups}
        save_file(masks | scores, place / f"rank-{dist.get_rank()}-of-{dist.get_world_size()}.safetensors")
        return finish(run, trainer, *rest)

    pruning._finish = write_masks_and_finish
    config = PruneConfig(
        target_density=0.4, steps=12, batch_size=8, eval_steps=6, score_learning_rate=0.4, attention_block="8x8"
    )
    pruning.prune(place / "model", place / "train.tsv", place / "train.tsv", place / "out", config=config)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
