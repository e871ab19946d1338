#!/usr/bin/env bash
# transformers 5.23.0, accelerate 1.15.0, torch 2.13.0; Python 3.11.
#
# The Trainer with batches of like length (train_sampling_strategy="group_by_length"), stopped at a checkpoint inside
# its second epoch and resumed: the epoch is put in another order, and as many batches of that order are skipped as had
# been trained of the first one. Some examples are learned twice in the epoch, as many are never learned. A checkpoint
# inside the first epoch resumes right, and so do both with the random sampler.
#
# Seen: how many of 24 examples the second epoch (or the first) held, the resumed run's part joined to that before it
#   random, checkpoint in epoch 1: 24 of 24
#   random, checkpoint in epoch 2: 24 of 24
#   group_by_length, checkpoint in epoch 1: 24 of 24
#   group_by_length, checkpoint in epoch 2: fewer
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
"$work/venv/bin/python" - "$work" 2> /dev/null << 'PY' | tee "$work/seen"
import sys

import torch
from transformers import PrinterCallback, Trainer, TrainingArguments

EXAMPLES, BATCH = 24, 4
BY_EPOCH = EXAMPLES // BATCH
data = [{"input_ids": [1] * (1 + number % 5), "number": number} for number in range(EXAMPLES)]


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.dropout = torch.nn.Dropout(0.1)  # draws from the random state, as any model that is trained

    def forward(self, number):
        seen.extend(number.tolist())
        return {"loss": self.dropout(self.weight * number.float()).mean() * 0}


def train(folder, strategy, **options):
    torch.manual_seed(0)
    seen.clear()
    arguments = TrainingArguments(
        folder, per_device_train_batch_size=BATCH, max_steps=2 * BY_EPOCH, save_steps=1, use_cpu=True, seed=1,
        train_sampling_strategy=strategy, report_to="none", disable_tqdm=True, remove_unused_columns=False,
        logging_strategy="no",
    )
    trainer = Trainer(
        Model(), arguments, train_dataset=data,
        data_collator=lambda rows: {"number": torch.tensor([row["number"] for row in rows])},
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(**options)
    return list(seen)


seen = []
for strategy in ("random", "group_by_length"):
    folder = f"{sys.argv[1]}/{strategy}"
    straight = train(folder, strategy)
    for epoch in (1, 2):
        stop = (epoch - 1) * BY_EPOCH + BY_EPOCH // 2
        resumed = straight[: stop * BATCH] + train(folder, strategy, resume_from_checkpoint=f"{folder}/checkpoint-{stop}")
        held = len(set(resumed[(epoch - 1) * EXAMPLES : epoch * EXAMPLES]))
        print(f"{strategy}, checkpoint in epoch {epoch}:", f"{held} of {EXAMPLES}" if held == EXAMPLES else "fewer")
PY
diff "$work/seen" - << 'SEEN'
random, checkpoint in epoch 1: 24 of 24
random, checkpoint in epoch 2: 24 of 24
group_by_length, checkpoint in epoch 1: 24 of 24
group_by_length, checkpoint in epoch 2: fewer
SEEN
