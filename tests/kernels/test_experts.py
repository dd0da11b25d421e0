"""Products of tokens with the weights of their experts, against a loop over tokens in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmkit.kernels import experts
from llmkit.kernels.experts import Dispatch, gather_from_experts, grouped_linear, scatter_to_experts

EXPERTS, K, TOKENS = 5, 2, 23


def chosen() -> Tensor:
    """Of each token two different experts; nobody chooses the third one, number 2."""
    scores = torch.randn(TOKENS, EXPERTS)
    scores[:, 2] = -100.0
    return scores.topk(K).indices


@pytest.mark.parametrize("inputs, outputs", [(8, 16), (6, 10), (8, 10), (6, 16)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_group_is_multiplied_with_its_own_weight(inputs, outputs, dtype, tolerance, transposed):
    ends = Dispatch.of(chosen(), EXPERTS).ends
    x = torch.randn(TOKENS * K, inputs).to(dtype).requires_grad_()
    weight = torch.randn(EXPERTS, outputs, inputs).to(dtype)
    if transposed:  # in memory
        weight = weight.transpose(1, 2).contiguous().transpose(1, 2)
    weight.requires_grad_()
    found = grouped_linear(x, weight, ends)
    gradient = torch.randn(found.shape).to(dtype)
    found.backward(gradient)
    exact_x, exact_weight = (each.detach().double().requires_grad_() for each in (x, weight))
    expert = torch.searchsorted(ends, torch.arange(TOKENS * K), right=True)
    wanted = torch.einsum("ri,roi->ro", exact_x, exact_weight[expert])
    wanted.backward(gradient.double())
    for mine, exact in ((found, wanted), (x.grad, exact_x.grad), (weight.grad, exact_weight.grad)):
        assert float((mine - exact).detach().norm() / exact.detach().norm()) <= tolerance
    assert not weight.grad[2].any(), "of an expert that nobody chose"


def test_experts_without_tokens_have_no_gradient_where_the_kernel_leaves_anything_there(monkeypatch):
    """As the kernel for Blackwell does: pytorch/pytorch#172439."""
    ends, real = Dispatch.of(chosen(), EXPERTS).ends, experts.F.grouped_mm
    x, gradient = torch.randn(TOKENS * K, 8), torch.randn(TOKENS * K, 4)
    wanted = experts.grouped_weight_gradient(gradient, x, ends)

    def leaving(*arguments, **named):
        found = real(*arguments, **named)
        found[2] = float("nan")
        return found

    monkeypatch.setattr(experts.F, "grouped_mm", leaving)
    monkeypatch.setattr(experts, "_sets_empty_groups", lambda device: False)
    assert torch.equal(experts.grouped_weight_gradient(gradient, x, ends), wanted)


def test_both_ways_to_compute_a_grouped_product_agree():
    ends, x = Dispatch.of(chosen(), EXPERTS).ends, torch.randn(TOKENS * K, 8)
    weight = torch.randn(EXPERTS, 4, 8)
    assert torch.allclose(grouped_linear(x, weight, ends), experts.separate_linears(x, weight, ends))


def test_copies_are_grouped_by_expert_and_come_back_weighted():
    numbers, x = chosen(), torch.randn(TOKENS, 3, requires_grad=True)
    weights = torch.rand(TOKENS, K, requires_grad=True)
    dispatch = Dispatch.of(numbers, EXPERTS)
    grouped = scatter_to_experts(x, dispatch, K)
    expert = torch.searchsorted(dispatch.ends, torch.arange(TOKENS * K), right=True)
    assert torch.equal(numbers.flatten()[dispatch.order], expert)
    factors = 1.0 + expert.float()[:, None]  # what the experts do: multiply by their number and 1
    mixed = gather_from_experts(grouped * factors, dispatch, weights)
    wanted = x * (weights * (1.0 + numbers.float())).sum(-1, keepdim=True)
    assert torch.allclose(mixed, wanted)
    gradient = torch.randn(mixed.shape)
    found = torch.autograd.grad(mixed, (x, weights), gradient, retain_graph=True)
    for mine, exact in zip(found, torch.autograd.grad(wanted, (x, weights), gradient), strict=True):
        assert torch.allclose(mine, exact, atol=1e-6)


def test_the_example_of_the_docstring():
    dispatch = Dispatch.of(torch.tensor([[2, 0], [2, 1]]), 3)
    assert dispatch.order.tolist() == [1, 3, 0, 2]
    assert dispatch.inverse.tolist() == [2, 0, 3, 1]
    assert dispatch.ends.tolist() == [1, 2, 4]
