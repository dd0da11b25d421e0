"""An MLP that is computed for some positions at a time is that of all positions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from llmkit.batch import Batch
from llmkit.kernels.operators import Operators
from llmkit.model.gpt import GPT
from llmkit.model.mlp import make_mlp
from llmkit.model.tiles import in_tiles
from llmkit.parallel.mesh import TensorParallel
from tests.shapes import GPT2_STYLE, LLAMA_STYLE, random_model, randomise

LENGTH, TILE = 23, 5
COMPILER = "aot_eager_decomp_partition"


Trained = tuple[Tensor, dict[str, Tensor]]


def trained(shape, tile: int, recompute: str = "none", compiled: bool = False) -> Trained:
    """Loss and gradients, in fp64."""
    model = GPT(shape, Operators.of(), activation_checkpointing=recompute, mlp_tile=tile)
    model.load_state_dict(random_model(shape).state_dict())
    model.double()
    if compiled:
        torch._dynamo.reset()
        counters.clear()
        model.compile_parts(print, COMPILER)
    tokens = torch.randint(90, (2, LENGTH + 1), generator=torch.Generator().manual_seed(1))
    loss = model(Batch(tokens[:, :-1], tokens[:, 1:])).nats
    loss.sum().backward()
    return loss.detach(), {name: each.grad for name, each in model.named_parameters()}


def same(one: Trained, other: Trained) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=1e-7, atol=0)
    for name, wanted in one[1].items():
        found = other[1][name]
        assert float((found - wanted).norm() / (wanted.norm() + 1e-9)) < 1e-6, name


@pytest.mark.parametrize("mlp", ["swiglu", "geglu", "relu2", "gelu"])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_loss_and_every_gradient_are_those_of_the_whole(mlp, recompute):
    shape = GPT2_STYLE if mlp == "gelu" else replace(LLAMA_STYLE, mlp=mlp, mlp_bias=True)
    whole = trained(shape, 0)
    same(whole, trained(shape, TILE, recompute))
    same(whole, trained(shape, LENGTH + 1, recompute))  # one tile, which is not computed again


@pytest.mark.parametrize("recompute", [pytest.param("none", marks=pytest.mark.exhaustive), "full"])
def test_compiled_tiles_give_the_same(recompute):
    found = trained(LLAMA_STYLE, 9, recompute, compiled=True)
    assert not counters["graph_break"]
    same(trained(LLAMA_STYLE, 0), found)


def test_what_a_tile_draws_is_drawn_again():
    """The gradient of dropout is its own mask."""
    torch.manual_seed(0)
    x = torch.ones(2, 12, 3, requires_grad=True)
    out = in_tiles(lambda part: F.dropout(part, 0.5), x, 5, 1, random=True)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach()) and 0 < int((out == 0).sum()) < out.numel()


def test_memory_is_that_of_a_tile():
    """Of an MLP eight times as wide as its input: what both passes take beside input and gradients."""
    torch.manual_seed(0)
    mlp = randomise(make_mlp("swiglu", 16, 128, False, TensorParallel()))
    weights = sum(each.numel() for each in mlp.parameters()) * 4
    x = torch.randn(1, 512, 16, requires_grad=True)

    def peak(tile: int) -> int:
        mlp.zero_grad()
        x.grad = None
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            in_tiles(mlp, x, tile, 1).sum().backward()
        events = [each for each in seen.profiler.kineto_results.events() if each.name() == "[memory]"]
        now = most = 0
        for event in sorted(events, key=lambda each: each.start_ns()):
            now += event.nbytes()
            most = max(most, now)
        return most

    whole, tiles = peak(0), peak(32)
    assert whole > 512 * 128 * 4 * 4
    assert tiles < 32 * 128 * 4 * 10 + 4 * x.nbytes + 3 * weights < whole / 4
