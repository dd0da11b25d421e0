"""Recomputed activations change memory and time, and no bit of a gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from llmkit.batch import Batch
from llmkit.kernels.operators import Operators
from llmkit.model.gpt import GPT
from tests.shapes import GPT2_STYLE, LLAMA_STYLE, random_model

COMPILER = "aot_eager_decomp_partition"  # all of torch.compile but the generated code
MATMULS = ("aten::mm", "aten::addmm", "aten::bmm")
SHAPES = {
    "gpt2": GPT2_STYLE,
    "llama": replace(LLAMA_STYLE, qk_norm=True),
    "dropout": replace(GPT2_STYLE, hidden_dropout=0.2, attention_dropout=0.3),
}


def make(name: str, activation_checkpointing: str, attention: str = "sdpa", every: int = 1) -> GPT:
    model = GPT(
        SHAPES[name],
        Operators.of({"attention": attention}),
        activation_checkpointing=activation_checkpointing,
        activation_checkpointing_every=every,
    )
    model.load_state_dict(random_model(SHAPES[name]).state_dict())
    return model


def batch() -> Batch:
    return Batch(*torch.randint(90, (2, 2, 24), generator=torch.Generator().manual_seed(1)).unbind())


def backward(model: GPT) -> tuple[Tensor, list[Tensor]]:
    """The loss and every gradient; what dropout draws is the same each time."""
    model.zero_grad()
    torch.manual_seed(2)
    nats = model(batch()).nats
    nats.sum().backward()
    return nats.detach(), [p.grad.clone() for p in model.parameters()]


def flops(model: GPT) -> int:
    """Of the matrix products that ran, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        backward(model)
    return counter.get_total_flops()


def matmuls(model: GPT) -> int:
    """How many matrix products ran: what counts flops does not see into compiled code."""
    with profile() as seen:
        backward(model)
    return sum(event.count for event in seen.key_averages() if event.key in MATMULS)


@pytest.mark.parametrize("attention", ["sdpa", "blocks", "matmul"])
@pytest.mark.parametrize("activation_checkpointing", ["selective", "full"])
@pytest.mark.parametrize("name", SHAPES)
def test_loss_and_gradients_are_bit_equal(name, activation_checkpointing, attention):
    loss, gradients = backward(make(name, "none", attention))
    again, replayed = backward(make(name, activation_checkpointing, attention))
    assert torch.equal(loss, again)
    assert all(torch.equal(a, b) for a, b in zip(gradients, replayed, strict=True))


@pytest.mark.parametrize("name", SHAPES)
def test_selective_repeats_no_matrix_product_and_full_repeats_the_forward(name):
    attention = "matmul"  # whose attention is counted
    forward = FlopCounterMode(display=False)
    with forward, torch.no_grad():
        make(name, "none", attention).hidden(batch().tokens)
    none = flops(make(name, "none", attention))
    assert flops(make(name, "selective", attention)) == none
    extra = flops(make(name, "full", attention)) - none
    assert 0.6 * forward.get_total_flops() < extra <= forward.get_total_flops()
    assert 2 * (flops(make(name, "full", attention, every=2)) - none) == extra  # one of two blocks


def test_full_keeps_a_blocks_input_only():
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    sizes = {}
    for activation_checkpointing in ("none", "full"):
        model = make("gpt2", activation_checkpointing)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden = model.hidden(batch().tokens)
        sizes[activation_checkpointing] = sum(kept) / hidden.numel()
    assert sizes["full"] < 8 < 40 < sizes["none"]


@pytest.mark.parametrize("name", [pytest.param("llama", marks=pytest.mark.exhaustive), "dropout"])
def test_compiled_blocks_recompute_as_told_without_a_graph_break(name):
    torch._dynamo.reset()
    counters.clear()
    ran, results = {}, {}
    for activation_checkpointing in ("none", "selective", "full"):
        model = make(name, activation_checkpointing)
        model.compile_parts(print, COMPILER)
        results[activation_checkpointing] = backward(model)
        ran[activation_checkpointing] = matmuls(model)
    assert ran["selective"] == ran["none"] < ran["full"]
    assert not counters["graph_break"]
    plain = backward(make(name, "none"))
    for activation_checkpointing, (loss, gradients) in results.items():
        if name == "dropout":  # compiled code draws other numbers, but again the same ones
            plain = results["none"]
        torch.testing.assert_close(loss, plain[0], rtol=1e-5, atol=0)
        for found, wanted in zip(gradients, plain[1], strict=True):
            assert float((found - wanted).norm() / (wanted.norm() + 1e-3)) < 1e-4, activation_checkpointing


def test_one_graph_serves_all_recomputed_blocks():
    """A number that differs from block to block, if compiled code looked at it, would compile each anew."""
    torch._dynamo.reset()
    counters.clear()
    model = GPT(
        replace(SHAPES["gpt2"], num_hidden_layers=6),
        activation_checkpointing="full",
        activation_checkpointing_every=2,
    )
    model.load_state_dict(random_model(model.shape).state_dict())
    model.compile_parts(print, COMPILER)
    backward(model)
    assert counters["stats"]["unique_graphs"] == 4  # a block, one recomputed, the last norm, the head
