"""Products of 8-bit numbers against the same arithmetic in float64, and training with them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llmkit.batch import Batch
from llmkit.config.optimizer_section import Optimizer
from llmkit.engine.native import NativeEngine
from llmkit.kernels.fp8 import BACKWARD, FORWARD, linear, quantise
from llmkit.kernels.operators import TORCH, Operators
from llmkit.model.gpt import GPT
from llmkit.model.initial import InitialWeights
from llmkit.precision import PRECISIONS
from tests.kernels.float64 import relative_error
from tests.shapes import LLAMA_STYLE

FP8 = Operators.of({"linear": "fp8"})
SHAPE = replace(
    LLAMA_STYLE,
    hidden_size=48,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=80,
)


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What x is in an 8-bit type, in float64."""
    found, scale = quantise(x.detach(), dtype)
    return found.double() * scale.double()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("bias", [False, True])
def test_products_are_those_of_the_rounded_operands(dtype, tolerance, bias):
    x = torch.randn(3, 7, 32).to(dtype).requires_grad_()  # 21 rows, which no product takes
    weight = (0.1 * torch.randn(48, 32)).to(dtype).requires_grad_()
    added = torch.randn(48).to(dtype).requires_grad_() if bias else None
    y, dy = linear(x, weight, added), torch.randn(3, 7, 48).to(dtype) * 1e-4
    y.backward(dy)
    x8, w8, dy8 = rounded(x, FORWARD), rounded(weight, FORWARD), rounded(dy, BACKWARD)
    wanted = x8 @ w8.mT + (0.0 if added is None else added.detach().double())
    assert y.dtype == x.grad.dtype == weight.grad.dtype == dtype
    assert relative_error(y, wanted) < tolerance
    assert relative_error(x.grad, dy8 @ w8) < tolerance
    assert relative_error(weight.grad, dy8.flatten(0, 1).mT @ x8.flatten(0, 1)) < tolerance
    if added is not None:
        assert relative_error(added.grad, dy.double().sum((0, 1))) < tolerance


@pytest.mark.parametrize(("dtype", "bits"), [(FORWARD, 3), (BACKWARD, 2)])
def test_a_scale_is_a_power_of_two_that_leaves_the_largest_in_range(dtype, bits):
    for size in (3e-6, 1.0, 447.9, 448.1, 7e7):
        x = size * torch.rand(1000)
        found, scale = quantise(x, dtype)
        assert torch.frexp(scale).mantissa == 0.5
        assert torch.finfo(dtype).max / 2 <= float(found.float().max()) <= torch.finfo(dtype).max
        large = x > x.max() / 100
        errors = ((found.float() * scale - x) / x)[large].abs()
        assert 0.4 * 2 ** -(bits + 1) < float(errors.max()) <= 2 ** -(bits + 1)


def test_parts_are_rounded_as_the_whole_is():
    x = torch.randn(64, 96).clamp(min=0.1)  # all within the range of normal numbers
    x[:32] *= 0.03
    whole = rounded(x, FORWARD)
    assert torch.equal(torch.cat([rounded(part, FORWARD) for part in x.split(16)]), whole)


@pytest.mark.parametrize("dtype", [FORWARD, BACKWARD])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so(dtype, wrong):
    x = torch.ones(2, 16)
    x[1, 3] = wrong
    assert not rounded(x, dtype).isfinite().all()
    assert torch.equal(rounded(torch.zeros(4), dtype), torch.zeros(4).double())


def model(operators: Operators, recomputed: str = "none") -> GPT:
    return GPT(SHAPE, operators, activation_checkpointing=recomputed, seed=3).bfloat16()


def batch() -> Batch:
    return Batch(*torch.randint(90, (2, 2, 24), generator=torch.Generator().manual_seed(1)).unbind())


def gradients(of: GPT) -> dict[str, Tensor]:
    of(batch()).nats.sum().backward()
    return {name: parameter.grad for name, parameter in of.named_parameters()}


@pytest.mark.parametrize("recomputed", ["selective", "full"])
def test_recomputed_blocks_give_the_same_bits(recomputed):
    wanted, found = gradients(model(FP8)), gradients(model(FP8, recomputed))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_gradients_differ_from_those_of_bf16_by_the_rounding_of_8_bits():
    wanted, found = gradients(model(TORCH)), gradients(model(FP8))
    for name, gradient in found.items():
        error = relative_error(gradient, wanted[name])
        assert 1e-3 < error < 0.2, (name, error)


def test_all_of_a_block_is_compiled():
    """One graph, which computes the same bits."""
    x, weight = torch.randn(2, 8, 32).bfloat16().requires_grad_(), torch.randn(48, 32).bfloat16()
    compiled = torch.compile(linear, fullgraph=True, dynamic=False, backend="aot_eager")
    found, wanted = compiled(x, weight), linear(x, weight)
    assert torch.equal(found, wanted)
    assert torch.equal(torch.autograd.grad(found.sum(), x)[0], torch.autograd.grad(wanted.sum(), x)[0])


def losses(precision: str, steps: int) -> list[float]:
    """Of a run on rows whose next token follows from the last one."""
    operators = FP8 if precision == "fp8" else TORCH
    engine = NativeEngine(
        GPT(SHAPE, operators, seed=None), Optimizer(learning_rate=3e-3),
        precision=PRECISIONS[precision], gradient_clipping=1.0,
    )  # fmt: skip
    engine.write_pieces(InitialWeights(engine.model, 5), 0)
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        tokens = torch.randint(SHAPE.vocab_size, (8, 1), generator=generator)
        rows = (tokens + 7 * torch.arange(25)) % SHAPE.vocab_size
        result = engine.train_step([Batch(rows[:, :-1], rows[:, 1:])], 8 * 24)
        found.append(float(result.loss_sum) / result.targets)
    return found


def test_it_learns_as_in_bf16():
    eight, sixteen = losses("fp8", 60), losses("bf16", 60)
    assert sixteen[-1] < 0.3 * sixteen[0]
    assert eight[0] == pytest.approx(sixteen[0], rel=2e-3) and eight[0] != sixteen[0]
    assert sum(eight[-10:]) == pytest.approx(sum(sixteen[-10:]), rel=0.1)
