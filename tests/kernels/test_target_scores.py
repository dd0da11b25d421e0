"""Scores of targets, against log-probabilities in fp64; sharded heads: tests/evaluation/rank_cases.py."""

from __future__ import annotations

import torch

from llmkit.batch import IGNORE
from llmkit.kernels import target_scores
from llmkit.kernels.head_loss import LossTerms, head_loss
from llmkit.kernels.target_scores import score_targets


def test_sums_over_targets_and_counts_those_that_are_likeliest(monkeypatch):
    monkeypatch.setattr(target_scores, "CHUNK", 4)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(3, 7, 12, generator=generator), torch.randn(29, 12, generator=generator)
    logs = (5.0 * (hidden.double() @ weight.double().T / 5.0).tanh())[..., :23].log_softmax(-1)
    labels = torch.randint(23, (3, 7), generator=generator)
    labels[0, :5] = logs[0, :5].argmax(-1)
    labels[1, 2:] = IGNORE
    labels[2] = IGNORE
    found = score_targets(hidden, weight, labels, 23, softcap=5.0)
    wanted = [-sum(logs[b, t, labels[b, t]] for t in range(7) if labels[b, t] != IGNORE) for b in range(3)]
    hits = [
        sum(bool(logs[b, t].argmax() == labels[b, t]) for t in range(7) if labels[b, t] != IGNORE)
        for b in range(3)
    ]
    torch.testing.assert_close(found.nats.double(), torch.tensor(wanted).double(), rtol=1e-6, atol=1e-6)
    assert found.likeliest is not None and found.likeliest.tolist() == hits and 5 <= hits[0] <= 7
    assert found.targets.tolist() == [7, 2, 0]
    same = head_loss(hidden, weight, labels, 23, terms=LossTerms(softcap=5.0))
    torch.testing.assert_close(found.nats, same.nats)


def test_of_equal_logits_the_first_token_is_the_likeliest():
    hidden, weight = torch.ones(1, 2, 4), torch.ones(6, 4)
    found = score_targets(hidden, weight, torch.tensor([[0, 3]]), 6)
    assert found.likeliest is not None and found.likeliest.tolist() == [1]
