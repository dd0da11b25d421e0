"""The loss of pairs against its formulas in float64, gradients included, and sums of it in parts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from llmkit.batch import IGNORE, Batch, LossSum
from llmkit.config.optimizer_section import Optimizer
from llmkit.config.preference_section import Dpo
from llmkit.engine.native import NativeEngine
from llmkit.kernels import head_loss_chunks
from llmkit.precision import PRECISIONS
from llmkit.preference.loss import MEASURES, DpoLoss
from tests.shapes import LLAMA_STYLE, random_model

PAIRS, LENGTH, VOCAB, WIDTH = 5, 7, 11, 6
SETTINGS = [
    Dpo(),
    Dpo(beta=0.5, label_smoothing=0.2),
    Dpo(beta=2.0, loss="hinge"),
    Dpo(beta=0.3, loss="ipo"),
    Dpo(beta=0.5, nll_weight=0.7),
]


def batch_of_pairs() -> tuple[Tensor, Tensor, Batch]:
    """Hidden states, a head, and the labels and reference of pairs of unlike length; the last only fills."""
    make = torch.Generator().manual_seed(3)
    hidden = torch.randn(2 * PAIRS, LENGTH, WIDTH, generator=make)
    head = torch.randn(VOCAB, WIDTH, generator=make)
    labels = torch.randint(VOCAB, (2 * PAIRS, LENGTH), generator=make)
    for row in range(2 * PAIRS):
        labels[row, : row % 4] = IGNORE
        labels[row, LENGTH - row % 3 :] = IGNORE
    labels[-2:] = IGNORE
    reference = -8.0 * torch.rand(PAIRS, 2, generator=make) - 6.0
    reference[-1] = 0.0
    return hidden, head, Batch(torch.zeros_like(labels), labels, reference=reference)


def plainly(hidden: Tensor, head: Tensor, batch: Batch, s: Dpo) -> tuple[Tensor, list[list[float]]]:
    """The sum of the losses in float64, pair by pair, and the rewards of each pair."""
    assert batch.reference is not None
    log_p = (hidden @ head.t()).log_softmax(-1)
    total, rewards = torch.zeros((), dtype=torch.float64), []
    for pair in range(PAIRS - 1):
        ratios, counts, log_probs = [], [], []
        for side in (0, 1):
            row = 2 * pair + side
            places = [t for t in range(LENGTH) if batch.labels[row, t] != IGNORE]
            log_prob = sum(log_p[row, t, batch.labels[row, t]] for t in places)
            log_probs.append(log_prob)
            ratios.append(log_prob - batch.reference[pair, side].double())
            counts.append(len(places))
        rewards.append([s.beta * float(ratio.detach()) for ratio in ratios])
        z = ratios[0] - ratios[1]
        total = total - s.nll_weight * log_probs[0] / counts[0]
        if s.loss == "sigmoid":
            p = 1 / (1 + torch.exp(-s.beta * z))
            total = total - (1 - s.label_smoothing) * p.log() - s.label_smoothing * (1 - p).log()
        elif s.loss == "hinge":
            total = total + max(1 - s.beta * z, torch.zeros_like(z))
        else:
            z = ratios[0] / counts[0] - ratios[1] / counts[1]
            total = total + (z - 1 / (2 * s.beta)) ** 2
    return total, rewards


def leaves(*tensors: Tensor, dtype: torch.dtype) -> list[Tensor]:
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"{s.loss}-{s.label_smoothing}-{s.nll_weight}")
def test_loss_rewards_and_gradients_are_those_of_the_formula(settings: Dpo) -> None:
    hidden, head, batch = batch_of_pairs()
    exact = leaves(hidden, head, dtype=torch.float64)
    expected, rewards = plainly(*exact, batch, settings)
    expected.backward()
    single = leaves(hidden, head, dtype=torch.float32)
    found = DpoLoss(settings)(LossSum.of_logits(single[0] @ single[1].t(), batch.labels), batch)
    assert found.targets.tolist() == [1] * (PAIRS - 1) + [0] and found.nats[-1] == 0.0
    assert not any(found.extras[name].requires_grad for name in MEASURES)
    found.objective.backward()
    assert float(found.objective.detach()) == pytest.approx(float(expected.detach()), rel=2e-6)
    for got, wanted in zip(single, exact, strict=True):
        assert got.grad is not None and wanted.grad is not None
        assert (got.grad.double() - wanted.grad).norm() < 2e-6 * wanted.grad.norm()
    chosen, rejected = map(sum, zip(*rewards, strict=True))
    right = sum(a > b for a, b in rewards)
    assert 0 < right < PAIRS - 1
    sums = [float(found.extras[name]) for name in MEASURES]
    assert sums == pytest.approx([chosen, rejected, right, chosen - rejected], rel=1e-5)


def test_a_model_that_is_the_reference_has_no_preference() -> None:
    hidden, head, batch = batch_of_pairs()
    loss = LossSum.of_logits(hidden @ head.t(), batch.labels)
    found = DpoLoss(Dpo())(loss, batch._replace(reference=-loss.nats.view(-1, 2)))
    assert found.nats[:-1].tolist() == pytest.approx([math.log(2)] * (PAIRS - 1))
    assert [float(found.extras[name]) for name in MEASURES] == [0.0] * 4


@pytest.mark.parametrize("small", [False, True], ids=["kept", "in chunks"])
def test_the_head_that_keeps_no_logits_gives_the_gradients_of_pairs(small: bool, monkeypatch: Any) -> None:
    """Each row has a gradient of its own there."""
    if small:
        monkeypatch.setattr(head_loss_chunks, "SMALL_BUFFER", 4 * VOCAB * 9)
        monkeypatch.setattr(head_loss_chunks, "BUFFER_SHARE", 0.0)
    hidden, head, batch = batch_of_pairs()
    assert head_loss_chunks._is_kept(batch.labels, head) != small
    gradients = []
    for compute in (
        lambda h, w: LossSum.of_logits(h @ w.t(), batch.labels),
        lambda h, w: head_loss_chunks.head_loss(h, w, batch.labels, VOCAB),
    ):
        inputs = leaves(hidden, head, dtype=torch.float32)
        (DpoLoss(Dpo(beta=0.7))(compute(*inputs), batch).objective / 4).backward()
        gradients.append([one.grad for one in inputs])
    for one, other in zip(*gradients, strict=True):
        assert (one - other).norm() < 2e-6 * one.norm()


def test_extras_of_the_model_stay() -> None:
    hidden, head, batch = batch_of_pairs()
    loss = LossSum.of_logits(hidden @ head.t(), batch.labels)._replace(extras={"mine": torch.ones(())})
    assert list(DpoLoss(Dpo())(loss, batch).extras) == ["mine", *MEASURES]


def pairs_for(step: int) -> Batch:
    """Four pairs of the Llama-style model, of which the first only fills."""
    make = torch.Generator().manual_seed(step)
    tokens, labels = torch.randint(LLAMA_STYLE.vocab_size, (2, 8, 13), generator=make).unbind()
    labels = labels.clone()
    for row in range(8):
        labels[row, : row % 5] = IGNORE
    labels[:2] = IGNORE
    reference = -60.0 - 8.0 * torch.rand(4, 2, generator=make)
    return Batch(tokens, labels, reference=reference)


def plain_steps(steps: int) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Losses, gradient norms and final weights, by the formula and the gradient of each sequence alone."""
    model = random_model(LLAMA_STYLE)
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2, eps=1e-5, weight_decay=0.0, foreach=False)
    losses, norms = [], []
    for step in range(steps):
        batch, total = pairs_for(step), 0.0
        optimizer.zero_grad()
        for pair in range(1, 4):
            log_p, gradients = [], []
            for row in (2 * pair, 2 * pair + 1):
                hidden = model.hidden(batch.tokens[row : row + 1])[0]
                logits = (hidden @ model.head.weight[: LLAMA_STYLE.vocab_size].T).double()
                value = -torch.nn.functional.cross_entropy(
                    logits, batch.labels[row], ignore_index=IGNORE, reduction="sum"
                )
                gradients.append(torch.autograd.grad(value, list(parameters.values())))
                log_p.append(float(value.detach()))
            assert batch.reference is not None
            chosen, rejected = (log_p[i] - float(batch.reference[pair, i]) for i in (0, 1))
            wrong = 1.0 / (1.0 + math.exp(0.1 * (chosen - rejected)))  # sigmoid(-beta margin)
            total -= math.log(1.0 - wrong) / 3
            for parameter, one, other in zip(parameters.values(), *gradients, strict=True):
                part = (other - one) * (0.1 * wrong / 3)
                parameter.grad = part if parameter.grad is None else parameter.grad + part
        losses.append(total)
        squares = [p.grad.double().square().sum() for p in parameters.values() if p.grad is not None]
        norms.append(float(torch.stack(squares).sum().sqrt()))
        optimizer.step()
    return losses, norms, {name: parameter.detach() for name, parameter in parameters.items()}


@pytest.mark.parametrize("parts", [1, 4])
def test_steps_of_the_engine_are_those_of_the_formula(parts: int) -> None:
    losses, norms, weights = plain_steps(4)
    engine = NativeEngine(
        random_model(LLAMA_STYLE),
        Optimizer(learning_rate=1e-2, eps=1e-5, betas=(0.9, 0.999), weight_decay=0.0),
        precision=PRECISIONS["fp32"], gradient_clipping=0.0, objective=DpoLoss(Dpo()),
    )  # fmt: skip
    for step in range(4):
        whole = pairs_for(step)
        assert whole.reference is not None
        pieces = (whole.tokens.chunk(parts), whole.labels.chunk(parts), whole.reference.chunk(parts))
        batches = [Batch(t, y, reference=r) for t, y, r in zip(*pieces, strict=True)]
        result = engine.train_step(batches, 3)
        assert float(result.loss_sum) / 3 == pytest.approx(losses[step], rel=1e-5)
        assert float(result.grad_norm) == pytest.approx(norms[step], rel=1e-5)
        assert set(result.extras) == set(MEASURES)
    for name, weight in engine.model.named_parameters():
        assert (weight - weights[name]).norm() <= 2e-5 * weights[name].norm(), name
