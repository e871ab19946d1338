"""What graphs of a task hold where there is no token."""

from __future__ import annotations

import pytest

from compactor.exporting.building import padding_values
from compactor.tasks import TASKS, Task


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_padding_holds_zeros_in_hidden_states_and_a_very_low_number_in_logits(task: Task) -> None:
    values = padding_values(task)
    assert set(values) == set(task.outputs)
    assert all(value < -1e30 if task.logits else value == 0 for value in values.values())
