"""Buckets: what is sent when, and that it is the sum."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn

from llmkit.engine.reduce import REDUCE_SCATTER, GradientBuckets
from llmkit.parallel.mesh import make_mesh
from tests.ranks import run_ranks


def sums(bf16: bool, partitioned: bool) -> dict:
    """Two micro-batches through a layer that is used, one used twice and one not at all."""
    layers = [nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 3)]
    weights = [p for layer in layers for p in layer.parameters()]
    for number, weight in enumerate(weights):
        weight.data = torch.linspace(-1.0, 1.0, weight.numel()).view(weight.shape) + 0.1 * number
        weight.data = weight.data.bfloat16() if bf16 else weight.data
    sent: list[int] = []
    warnings.simplefilter("error", FutureWarning)  # of names that PyTorch has given up
    collective = REDUCE_SCATTER if partitioned else "all_reduce"
    original = getattr(dist, collective)

    def counting(tensor, *args, **kwargs):
        sent.append(tensor.numel())
        return original(tensor, *args, **kwargs)

    setattr(dist, collective, counting)
    axis = make_mesh(1)["data"]
    numbered = [(weight, int(weight.dim() == 1)) for weight in weights]
    buckets = GradientBuckets(numbered, axis, bucket_bytes=4 * 8, partitioned=partitioned)
    flat = [buckets.gradients[bucket] for bucket in buckets.buckets]
    views = [each.views(gradient) for each, gradient in zip(buckets.buckets, flat, strict=True)]
    gradients = {weight: view for each in views for weight, view in each}
    for bucket in () if bf16 else buckets.buckets:
        buckets.keep_in(bucket)
    sent_before_the_last = -1
    for _ in range(2):
        buckets.zero()
        sent.clear()
        for index in range(2):
            buckets.before_backward(index == 1)
            x = torch.full((2, 4), float(1 + axis.rank + index)).to(weights[0].dtype)
            layers[1](layers[1](layers[0](x))).float().sum().backward()
            if index == 0:
                sent_before_the_last = len(sent)
        buckets.finish()
    if partitioned:
        buckets.all_gather(flat)
    return {
        "gradients": [gradients[weight].flatten().tolist() for weight in weights],
        "sent_before_the_last": sent_before_the_last,
        "sent": sum(sent),
        "messages": len(sent),
        "mixed": any(len({weight.dim() for weight in b.weights}) > 1 for b in buckets.buckets),
        "numbers": [bucket.weights[0].dim() for bucket in buckets.buckets],
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


@pytest.mark.parametrize("partitioned", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_gradients_are_summed_over_ranks_and_micro_batches_and_sent_once(bf16, partitioned):
    results = run_ranks(2, f"{__name__}:sums", bf16=bf16, partitioned=partitioned)
    for found in results:
        *used, weight, bias = found["gradients"]
        assert not any(weight) and not any(bias), "a layer without a part in the loss has no gradient"
        for values, wanted in zip(used, expected(), strict=True):
            torch.testing.assert_close(
                torch.tensor(values), wanted, rtol=2e-2 if bf16 else 1e-6, atol=0.1 if bf16 else 1e-6
            )
        assert found["sent_before_the_last"] == 0
        # In slices of 64 elements at least: of three matrices and of the vectors.
        assert found["sent"] == (4 * 64 if partitioned else 16 + 4 + 16 + 12 + 3)
        assert found["messages"] == 4 and not found["mixed"]
        assert found["numbers"] == [2, 2, 2, 1], "the vectors, complete last, are sent last"
    assert results[0] == results[1]
