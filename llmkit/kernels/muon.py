"""The arithmetic of Muon's update (Jordan et al. 2024): momentum, orthogonalisation, the step itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Coefficients = Sequence[tuple[float, float, float]]
"""a, b, c of each round of x <- a x + (b x x' + c (x x')^2) x."""


def look_ahead(
    gradients: Sequence[Tensor], buffers: Sequence[Tensor], beta: float,
    *, scale: Tensor | None, skipped: Tensor, dtype: torch.dtype,
) -> list[Tensor]:  # fmt: skip
    """Advances the momentum, `buffers` <- beta buffers + (1 - beta) gradients; returns Nesterov's look-ahead.

    gradients, buffers: fp32, alike. scale: () fp32, by which gradients are multiplied first, if any. skipped:
    () fp32; where it is 1.0 the gradients, which then need not be finite, change nothing, and the buffers are
    returned. dtype: of what is returned.
    """
    skip = skipped > 0.0
    if scale is not None:
        gradients = torch._foreach_mul(list(gradients), scale)
    taken = [torch.where(skip, b, g) for g, b in zip(gradients, buffers, strict=True)]
    torch._foreach_lerp_(list(buffers), taken, 1.0 - beta)
    torch._foreach_lerp_(taken, list(buffers), beta)
    return [each.to(dtype) for each in taken]


def orthogonalise(matrices: Sequence[Tensor], coefficients: Coefficients) -> list[Tensor]:
    """The nearest matrices with singular values near 1, by Newton-Schulz iteration.

    matrices: (rows, columns) each; the results are like them. Those of one shape are computed together.
    """
    by_shape: dict[torch.Size, list[int]] = {}
    for index, matrix in enumerate(matrices):
        by_shape.setdefault(matrix.shape, []).append(index)
    results = list(matrices)
    for indices in by_shape.values():
        stacked = iterate(torch.stack([matrices[index] for index in indices]), coefficients)
        for index, result in zip(indices, stacked.unbind(), strict=True):
            results[index] = result
    return results


def iterate(matrices: Tensor, coefficients: Coefficients) -> Tensor:
    """The iteration of matrices of one shape: (count, rows, columns), from Frobenius norms of 1."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    # Of the rows first: of a whole large matrix a CPU's fp32 norm is off in the third digit.
    norm = x.float().norm(dim=-1, keepdim=True).norm(dim=-2, keepdim=True)
    x = x / (norm + 1e-7).to(x.dtype)
    for a, b, c in coefficients:
        gram = x @ x.mT
        # Sums in the products' own passes: nothing is rounded, or read, in between.
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


def descend(
    weights: Sequence[Tensor], updates: Sequence[Tensor], sizes: Sequence[float], decays: Sequence[float],
    *, skipped: Tensor, rounded: Sequence[Tensor],
) -> None:  # fmt: skip
    """weights <- (1 - decays) weights - sizes updates, in place.

    weights: fp32. updates: like them, of any type. sizes, decays: one number each. skipped: () fp32; where
    it is 1.0 nothing changes. rounded: tensors of lower precision that are set to the new weights, or none.
    """
    kept = 1.0 - skipped
    by_numbers: dict[tuple[float, float], list[int]] = {}
    for index, numbers in enumerate(zip(sizes, decays, strict=True)):
        by_numbers.setdefault(numbers, []).append(index)
    for (size, decay), indices in by_numbers.items():
        chosen = [weights[index] for index in indices]
        steps = [updates[index].to(weights[index].device, torch.float32) for index in indices]
        torch._foreach_mul_(chosen, 1.0 - kept * decay)
        torch._foreach_sub_(chosen, torch._foreach_mul(steps, kept * size))
    if rounded:
        torch._foreach_copy_(list(rounded), list(weights))
