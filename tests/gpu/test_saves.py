"""Copies of the state for saves beside training: page-locked on a GPU, and complete before the next step."""

from __future__ import annotations

import torch

from llmkit.checkpoint.pieces import Piece
from llmkit.checkpoint.stage import HostMemory, room_for


def test_copies_are_of_the_moment_at_which_they_were_made(device: torch.device) -> None:
    """The device is at work on the state before, and at once changes it again."""
    elements = 2**26 if device.type == "cuda" else 2**16
    state = [torch.zeros(elements + odd, device=device) for odd in (0, 1, 33)]

    def pieces() -> list[Piece]:
        return [
            Piece(str(number), "master", (len(data),), ((0, len(data)),), (0, len(data)), data)
            for number, data in enumerate(state)
        ]

    memory = HostMemory()
    memory.allocate(map(room_for, pieces()), pinned=device.type == "cuda")
    for turn in range(1, 4):
        for data in state:
            data.add_(1.0)
        copies = memory.copy(pieces())
        for data in state:
            data.mul_(-1.0).mul_(-1.0).add_(0.5).sub_(0.5)
            data.add_(100.0).sub_(100.0)
        assert all(copy.data.is_pinned() == (device.type == "cuda") for copy in copies)
        assert all(bool((copy.data == turn).all()) for copy in copies)
