"""Buckets: what is sent when, and that it is the sum."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from llmkit.engine.reduce import GradientBuckets
from tests.ranks import run_ranks


def sums(bf16: bool) -> dict:
    """Two micro-batches through a layer that is used, one used twice and one not at all."""
    layers = [nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 3)]
    weights = [p for layer in layers for p in layer.parameters()]
    for number, weight in enumerate(weights):
        weight.data = torch.linspace(-1.0, 1.0, weight.numel()).view(weight.shape) + 0.1 * number
    masters = weights
    if bf16:
        masters = [nn.Parameter(weight.detach().clone()) for weight in weights]
        for weight in weights:
            weight.data = weight.data.bfloat16()
    sent: list[int] = []
    all_reduce = dist.all_reduce

    def counting(tensor, *args, **kwargs):
        sent.append(tensor.numel())
        return all_reduce(tensor, *args, **kwargs)

    dist.all_reduce = counting
    buckets = GradientBuckets(weights, masters, dist.group.WORLD, bucket_bytes=4 * 8)
    sent_before_the_last = -1
    for _ in range(2):
        buckets.zero()
        sent.clear()
        for index in range(2):
            buckets.last_micro_batch = index == 1
            x = torch.full((2, 4), float(1 + dist.get_rank() + index)).to(weights[0].dtype)
            layers[1](layers[1](layers[0](x))).float().sum().backward()
            if index == 0:
                sent_before_the_last = len(sent)
        buckets.finish()
    return {
        "gradients": [master.grad.flatten().tolist() for master in masters],
        "sent_before_the_last": sent_before_the_last,
        "sent": sum(sent),
        "messages": len(sent),
    }


def expected() -> list[torch.Tensor]:
    """Both ranks' rows in one process."""
    layers = [nn.Linear(4, 4), nn.Linear(4, 4, bias=False)]
    weights = [p for layer in layers for p in layer.parameters()]
    for number, weight in enumerate(weights):
        weight.data = torch.linspace(-1.0, 1.0, weight.numel()).view(weight.shape) + 0.1 * number
    for value in (1.0, 2.0, 2.0, 3.0):
        layers[1](layers[1](layers[0](torch.full((2, 4), value)))).sum().backward()
    return [weight.grad.flatten() for weight in weights]


@pytest.mark.parametrize("bf16", [False, True])
def test_gradients_are_summed_over_ranks_and_micro_batches_and_sent_once(bf16):
    results = run_ranks(2, f"{__name__}:sums", bf16=bf16)
    for found in results:
        *used, weight, bias = found["gradients"]
        assert not any(weight) and not any(bias), "a layer without a part in the loss has no gradient"
        for values, wanted in zip(used, expected(), strict=True):
            torch.testing.assert_close(
                torch.tensor(values), wanted, rtol=2e-2 if bf16 else 1e-6, atol=0.1 if bf16 else 1e-6
            )
        assert found["sent_before_the_last"] == 0
        assert found["sent"] == 16 + 4 + 16 + 12 + 3
        assert found["messages"] > 1
    assert results[0] == results[1]
