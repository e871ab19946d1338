"""Whether an example has the same answer alone and among others, whatever padding they bring."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from tests.saturation import assert_cannot_saturate

# fp32's own rounding: products of another shape add in another order, and softmax over more keys.
_ROUNDING = 2e-6


def assert_independent_of_mates(path: Path, *, vocabulary: int, lengths: Sequence[int] = (9, 3, 1, 17, 6)) -> None:
    """The graph at ``path`` gives each example what it gives it alone, and no int8 product of it can saturate.

    Args:
        path: A graph of texts, or of images.
        vocabulary: Token ids below which texts are made.
        lengths: Of the texts, in tokens.
    """
    assert_cannot_saturate(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(3)
    shapes = {entry.name: entry.shape for entry in session.get_inputs()}
    if "pixel_values" in shapes:
        feeds = {"pixel_values": random.standard_normal((4, *shapes["pixel_values"][1:])).astype(np.float32)}
        feeds["pixel_values"] *= np.array([1, 5, 0.1, 1], np.float32).reshape(4, 1, 1, 1)
        lengths = [0] * 4
    else:
        longest = max(lengths)
        mask = (np.arange(longest) < np.array(lengths)[:, None]).astype(np.int64)
        ids = random.integers(5, vocabulary, mask.shape) * mask
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        feeds = {name: array for name, array in feeds.items() if name in shapes}
    together = session.run(None, feeds)
    for row, length in enumerate(lengths):
        alone = {name: array[row : row + 1, : length or None] for name, array in feeds.items()}
        for output, batch, own in zip(session.get_outputs(), together, session.run(None, alone), strict=True):
            mate = batch[row : row + 1]
            if length and mate.shape[1:2] == (max(lengths),) and "sequence_length" in map(str, output.shape):
                mate = mate[:, :length]
            largest = np.abs(own).max(initial=1e-3)
            worst = np.abs(mate - own).max(initial=0) / largest
            assert worst <= _ROUNDING, f"'{output.name}' of example {row} differs by {worst:.2g} of its largest"
