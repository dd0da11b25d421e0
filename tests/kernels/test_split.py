"""Parts of a projection: views forwards; backwards, gradients that lie side by side are not copied."""

from __future__ import annotations

import pytest
import torch

from llmkit.kernels.split import side_by_side, split
from tests.kernels.float64 import check


def test_parts_and_their_gradients_are_those_of_torch():
    x = torch.randn(3, 4, 9, requires_grad=True)
    widths = (4, 3, 2)
    parts = split(x, widths)
    assert [part.data_ptr() for part in parts] == [part.data_ptr() for part in x.split(widths, -1)]
    check(lambda x: split(x, widths), lambda x: x.split(widths, -1), [x])
    gradient = torch.autograd.grad(parts[1].sum(), x)[0]  # the others take no part
    assert torch.equal(gradient, torch.zeros(3, 4, 9).index_fill_(2, torch.arange(4, 7), 1.0))


class _SideBySide(torch.autograd.Function):
    """a * b, whose gradients are written next to each other."""

    written: torch.Tensor

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, dy):
        a, b = ctx.saved_tensors
        _SideBySide.written = torch.cat((dy * b, dy * a), -1)
        return _SideBySide.written.chunk(2, -1)


@pytest.mark.parametrize("exchanged", [False, True])
def test_gradients_side_by_side_become_one_without_a_copy(exchanged):
    x = torch.randn(3, 4, 10, requires_grad=True)
    seen = []
    x.register_hook(lambda gradient: seen.append(gradient.data_ptr()))
    parts = split(x, (5, 5))
    if exchanged:
        parts = tuple(part.transpose(0, 1) for part in parts)
    _SideBySide.apply(*parts).sum().backward()
    assert seen == [_SideBySide.written.data_ptr()]
    assert torch.equal(x.grad, torch.cat((x[..., 5:], x[..., :5]), -1))


def test_what_does_not_lie_side_by_side_is_seen():
    whole = torch.arange(24.0).view(4, 6)
    a, b, c = whole.split((1, 2, 3), -1)
    assert torch.equal(side_by_side([a, b, c]), whole) and torch.equal(side_by_side([b, c]), whole[:, 1:])
    wrong = [
        [b, a],
        [a, c],
        [a, b.clone()],
        [a, b.double()],
        [whole.T[:2], whole.T[2:]],
        [whole[0, :2], whole[0, 2:]],
    ]
    assert [side_by_side(parts) for parts in wrong] == [None] * len(wrong)
    assert side_by_side([whole[:, :3], whole[:, :3]]) is None
    assert side_by_side(list(torch.ones(1, 1).expand(4, 6).split(3, -1))) is None
