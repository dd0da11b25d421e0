"""A pass in a few numbers, against gradients that autograd gives."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmkit.engine.fingerprint import CHUNK, fingerprint, sum_of_bits
from llmkit.loop.repeat import distances, suspects
from llmkit.precision import PRECISIONS
from tests.engine.test_device import make, on_gpu
from tests.engine.test_native import batch_of, targets
from tests.shapes import LLAMA_STYLE


def passes(model: dict[str, Any], scale: float = 1.0) -> Any:
    batch: Any = SimpleNamespace(tokens=torch.zeros(1))

    def forward(batch: Any) -> Any:
        loss = sum((weight**2).sum() * scale for weight in model.values() if weight is not model["unused"])
        return SimpleNamespace(objective=loss)

    return fingerprint(forward, model, batch)


def test_numbers_are_those_of_the_gradients_and_nothing_is_left_behind() -> None:
    model = {name: torch.randn(size, requires_grad=True) for name, size in
             {"w": CHUNK + 3, "bias": 5, "unused": 2}.items()}  # fmt: skip
    found = passes(model)
    assert found.names == ["loss", "bias", "w"]
    expected = 2 * model["w"].detach()
    assert found.bits[2] == int(expected.view(torch.int32).long().sum())
    torch.testing.assert_close(found.norms[2], float(expected.double().norm()), rtol=1e-4, atol=0)
    assert abs(found.projections[2]) < 10 * found.norms[2]
    assert all(weight.grad is None and not weight._backward_hooks for weight in model.values())
    assert passes(model) == found
    assert passes(model, 1.0 + 2.0**-20).bits != found.bits
    other = passes(model, 1.0 + 2.0**-8)
    change = abs(other.projections[2] - found.projections[2])
    torch.testing.assert_close(change, abs(found.projections[2]) * 2.0**-8, rtol=0.01, atol=1e-2)


@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_a_pass_of_an_engine_repeats_and_leaves_no_trace(precision: str) -> None:
    engine, other = (make(LLAMA_STYLE, "cpu", precision, "adamw", "none") for _ in range(2))
    batch = batch_of(LLAMA_STYLE, 0)
    for step in range(3):
        passes = [other.fingerprint(batch) for _ in range(2)]
        assert passes[0] == passes[1]
        assert set(passes[0].names) == {"loss", *other.trained}
        results = [each.train_step([batch], targets(batch)) for each in (engine, other)]
        assert results[0].loss_sum.item() == results[1].loss_sum.item(), step
        assert results[0].grad_norm.item() == results[1].grad_norm.item(), step
        total = math.fsum(norm**2 for norm in passes[0].norms[1:]) ** 0.5 / targets(batch)
        bound = 1e-5 if precision == "fp32" else 2e-2
        assert results[0].grad_norm.item() == pytest.approx(total, rel=bound)
        assert passes[0].norms[0] == pytest.approx(results[0].loss_sum.item(), rel=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_a_healthy_gpu_is_not_suspect_and_a_wrong_pass_is(precision: str) -> None:
    """Kernels may add in another order each time; an error is to stand out all the same."""
    engine = make(LLAMA_STYLE, "cuda", precision, "adamw", "none")
    batch, count = on_gpu(LLAMA_STYLE, 0)
    engine.train_step([batch], count)
    passes = [engine.fingerprint(batch) for _ in range(3)]
    assert suspects(passes) == [], [distances(passes[0], each) for each in passes[1:]]
    handle = engine.model.blocks[1].register_forward_hook(
        lambda module, inputs, output: output.register_hook(lambda gradient: gradient * 1.5) and None
    )
    wrong = engine.fingerprint(batch)
    handle.remove()
    below = {name for name in wrong.names if "blocks.0" in name}
    assert below and below <= set(suspects([passes[0], wrong, passes[1]]))


@pytest.mark.cuda
def test_sums_of_bits_are_those_of_a_cpu_and_wait_for_nothing(request: pytest.FixtureRequest) -> None:
    tensors = [torch.randn(1003, device="cuda").to(dtype) for dtype in (torch.float32, torch.bfloat16)]
    expected = [sum_of_bits(tensor.cpu()).item() for tensor in tensors]
    request.getfixturevalue("waiting_is_an_error")
    found = [sum_of_bits(tensor) for tensor in tensors]
    torch.cuda.set_sync_debug_mode("default")
    assert [each.item() for each in found] == expected
