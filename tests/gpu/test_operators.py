"""Every form of every operator, at the sizes of real models, against plain PyTorch in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from benchmarks.on_gpu import operations
from benchmarks.on_gpu.operations import Operation
from llmkit.config.operators import QUANTISED
from llmkit.kernels.operators import FORMS, PLAIN, Operators
from llmkit.kernels.quantised import QuantisedWeight, rounded
from llmkit.monitor.hardware import has_avx512_bf16
from llmkit.optim.muon import COEFFICIENTS
from tests.kernels.float64 import check, relative_error

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2}
"""Of products over thousands of elements: what the order of summation changes in the type."""
TRITON = {name for name, forms in FORMS.items() if "triton" in forms}


def made(device: torch.device, dtype: torch.dtype) -> Iterator[Operation]:
    """Sizes of a 1.5B model on a GPU, of a toy on a CPU."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, device=device, generator=generator).to(dtype)

    if device.type == "cuda":
        yield from operations.norms(draw, tokens=4099, width=1600)
        yield from operations.norms(draw, tokens=4096, width=2048)
        yield from operations.rotation(draw, rows=3, length=1021, heads=32, key_heads=8, head_dim=64)
        yield from operations.pointwise(draw, tokens=4099, width=1600, inner=6400)
        yield from operations.head_loss(draw, rows=2, length=509, width=768, vocabulary=50_257)
    else:
        yield from operations.norms(draw, tokens=13, width=40)
        yield from operations.rotation(draw, rows=2, length=11, heads=4, key_heads=2, head_dim=8)
        yield from operations.pointwise(draw, tokens=13, width=40, inner=72)
        yield from operations.head_loss(draw, rows=2, length=11, width=40, vocabulary=101)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forms_and_their_gradients(device: torch.device, dtype: torch.dtype) -> None:
    checked = set()
    for operation in made(device, dtype):
        plain = getattr(Operators.of({operation.operator: PLAIN[operation.operator]}), operation.function)
        for form in FORMS[operation.operator]:
            if form == "triton" and device.type == "cpu":
                continue  # tests/kernels/triton: in Triton's interpreter
            if form == "avx512" and not has_avx512_bf16():
                continue
            function = getattr(Operators.of({operation.operator: form}), operation.function)
            names = list(operation.inputs)

            def call(function, *tensors, operation=operation, names=names):
                return operation.call(function, dict(zip(names, tensors, strict=True)))

            inputs = [each.requires_grad_() for each in operation.inputs.values()]
            check(
                lambda *tensors, call=call, function=function: call(function, *tensors),
                lambda *tensors, call=call, plain=plain: call(plain, *tensors),
                inputs,
                TOLERANCE[dtype],
            )
            checked.add((operation.function, form))
    if device.type == "cuda":
        assert {function for function, form in checked if form == "triton"} or not TRITON


@pytest.mark.parametrize("form", FORMS["gradient_norm"])
def test_the_norm_of_many_large_gradients_is_exact(device: torch.device, form: str) -> None:
    large = 50_257 * 768 if device.type == "cuda" else 50_257
    if form == "triton" and device.type == "cpu":
        pytest.skip("in Triton's interpreter: tests/kernels/triton")
    tensors = [torch.randn(size, device=device) + 1.0 for size in (large, 3, 1024)]
    exact = sum(each.double().square().sum().item() for each in tensors)
    found = Operators.of({"gradient_norm": form}).sum_of_squares(tensors, device)
    assert found.item() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("form", FORMS["adamw"])
def test_updates_are_those_of_adamw_in_float64(device: torch.device, form: str) -> None:
    if form == "triton" and device.type == "cpu":
        pytest.skip("in Triton's interpreter: tests/kernels/triton")
    shapes = [(4099, 768), (7,)] if device.type == "cuda" else [(13, 8), (7,)]
    start = [torch.randn(shape, device=device) for shape in shapes]
    results = []
    for dtype, make in (
        (torch.float32, Operators.of({"adamw": form}).adamw),
        (torch.float64, lambda groups, **settings: torch.optim.AdamW(groups, foreach=False, **settings)),
    ):
        parameters = [torch.nn.Parameter(each.clone().to(dtype)) for each in start]
        optimizer = make([{"params": parameters, "weight_decay": 0.1}], lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
        generator = torch.Generator(device).manual_seed(1)
        for _ in range(4):
            for each in parameters:
                each.grad = torch.randn(each.shape, device=device, generator=generator).to(dtype)
            optimizer.step()
        results.append(parameters)
    for found, wanted in zip(*results, strict=True):
        assert relative_error(found, wanted) < 1e-6


@pytest.mark.parametrize("form", FORMS["muon"])
def test_an_update_of_muon_is_that_of_float64(device: torch.device, form: str) -> None:
    if form == "avx512":
        pytest.skip("for CPUs: tests/kernels/cpu")
    muon, shapes = Operators.of({"muon": form}), [(1024, 256), (256, 1024), (256, 256), (256, 256)]
    gradients, buffers, weights = ([torch.randn(s, device=device) for s in shapes] for _ in range(3))
    momentum, start = [each.double() for each in buffers], [each.double() for each in weights]
    rounded = [each.bfloat16() for each in weights]
    none = torch.zeros((), device=device)
    half = torch.full((), 0.5, device=device)
    ahead = muon.look_ahead(gradients, buffers, 0.9, scale=half, skipped=none, dtype=torch.bfloat16)
    results = muon.orthogonalise(ahead, COEFFICIENTS)
    muon.descend(weights, results, [0.1] * 4, [0.01] * 4, skipped=none, rounded=rounded)
    for i in range(4):
        momentum[i].lerp_(0.5 * gradients[i].double(), 0.1)
        wanted = (0.5 * gradients[i].double()).lerp(momentum[i], 0.9)
        assert relative_error(ahead[i], wanted) < 3e-3
        (exact,) = muon.orthogonalise([ahead[i].double()], COEFFICIENTS)
        assert relative_error(results[i], exact) < 0.03
        assert relative_error(weights[i], 0.99 * start[i] - 0.1 * results[i].double()) < 1e-6
        assert torch.equal(rounded[i], weights[i].bfloat16())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", list(QUANTISED))
def test_weights_in_few_bits_are_the_same_numbers_and_products(
    device: torch.device, dtype: torch.dtype, form: str
) -> None:
    """Rounded as on a CPU, but for values half-way between two levels; multiplied as in float64."""
    if form == "nf4":
        pytest.importorskip("bitsandbytes")
    rows, columns = (28_672, 4096) if device.type == "cuda" else (48, 200)
    linear = Operators.of({"linear": form}).linear
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    with torch.device(device):
        weight = QuantisedWeight(form, rows, columns)
    weight.write(0, values)
    assert weight.codes.device.type == weight.scales.device.type == device.type
    found, wanted = weight.values(torch.float32).cpu(), rounded(values, form)
    assert float((found != wanted).float().mean()) < 1e-4
    x = torch.randn(2, 33, columns, device=device).to(dtype).requires_grad_()
    y = linear(x, weight)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    exact = weight.values(torch.float32).double()
    assert relative_error(y, x.detach().double() @ exact.mT) < TOLERANCE[dtype]
    assert relative_error(x.grad, gradient.double() @ exact) < TOLERANCE[dtype]
