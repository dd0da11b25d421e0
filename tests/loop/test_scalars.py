"""Scalars on their way to the host; that nothing waits for a GPU is tested in tests/engine/test_device.py."""

from __future__ import annotations

import torch

from llmkit.loop.scalars import Scalars


def test_values_of_any_type_and_shape_arrive_in_their_order() -> None:
    values = [
        torch.tensor(1.5, requires_grad=True),
        torch.tensor([2]),
        torch.tensor(True),
        torch.tensor(0.1, dtype=torch.float64),
    ]
    assert Scalars(values).read() == [1.5, 2.0, 1.0, 0.1]


def test_they_are_those_of_the_step_and_not_of_a_later_one() -> None:
    loss = torch.tensor(3.0)
    scalars = Scalars([loss, loss])
    loss.zero_()
    assert scalars.read() == [3.0, 3.0]
