"""A mixture of experts against a loop over tokens and choices in fp64, and against transformers' losses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from llmkit.batch import IGNORE
from llmkit.config.model_section import Moe
from llmkit.config.shape import ModelShape
from llmkit.errors import UserError
from llmkit.kernels.operators import TORCH
from llmkit.model.activation_checkpointing import recomputed
from llmkit.model.gpt import GPT, NO_TENSOR_PARALLELISM
from llmkit.model.moe import MixtureOfExperts
from llmkit.parallel.context import ContextParallel
from llmkit.parity.subjects import MODERN, RandomWeights, global_batch

MOE = Moe(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=20)


def shape(**changes: Any) -> ModelShape:
    return replace(MODERN, moe=Moe.model_validate({**MOE.model_dump(), **changes}))


def mixture(of: ModelShape) -> MixtureOfExperts:
    mixture = MixtureOfExperts(of, NO_TENSOR_PARALLELISM, TORCH)
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.normal_(std=0.3)
    return mixture


def by_loop(of: ModelShape, x: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    """Token by token, choice by choice."""
    moe, inner, width = of.moe, of.expert_width, of.hidden_size
    into = parameters["experts.into.weight"].view(moe.num_experts, -1, width)
    out = parameters["experts.down_proj.weight"].view(moe.num_experts, width, inner)

    def mlp(token: Tensor, first: Tensor, last: Tensor) -> Tensor:
        if of.mlp == "relu2":
            return last @ F.relu(first @ token).square()
        gate, up = (first @ token).chunk(2)
        return last @ (F.silu(gate) * up)

    rows = []
    for token in x.flatten(0, -2):
        scores = parameters["router.weight"] @ token
        weights, experts = (scores.softmax(0) if moe.router == "softmax" else scores.sigmoid()).topk(
            moe.num_experts_per_tok
        )
        weights = weights / weights.sum() if moe.norm_topk_prob else weights
        row = sum(w * mlp(token, into[e], out[e]) for w, e in zip(weights, experts, strict=True))
        if moe.shared_expert_intermediate_size:
            shared = (parameters[f"shared_expert.{name}.weight"] for name in ("gate_up", "down_proj"))
            row = row + mlp(token, *shared)
        rows.append(row)
    return torch.stack(rows).view_as(x)


@pytest.mark.parametrize(
    "of",
    [
        shape(),
        shape(norm_topk_prob=False, moe_intermediate_size=16),
        shape(router="sigmoid", num_experts_per_tok=3, shared_expert_intermediate_size=24),
        replace(shape(num_experts=1, num_experts_per_tok=1), mlp="relu2"),
    ],
    ids=["normalised", "softmax", "sigmoid with a shared expert", "one expert"],
)
def test_outputs_and_gradients_are_those_of_a_loop(of):
    module = mixture(of)
    x = torch.randn(2, 9, of.hidden_size, requires_grad=True)
    found, _ = module(x)
    gradient = torch.randn_like(found)
    found.backward(gradient)
    exact = {name: each.detach().double().requires_grad_() for name, each in module.named_parameters()}
    exact_x = x.detach().double().requires_grad_()
    wanted = by_loop(of, exact_x, exact)
    wanted.backward(gradient.double())
    pairs = [(found, wanted), (x.grad, exact_x.grad)]
    pairs += [(each.grad, exact[name].grad) for name, each in module.named_parameters()]
    for mine, theirs in pairs:
        if theirs.detach().norm() > 0.0:  # the router of one expert, whose weight is 1
            assert float((mine - theirs).detach().norm() / theirs.detach().norm()) <= 2e-6
        else:
            assert float(mine.detach().norm()) <= 1e-6


def test_losses_are_those_of_transformers_of_each_sequence():
    module = mixture(shape())
    x = torch.randn(3, 11, MODERN.hidden_size)
    _, losses = module(x)
    scores = x @ module.router.weight.t()
    for row in range(3):
        wanted = load_balancing_loss_func((scores[row],), 5, top_k=2)
        assert torch.allclose(losses[row, 0], wanted)
    assert torch.allclose(losses[:, 1], scores.logsumexp(-1).square().mean(1))


def test_the_loss_of_a_batch_weighs_each_sequence_by_its_targets():
    of = replace(shape(router_aux_loss_coef=0.3, router_z_loss_coef=0.02), num_hidden_layers=2)
    model, weights = GPT(of), RandomWeights(of)
    model.load_state_dict({
        name: torch.cat([weights.read(each.name, "master") for each in parts])
        for name, parts in model.parameter_slices().items()
    })
    batch = global_batch(of, 0, masked=False)
    loss = model(batch)
    alone = [
        model(batch._replace(tokens=batch.tokens[row, None], labels=batch.labels[row, None], sources=None))
        for row in range(len(batch.tokens))
    ]
    for name in ("router_aux_loss", "router_z_loss"):
        assert torch.allclose(loss.extras[name], sum(each.extras[name] for each in alone))
        assert loss.extras[name] > 0
    only_fills = model(batch._replace(labels=torch.full_like(batch.labels, IGNORE)))
    assert {float(value.detach()) for value in only_fills.extras.values()} == {0.0}
    model.eval()
    assert not model(batch).extras


def test_experts_are_not_chosen_again_where_results_of_products_are_kept_in_their_order():
    ran = []

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, arguments=(), named=None):
            ran.append(operation)
            return operation(*arguments, **(named or {}))

    x = torch.randn(2, 7, MODERN.hidden_size, requires_grad=True)
    output, losses = recomputed("selective", mixture(shape()), x, random=False)
    with Noting():
        (output.sum() + losses.sum()).backward()
    assert torch.ops.aten.sort.stable in ran and torch.ops.aten.topk.default not in ran


def test_whole_sequences_are_computed_without_the_ranks_that_have_pieces_of_others():
    """One of them alone writes samples: it would wait for the others for ever."""
    of, x = shape(), torch.randn(2, 7, MODERN.hidden_size)
    nobody: Any = object()  # any exchange with it fails
    module = MixtureOfExperts(of, NO_TENSOR_PARALLELISM, TORCH, ContextParallel(0, 2, nobody, "ring"))
    alone = mixture(of)
    module.load_state_dict(alone.state_dict())
    for found, wanted in zip(module(x), alone(x), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_experts_per_tok": 6}, r"moe\.num_experts_per_tok 6 is more than model\.moe\.num_experts 5"),
        ({"num_experts": 0}, r"moe\.moe_intermediate_size 20 has no effect with model\.moe\.num_experts 0"),
        ({"first_dense_layers": 2}, r"no layer has experts"),
        ({"every_n_layers": 3}, r"no layer has experts"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        shape(**changes)


def test_experts_have_no_biases():
    with pytest.raises(UserError, match="experts have no biases"):
        replace(shape(), mlp_bias=True)


def test_only_the_parameters_that_a_token_meets_are_active():
    of = shape(num_experts_per_tok=3, shared_expert_intermediate_size=8)
    experts = 2 * 5 * 3 * 20 * MODERN.hidden_size
    assert of.num_parameters - of.num_active_parameters == experts * 2 // 5
    assert MODERN.num_active_parameters == MODERN.num_parameters
