"""Counts of magnitudes, both ways, against NumPy's histogram."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmkit.kernels import magnitudes
from llmkit.kernels.magnitudes import EDGES, RANGES, count_magnitudes


@pytest.mark.parametrize("way", [count_magnitudes, lambda tensors: magnitudes._by_edges(torch.cat(tensors))])
def test_each_number_is_in_its_range(way) -> None:
    draw = torch.Generator().manual_seed(0)
    many = torch.randn(20_000, generator=draw) * torch.exp2(torch.randint(-60, 20, (20_000,), generator=draw))
    edges = torch.tensor(EDGES)
    exact = torch.cat((edges, -edges, edges.nextafter(torch.tensor(0.0)), torch.tensor([1e-45, 3e38, -0.0])))
    found = way([many, exact.float()])
    values = torch.cat((many, exact)).abs().double().numpy()
    wanted = np.histogram(values, [*EDGES[:-1], np.inf])[0]
    assert found.tolist() == wanted.tolist() and found.sum() == len(values)
    assert found.shape == (RANGES,) and (found > 0).all()


@pytest.mark.parametrize("way", [count_magnitudes, lambda tensors: magnitudes._by_edges(torch.cat(tensors))])
def test_what_is_not_finite_is_in_none(way) -> None:
    assert way([torch.tensor([float("nan"), float("inf"), -float("inf")]), torch.tensor([1.0])]).sum() == 1
