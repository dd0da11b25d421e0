"""A form of an operator against its torch form in float64: outputs and gradients, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 4e-3}
"""Relative error of a whole tensor (in the L2 norm) that rounding of its type explains."""

Function = Callable[..., Tensor | Sequence[Tensor]]


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """||found - wanted|| / ||wanted||; the norm of `found` itself where `wanted` is zero."""
    wanted = wanted.detach().double()
    size = float(wanted.norm())
    return float((found.detach().double() - wanted).norm()) / (size or 1.0)


def outputs_and_gradients(
    function: Function, inputs: Sequence[Any], weights: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor | None]]:
    """What `function(*inputs)` returns, and the gradients of its inputs that take one.

    The gradients are those of sum(weights[i] * output[i]). Inputs keep their strides: a view of a larger
    tensor remains one.
    """
    leaves = [_leaf(each) if _differentiable(each) else each for each in inputs]
    found = function(*(each.view_as(each) if _differentiable(each) else each for each in leaves))
    outputs = [found] if isinstance(found, Tensor) else list(found)
    torch.autograd.backward(outputs, [w.to(o.dtype) for w, o in zip(weights, outputs, strict=True)])
    return outputs, [each.grad if _differentiable(each) else None for each in leaves]


def check(
    form: Function,
    reference: Function,
    inputs: Sequence[Any],
    tolerance: float | None = None,
    gradient_tolerance: float | None = None,
) -> None:
    """Asserts that `form` computes what `reference` computes in float64, and so do their gradients.

    inputs: arguments of both; of the tensors, those of floating point are converted for the reference and
    take a gradient where `requires_grad` is set. tolerance: of the relative error of each tensor; None: that
    of its type.
    """
    exact = [_double(each) if isinstance(each, Tensor) else each for each in inputs]
    with torch.no_grad():
        shaped = reference(*exact)
    dtype = next(t.dtype for t in inputs if isinstance(t, Tensor) and t.is_floating_point())
    weights = []
    for each in [shaped] if isinstance(shaped, Tensor) else shaped:
        generator = torch.Generator(each.device).manual_seed(7)
        weights.append(torch.randn(each.shape, generator=generator, device=each.device).to(dtype))
    outputs, gradients = outputs_and_gradients(form, inputs, weights)
    wanted, wanted_gradients = outputs_and_gradients(reference, exact, weights)
    for number, (one, other) in enumerate(zip(outputs, wanted, strict=True)):
        assert one.shape == other.shape, f"output {number}: {tuple(one.shape)}, not {tuple(other.shape)}"
        _close(f"output {number}", one, other, tolerance)
    for number, (mine, its) in enumerate(zip(gradients, wanted_gradients, strict=True)):
        assert (mine is None) == (its is None), f"gradient of input {number}: {mine} and {its}"
        if mine is not None and its is not None:
            _close(f"gradient of input {number}", mine, its, gradient_tolerance or tolerance)


def _close(what: str, found: Tensor, wanted: Tensor, tolerance: float | None) -> None:
    allowed = TOLERANCE[found.dtype] if tolerance is None else tolerance
    error = relative_error(found, wanted)
    assert error <= allowed, f"{what} ({found.dtype}): relative error {error:.2e} > {allowed:.0e}"


def _differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _leaf(value: Tensor) -> Tensor:
    """The same values and strides, with a gradient of its own."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride()))
    storage = value.new_empty(max(extent, 1)) if value.numel() else value.new_empty(0)
    copy = storage.as_strided(value.shape, value.stride()) if value.numel() else value.detach().clone()
    return copy.copy_(value.detach()).requires_grad_()


def _double(value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value
    return value.detach().double().requires_grad_(value.requires_grad)
