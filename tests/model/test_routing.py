"""Counts of routing, capacity and biases of experts, against plain loops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from llmkit.batch import IGNORE
from llmkit.config.model_section import Moe
from llmkit.model.gpt import GPT
from llmkit.model.routing import (
    BALANCE,
    DROPPED,
    ENTROPY,
    LOADS,
    TARGETS,
    TOKENS,
    Z,
    capacity,
    move_biases,
    within_capacity,
)
from llmkit.parity.subjects import global_batch
from tests.model.test_moe import by_loop, mixture, shape

FEW = 0.6
"""A capacity factor that drops many choices."""


@pytest.mark.parametrize("rows, length, k, count, most", [(3, 17, 2, 5, 4), (1, 1, 1, 1, 1), (2, 9, 3, 7, 2)])
def test_the_first_choices_of_each_row_are_kept(rows, length, k, count, most):
    generator = torch.Generator().manual_seed(length)
    scores = torch.rand(rows, length, count, generator=generator)
    experts = scores.topk(k, -1)[1]
    wanted = torch.zeros_like(experts, dtype=torch.bool)
    for row in range(rows):
        taken = [0] * count
        for token in range(length):
            for choice in range(k):
                expert = int(experts[row, token, choice])
                wanted[row, token, choice] = taken[expert] < most
                taken[expert] += 1
    assert torch.equal(within_capacity(experts, count, most), wanted)


@pytest.mark.parametrize(
    "factor, length, k, count, most",
    [(1.0, 10, 2, 4, 5), (1.25, 10, 2, 3, 9), (1.1, 10, 2, 2, 11), (0.1, 3, 1, 8, 1)],
)
def test_the_capacity_is_rounded_up_and_not_beyond(factor, length, k, count, most):
    moe = Moe(num_experts=count, num_experts_per_tok=k, capacity_factor=factor)
    assert capacity(moe, length) == most


def test_dropped_choices_add_nothing_and_get_no_gradient():
    of = shape(capacity_factor=FEW, shared_expert_intermediate_size=24)
    module = mixture(of)
    x = torch.randn(3, 11, of.hidden_size, requires_grad=True)
    found, report = module(x, limited=True)
    gradient = torch.randn_like(found)
    found.backward(gradient)
    parameters = {name: each.detach().double().requires_grad_() for name, each in module.named_parameters()}
    exact = x.detach().double().requires_grad_()
    most, rows, dropped = capacity(of.moe, 11), [], []
    for row in exact:
        taken, outputs, lost = [0] * of.moe.num_experts, [], 0
        for token in row:
            scores = parameters["router.weight"] @ token
            best = scores.softmax(0).topk(of.moe.num_experts_per_tok)[1].tolist()
            full = [expert for expert in best if taken[expert] >= most]
            lost += len(full)
            for expert in best:
                taken[expert] += 1
            # Without what an expert leads out of it adds nothing.
            out = parameters["experts.down_proj.weight"].view(of.moe.num_experts, of.hidden_size, -1)
            mask = torch.ones(of.moe.num_experts, 1, 1, dtype=torch.float64)
            mask[full] = 0.0
            without = {**parameters, "experts.down_proj.weight": out * mask}
            outputs.append(by_loop(of, token[None], without)[0])
        rows.append(torch.stack(outputs))
        dropped.append(float(lost))
    wanted = torch.stack(rows)
    wanted.backward(gradient.double())
    assert report[:, DROPPED - 1].tolist() == dropped and sum(dropped) > 0  # a report has no targets
    pairs = [(found, wanted), (x.grad, exact.grad)]
    pairs += [(each.grad, parameters[name].grad) for name, each in module.named_parameters()]
    for mine, theirs in pairs:
        assert float((mine - theirs).detach().norm() / theirs.detach().norm()) <= 2e-6
    assert not torch.allclose(module(x)[0], found)


def test_biases_choose_experts_and_weigh_none():
    of = shape(bias_update_rate=0.1, router="sigmoid")
    module = mixture(of)
    module.router.bias.copy_(torch.tensor([0.0, 0.3, -0.4, 2.0, 0.0]))
    x = torch.randn(2, 6, of.hidden_size)
    routing = module.router(x)
    values = (x @ module.router.weight.t()).sigmoid().detach()
    for row in range(2):
        for token in range(6):
            value = values[row, token]
            best = sorted(range(5), key=lambda e, v=value: float(-v[e] - module.router.bias[e]))[:2]
            assert routing.experts[row, token].tolist() == best and 3 in best
            assert torch.allclose(routing.weights[row, token], value[best] / value[best].sum())


@pytest.mark.parametrize("router", ["sigmoid", "softmax"])
def test_scores_that_all_round_to_zero_give_finite_weights_and_gradients(router):
    of = shape(bias_update_rate=0.1, router=router)
    module = mixture(of)
    module.router.bias.copy_(torch.tensor([0.0, 3.0, 3.0, 0.0, 0.0]))
    module.router.weight.data[:] = -1.0
    if router == "softmax":
        module.router.weight.data[0] = 1.0  # which no bias chooses, and beside which the others are 0
    x = torch.full((1, 2, of.hidden_size), 200.0, requires_grad=True)
    routing = module.router(x)
    assert sorted(routing.experts[0, 0].tolist()) == [1, 2]
    (routing.weights.sum() + routing.report.sum()).backward()
    assert routing.weights.isfinite().all() and routing.report.isfinite().all()
    assert x.grad.isfinite().all() and module.router.weight.grad.isfinite().all()


def test_biases_keep_their_numbers_whatever_the_type_of_the_weights():
    module = mixture(shape(bias_update_rate=0.1))
    module.router.bias.fill_(1.001)
    module.to(torch.bfloat16)
    assert module.router.weight.dtype == torch.bfloat16
    assert torch.equal(module.router.bias, torch.full((5,), 1.001))


def test_biases_move_by_the_sign_of_the_error_of_the_load():
    sums = torch.zeros(2, LOADS + 4, dtype=torch.float64)
    sums[:, LOADS:] = torch.tensor([[1.0, 5.0, 3.0, 3.0], [0.0, 0.0, 8.0, 0.0]])
    biases = [torch.zeros(4), torch.ones(4)]
    move_biases(biases, sums, 0.25, torch.tensor(0.0))
    assert biases[0].tolist() == [0.25, -0.25, 0.0, 0.0] and biases[1].tolist() == [1.25, 1.25, 0.75, 1.25]
    move_biases(biases, sums, 0.25, torch.tensor(1.0))
    assert biases[0].tolist() == [0.25, -0.25, 0.0, 0.0]


@pytest.fixture(scope="module")
def model():
    of = shape(capacity_factor=FEW, first_dense_layers=1)
    return GPT(replace(of, num_hidden_layers=3, initializer_range=0.3))


def test_sums_of_a_batch_are_those_of_its_rows_that_have_a_target(model):
    batch = global_batch(model.shape, 0, masked=False)
    batch.labels[2] = IGNORE
    found = model(batch).routing
    reports: list[torch.Tensor] = []
    model.hidden(batch.tokens, routers=reports, limited=True)
    counted = [row for row in range(len(batch.tokens)) if row != 2]
    targets = (batch.labels != IGNORE).sum(1)
    assert found.shape == (2, LOADS + 5)
    for layer, report in zip(found, reports, strict=True):
        assert layer[TARGETS] == targets.sum() and layer[TOKENS] == len(counted) * batch.tokens.shape[1]
        assert torch.allclose(layer[BALANCE], (report[:, 0] * targets).sum())
        assert torch.allclose(layer[Z], (report[:, 1] * targets).sum())
        assert torch.allclose(layer[ENTROPY:], report[counted, 3:].sum(0))
        assert layer[LOADS:].sum() == 2 * layer[TOKENS] and 0 < layer[DROPPED] < layer[LOADS:].sum()
        assert 0 < layer[ENTROPY] < layer[TOKENS] * math.log(5)


def test_nothing_is_dropped_nor_counted_where_nothing_is_learned(model):
    batch = global_batch(model.shape, 0, masked=False)
    learned = model(batch)
    dropless = GPT(replace(model.shape, moe=model.shape.moe.model_copy(update={"capacity_factor": None})))
    dropless.load_state_dict(model.state_dict())
    model.evaluating = True
    evaluated = model(batch)
    model.evaluating = False
    assert evaluated.routing is None and torch.equal(evaluated.nats, dropless(batch).nats)
    assert not torch.allclose(learned.nats, evaluated.nats)
