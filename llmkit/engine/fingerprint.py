"""What a forward and backward pass gives, in a few numbers, so that it can be done again and compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from llmkit.batch import Batch, LossSum

CHUNK = 2**20
"""Elements of a gradient that are projected at a time."""
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes of an element."""


class Fingerprint(NamedTuple):
    """Of the loss, the first one, and of the gradient of each parameter that has one.

    names: "loss", then those of the parameters. bits: sums of all elements' bits, by which a single one is
    seen. norms: L2 norms. projections: on a vector of ones and minus ones; where the bits differ, twice
    the difference of two projections is as large as that of two gradients, as a rule of thumb.
    """

    names: list[str]
    bits: list[int]
    norms: list[float]
    projections: list[float]


def sum_of_bits(tensor: Tensor) -> Tensor:
    """() int64: the sum of the elements, their bits taken for integers; any one bit changes it."""
    return tensor.view(INTEGERS[tensor.element_size()]).sum(dtype=torch.int64)


def fingerprint(
    forward: Callable[[Batch], LossSum], parameters: Mapping[str, Tensor], batch: Batch
) -> Fingerprint:
    """Of one pass; nothing is changed by it. Collective where the passes are. Waits for the device.

    parameters: those that are trained. Gradients are let go of as they come.
    """
    found: dict[str, Tensor] = {}
    signs = _signs(batch.tokens.device)

    def note(name: str, gradient: Tensor) -> Tensor:
        found[name] = _numbers(gradient, signs)
        return gradient.new_zeros(()).expand_as(gradient)

    handles = [each.register_hook(partial(note, name)) for name, each in parameters.items()]
    try:
        loss = forward(batch).objective
        torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    found = {"loss": _numbers(loss.detach().reshape(1), signs)} | dict(sorted(found.items()))
    numbers = torch.stack(list(found.values()))
    norms, projections = numbers[:, 1:].contiguous().view(torch.float64).t().tolist()
    return Fingerprint(list(found), numbers[:, 0].tolist(), norms, projections)


def _signs(device: torch.device) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return (torch.randint(2, (CHUNK,), generator=draw) * 2 - 1).float().to(device)


def _numbers(tensor: Tensor, signs: Tensor) -> Tensor:
    """(3,) int64: the sum of bits; norm and projection, which are fp64 in the memory of integers."""
    flat = tensor.detach().contiguous().view(-1)
    parts = [torch.dot(part.float(), signs[: part.numel()]) for part in flat.split(CHUNK)]
    floats = torch.stack([torch.linalg.vector_norm(flat, dtype=torch.float32), torch.stack(parts).sum()])
    return torch.cat([sum_of_bits(flat).view(1), floats.double().view(torch.int64)])
