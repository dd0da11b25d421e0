"""Slabs of rows are the whole tensor, once."""

from __future__ import annotations

import pytest
import torch

from llmkit.checkpoints.slabs import slabs


@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 3), (4, 3, 2), (2, 50)])
@pytest.mark.parametrize("elements", [1, 6, 7, 1000])
def test_slabs_are_the_tensor(shape: tuple[int, ...], elements: int) -> None:
    tensor = torch.arange(torch.Size(shape).numel()).view(shape)
    seen = torch.full((tensor.numel(),), -1)
    for part, box in slabs(shape, elements):
        region = tensor[tuple(slice(lo, hi) for lo, hi in box)]
        assert (seen[part] == -1).all()
        assert region.numel() <= max(elements, torch.Size(shape[1:]).numel())
        seen[part] = region.flatten()
    assert torch.equal(seen.view(shape), tensor)
