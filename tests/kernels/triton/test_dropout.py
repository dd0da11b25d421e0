"""Triton's dropout drops what the key says, the same as plain PyTorch does, and once more in the backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmkit.model.activation_checkpointing import recomputed
from llmkit.parallel.randomness import keyed_bits
from tests.kernels.float64 import check, relative_error

KEY = (1 << 62) - 12345


def keyed(branch: Tensor, x: Tensor, probability: float, key: Tensor) -> Tensor:
    bits = keyed_bits(torch.arange(x.numel(), device=x.device).view(x.shape), key)
    return x + (branch / (1.0 - probability)).masked_fill(bits < round(probability * 2**24), 0.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_the_key_decides_as_it_does_in_plain_pytorch(device, probability, dtype):
    from llmkit.kernels.triton.dropout import dropout_add

    key = torch.tensor(KEY, device=device)
    branch, x = (torch.randn(3, 7, 113, device=device).to(dtype).requires_grad_() for _ in range(2))
    turned = branch.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    for each in (branch, turned):
        check(dropout_add, keyed, [each, x, probability, key])


def test_without_a_key_the_generator_decides(device):
    from llmkit.kernels.triton.dropout import dropout_add

    branch, x = torch.ones(100, 200, device=device), torch.zeros(100, 200, device=device)
    torch.manual_seed(3)
    first, second = dropout_add(branch, x, 0.25), dropout_add(branch, x, 0.25)
    torch.manual_seed(3)
    assert torch.equal(first, dropout_add(branch, x, 0.25)) and not torch.equal(first, second), "seeds"
    share = float((first == 0).double().mean())
    assert abs(share - 0.25) < 0.02 and float(first.max()) == pytest.approx(4 / 3), f"{share}, {first.max()}"
    assert torch.equal(dropout_add(branch, x + 1, 0.0), branch + 1), "nothing is dropped"


def test_a_recomputed_forward_pass_drops_the_same(device):
    from llmkit.kernels.triton.dropout import dropout_add

    x, gradients = torch.randn(5, 33, device=device), []
    for how in ("none", "full", "selective"):
        torch.manual_seed(5)
        leaf = x.clone().requires_grad_()
        recomputed(how, lambda x: dropout_add(x.tanh(), x, 0.5).square().sum(), leaf, random=True).backward()
        gradients.append(leaf.grad)
    for each in gradients[1:]:
        assert torch.equal(each, gradients[0]), f"{relative_error(each, gradients[0]):.1e}"
