"""Attention by its formula against the fused kernels."""

from __future__ import annotations

import pytest
import torch

from llmkit.inspect.plain_attention import plain_attention
from llmkit.kernels.attention import sdpa


@pytest.mark.parametrize("rules", [{}, {"window": 4}, {"softcap": 1.5, "window": 6}, {"scale": 0.7}])
def test_it_gives_what_the_kernel_gives(rules):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 11, heads, 6) for heads in (6, 2, 2))
    weights, mixed = plain_attention(q, k, v, **rules)
    torch.testing.assert_close(mixed, sdpa(q, k, v, **rules), rtol=1e-5, atol=1e-5)
    assert weights.shape == (2, 6, 11, 11)
