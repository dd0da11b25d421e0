"""The head and the loss as one call, against log-probabilities in fp64."""

from __future__ import annotations

import torch

from llmkit.batch import IGNORE
from llmkit.kernels.head_loss import head_loss, output_logits


def test_rows_sum_their_targets_only():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(3, 7, 12, generator=generator), torch.randn(23, 12, generator=generator)
    labels = torch.randint(23, (3, 7), generator=generator)
    labels[1, 2:] = IGNORE
    labels[2] = IGNORE
    found = head_loss(hidden, weight, labels, 23)
    logs = (hidden.double() @ weight.double().T).log_softmax(-1)
    wanted = [-sum(logs[b, t, labels[b, t]] for t in range(7) if labels[b, t] != IGNORE) for b in range(3)]
    torch.testing.assert_close(found.nats.double(), torch.tensor(wanted).double(), rtol=1e-6, atol=1e-6)
    assert found.targets.tolist() == [7, 2, 0]
    assert found.nats.dtype == torch.float32


def test_padding_takes_no_probability():
    hidden, weight = torch.randn(2, 5, 8), torch.randn(16, 8)
    logits = output_logits(hidden, weight, 11)
    assert bool(torch.isinf(logits[..., 11:]).all())
    torch.testing.assert_close(logits.exp().sum(-1), (hidden @ weight[:11].T).exp().sum(-1))


def test_loss_of_bf16_is_computed_in_fp32():
    hidden, weight = torch.randn(1, 64, 32).bfloat16(), torch.randn(50, 32).bfloat16()
    labels = torch.randint(50, (1, 64))
    found = head_loss(hidden, weight, labels, 50).nats
    logits = (hidden @ weight.T).double()
    wanted = torch.nn.functional.cross_entropy(logits[0], labels[0], reduction="sum")
    torch.testing.assert_close(found[0].double(), wanted, rtol=1e-6, atol=0)
