"""Every operator of llmkit's table: its forms, PyTorch's compiler and libraries, on the same tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.on_gpu import operations
from benchmarks.on_gpu.measure import compare, release
from benchmarks.on_gpu.operations import Function, Operation
from benchmarks.on_gpu.report import Row
from benchmarks.on_gpu.setting import OUT_OF_TIME, Setting
from benchmarks.timing import reason
from llmkit.kernels.operators import FORMS, PLAIN, Operators
from llmkit.optim.muon import COEFFICIENTS

Call = Callable[[Mapping[str, Tensor]], tuple[Tensor, ...]]

NOTES = (
    "A call is a forward and a backward pass in the precision of the title; microseconds, median (least to "
    "most) of rounds in which all take turns. Peak: MiB above what was held before it, outputs and gradients "
    "included. Least: the time to move inputs, outputs and their gradients once at the copy rate.",
    "Error: the largest relative error (2-norm) of outputs and gradients on fewer rows, against the same "
    "operator's form in plain PyTorch in float64.",
    "Forms of llmkit's table by name; torch.compile: its form in plain PyTorch, compiled alone. What does "
    "not run says why.",
)


SIZES: tuple[tuple[Callable[..., list[Operation]], dict[str, int], dict[str, int]], ...] = (
    (operations.linear, {"tokens": 16_384, "outputs": 16_384, "inputs": 2048}, {"tokens": 512}),
    (operations.linear, {"tokens": 16_384, "outputs": 2304, "inputs": 768}, {"tokens": 512}),
    (operations.norms, {"tokens": 16_384, "width": 2048}, {"tokens": 509}),
    (operations.norms, {"tokens": 16_384, "width": 1600}, {"tokens": 509}),
    (
        operations.rotation, {"rows": 8, "length": 2048, "heads": 32, "key_heads": 8, "head_dim": 64},
        {"rows": 3, "length": 61},
    ),
    (operations.pointwise, {"tokens": 16_384, "width": 1600, "inner": 6400}, {"tokens": 509}),
    (operations.pointwise, {"tokens": 16_384, "width": 2048, "inner": 8192}, {"tokens": 509}),
    (
        operations.head_loss, {"rows": 16, "length": 1024, "width": 768, "vocabulary": 50_304},
        {"rows": 3, "length": 61},
    ),
    (
        operations.head_loss, {"rows": 4, "length": 2048, "width": 2048, "vocabulary": 128_256},
        {"rows": 3, "length": 61},
    ),
)  # fmt: skip
"""What makes operations, its sizes, and those that the error is taken at."""
TOY: tuple[tuple[Callable[..., list[Operation]], dict[str, int], dict[str, int]], ...] = (
    (operations.linear, {"tokens": 32, "outputs": 48, "inputs": 32}, {}),
    (operations.norms, {"tokens": 24, "width": 40}, {}),
    (operations.rotation, {"rows": 2, "length": 12, "heads": 4, "key_heads": 2, "head_dim": 8}, {}),
    (operations.pointwise, {"tokens": 24, "width": 40, "inner": 72}, {}),
    (operations.head_loss, {"rows": 2, "length": 12, "width": 40, "vocabulary": 101}, {}),
)
PARAMETERS, TOY_PARAMETERS = ((50_304, 768), *[(3072, 768)] * 96), ((101, 16), (7,))
"""Shapes of the tensors that the norm of gradients and the update are measured over."""


def measure(setting: Setting) -> Iterator[Row]:
    """The rows of each operator: one a form and library."""
    for make, size, checked in TOY if setting.toy else SIZES:
        small = make(_draw(setting), **{**size, **checked})
        large = make(_draw(setting), **size)
        for exact, operation in zip(small, large, strict=True):
            yield from _rows(exact, operation, setting)
        del small, large
        release(setting.device)
    yield from _over_parameters(setting)


def _draw(setting: Setting) -> operations.Draw:
    generator = torch.Generator(setting.device).manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, device=setting.device, generator=generator).to(setting.dtype)

    return draw


def _rows(small: Operation, operation: Operation, setting: Setting) -> Iterator[Row]:
    """All contenders take turns; then a row each."""
    if not setting.in_time:
        yield Row(operation.operator, {"operator and form": operation.name, "us": OUT_OF_TIME})
        return
    setting.note(operation.name)
    # torch.compile keeps eight versions of the code of a function, and runs later ones uncompiled.
    torch.compiler.reset()
    plain = _form(operation, PLAIN[operation.operator])
    contenders = _contenders(operation, plain)
    figures = compare(
        {name: partial(_both_ways, call, operation.inputs) for name, call in contenders.items()},
        setting.device,
        setting.rounds,
    )
    exact = {name: each.detach().double() for name, each in small.inputs.items()}
    expected = _both_ways(lambda inputs: small.call(plain, inputs), exact)
    found = _contenders(small, plain)
    for name, figure in figures.items():
        cells = {"operator and form": f"{operation.name}: {name}", "us": figure.show()}
        if figure.failed is None:
            cells["peak MiB"] = f"{figure.peak / 2**20:.1f}" if figure.peak else "-"
            cells["error"] = _error(found[name], small.inputs, expected)
        if setting.rates is not None:
            cells["least us"] = f"{1e6 * operation.moved / setting.rates.bandwidth:.0f}"
        yield Row(operation.operator, cells)


def _contenders(operation: Operation, plain: Function) -> dict[str, Call]:
    """Name -> the operation on its inputs."""
    device = next(iter(operation.inputs.values())).device
    forms = {form: _form(operation, form) for form in operations.forms_on(device, operation.operator)}
    compiled = torch.compile(lambda inputs: operation.call(plain, inputs), dynamic=False)
    return {
        **{form: _refused(each) if isinstance(each, Exception) else partial(operation.call, each)
           for form, each in forms.items()},
        "torch.compile": compiled,
        **operation.others,
    }  # fmt: skip


def _form(operation: Operation, form: str) -> Any:
    """The function of a form, or why it cannot be imported."""
    try:
        return getattr(Operators.of({operation.operator: form}), operation.function)
    except ImportError as error:
        return error


def _refused(error: Exception) -> Call:
    def call(inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        raise error

    return call


def _both_ways(call: Call, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """The outputs, and the gradients of the inputs for gradients of 1 at all outputs."""
    leaves = {name: each.detach().requires_grad_() for name, each in inputs.items()}
    outputs = call(leaves)
    gradients = torch.autograd.grad(outputs, list(leaves.values()), [torch.ones_like(y) for y in outputs])
    return [*outputs, *gradients]


def _error(call: Call, inputs: Mapping[str, Tensor], expected: list[Tensor]) -> str:
    """The largest relative error. Inputs are copied: some libraries write gradients over them."""
    try:
        found = _both_ways(call, {name: each.clone() for name, each in inputs.items()})
    except Exception as error:
        return reason(error)
    pairs = zip(found, expected, strict=True)
    return f"{max(relative_error(a, b) for a, b in pairs):.1e}"


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """The 2-norm of the difference, as a share of the wanted tensor's."""
    difference, size = (found.detach().double() - wanted.detach()).norm(), wanted.detach().norm()
    return float(difference / size.clamp(min=1e-30))


def _over_parameters(setting: Setting) -> Iterator[Row]:
    """The norm of gradients, updates of parameters, Muon's iteration of 96 matrices: no backward passes."""
    shapes = TOY_PARAMETERS if setting.toy else PARAMETERS
    tensors = [torch.randn(shape, device=setting.device) for shape in shapes]
    size = sum(each.nbytes for each in tensors)
    norms = {
        form: partial(Operators.of({"gradient_norm": form}).sum_of_squares, tensors, setting.device)
        for form in FORMS["gradient_norm"]
    }
    yield from _simple_rows("gradient_norm", norms, size, setting)
    updates = {}
    for form in FORMS["adamw"]:
        parameters = [torch.nn.Parameter(each.clone()) for each in tensors]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        group = {"params": parameters, "weight_decay": 0.1}
        adamw = Operators.of({"adamw": form}).adamw([group], lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
        updates[form] = adamw.step
    yield from _simple_rows("adamw", updates, 7 * size, setting)
    matrices = [each.bfloat16() for each in tensors if each.dim() == 2][-96:]
    iterations = {
        form: partial(Operators.of({"muon": form}).orthogonalise, matrices, COEFFICIENTS)
        for form in FORMS["muon"]
        if form != "avx512"
    }
    yield from _simple_rows("muon", iterations, 2 * sum(each.nbytes for each in matrices), setting)


def _simple_rows(
    operator: str, calls: Mapping[str, Callable[[], Any]], moved: int, setting: Setting
) -> Iterator[Row]:
    for name, figure in compare(calls, setting.device, setting.rounds).items():
        cells = {"operator and form": f"{operator}: {name}", "us": figure.show()}
        if setting.rates is not None:
            cells["least us"] = f"{1e6 * moved / setting.rates.bandwidth:.0f}"
        yield Row(operator, cells)
