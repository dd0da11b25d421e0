"""The L2 norm of gradients of any size, to the precision of one fp32 number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

RUN = 256
"""Elements that a CPU adds up one after the other in fp32: the sum is right to 5e-7 even if all are equal."""


def sum_of_squares(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """The sum of the squares of all elements of fp32 tensors on `device`: () fp64; 0 without a tensor.

    On a CPU, PyTorch's norm adds up a whole tensor one element after the other in fp32 and is off by 2e-3 at
    38M elements. So it is taken of runs of elements, which costs the same time, and the runs are added in
    fp64. CUDA's norm adds up in a tree.
    """
    norms = [torch.zeros(1, device=device)]
    if device.type == "cpu":
        for tensor in tensors:
            flat = tensor.reshape(-1)
            whole = flat.numel() - flat.numel() % RUN
            if whole:
                norms.append(torch.linalg.vector_norm(flat[:whole].view(-1, RUN), dim=1))
            if whole < flat.numel():
                norms.append(torch.linalg.vector_norm(flat[whole:], dim=0, keepdim=True))
    elif tensors:
        norms.append(torch.stack(torch._foreach_norm(list(tensors))))
    return torch.cat(norms).double().square().sum()
