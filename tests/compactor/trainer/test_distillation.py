"""The distances of a student from its teacher, by hand."""

from __future__ import annotations

import pytest
import torch

from compactor.errors import UsageError
from compactor.trainer.distillation import token_distance


def states(seed, layers=2, shape=(2, 3, 4)):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator) for _ in range(layers + 1))


def test_the_states_of_tokens_that_are_no_padding():
    ours, theirs = states(1), states(2)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    found = token_distance({"hidden_states": ours}, {"hidden_states": theirs}, {"attention_mask": mask})
    by_hand = [
        sum(float(((own[b, t] - right[b, t]) ** 2).mean()) for b, t in ((0, 0), (0, 1), (1, 1), (1, 2))) / 4
        for own, right in zip(ours[1:], theirs[1:], strict=True)
    ]
    assert float(found) == pytest.approx(sum(by_hand) / 2)
    moved = tuple(state + 100 * (1 - mask[..., None]) for state in theirs)
    again = token_distance({"hidden_states": ours}, {"hidden_states": moved}, {"attention_mask": mask})
    assert torch.equal(found, again), "what padding holds does not count"


def test_an_encoder_decoder_has_two_stacks():
    ours = {"encoder_hidden_states": states(1), "decoder_hidden_states": states(2, 1, (2, 2, 4))}
    theirs = {"encoder_hidden_states": states(3), "decoder_hidden_states": states(4, 1, (2, 2, 4))}
    inputs = {"attention_mask": torch.ones(2, 3), "labels": torch.tensor([[5, -100], [7, 8]])}
    found = token_distance(ours, theirs, inputs)
    own, right = ours["decoder_hidden_states"][1], theirs["decoder_hidden_states"][1]
    decoder = ((own - right) ** 2).mean(-1)[torch.tensor([[True, False], [True, True]])].mean()
    parts = [*((a - b) ** 2 for a, b in zip(states(1)[1:], states(3)[1:], strict=True))]
    assert float(found) == pytest.approx(float((parts[0].mean() + parts[1].mean() + decoder) / 3))


def test_images_have_states_without_a_mask():
    ours, theirs = states(1, 1, (2, 2, 2, 4)), states(2, 1, (2, 2, 2, 4))
    found = token_distance({"hidden_states": ours}, {"hidden_states": theirs}, {})
    assert float(found) == pytest.approx(float(((ours[1] - theirs[1]) ** 2).mean()))


def test_without_states_there_is_nothing_to_compare():
    with pytest.raises(UsageError, match="gives no states"):
        token_distance({"logits": torch.ones(1)}, {"logits": torch.ones(1)}, {})
