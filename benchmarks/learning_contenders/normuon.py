"""Muon as nanochat has it in 2026: with normed rows, Polar Express, NorMuon's scales and cautious decay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""Coefficients of five rounds (Amsel et al. 2025, arXiv 2505.16932), for inputs of norm 1 / 1.01."""
SECOND_BETA = 0.9
"""Decay of the second moment of each row or column (Li et al. 2025, arXiv 2510.05491)."""
TINY = 1e-10


class NorMuon:
    """Updates matrices; those of one shape together.

    dtype: of the products. compiled: whether torch.compile makes one function of an update.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, dtype: torch.dtype, compiled: bool) -> None:
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in parameters:
            by_shape.setdefault(parameter.shape, []).append(parameter)
        self._groups = list(by_shape.values())
        self._momenta = [torch.zeros(len(group), *group[0].shape) for group in self._groups]
        self._seconds = [_second_moment(momentum) for momentum in self._momenta]
        self._dtype = dtype
        self._update: Any = torch.compile(update, dynamic=False) if compiled else update

    @torch.no_grad()
    def step(self, *, rate: float, momentum: float, weight_decay: float) -> None:
        """One update from the gradients. A tall matrix has the rate times the root of rows / columns."""
        for group, moment, second in zip(self._groups, self._momenta, self._seconds, strict=True):
            rows, columns = group[0].shape
            scaled = rate * max(1.0, rows / columns) ** 0.5
            # Tensors, not numbers: compiled code is made anew for each number it was not made for.
            values = [torch.tensor(value) for value in (scaled, momentum, weight_decay)]
            weights = torch.stack(list(group))
            gradients = torch.stack([_gradient(parameter) for parameter in group])
            updated = self._update(weights, gradients, moment, second, *values, self._dtype)
            torch._foreach_copy_(list(group), list(updated.unbind()))


def update(
    weights: Tensor, gradients: Tensor, moment: Tensor, second: Tensor,
    rate: Tensor, momentum: Tensor, weight_decay: Tensor, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """New weights of matrices of one shape, (count, rows, columns); `moment` and `second` are advanced."""
    moment.lerp_(gradients, 1.0 - momentum)
    ahead = torch.lerp(gradients, moment, momentum)
    direction = normed(orthogonal(ahead.to(dtype)).float(), second)
    cautious = (direction * weights >= 0.0) * weights
    return weights - rate * (direction + weight_decay * cautious)


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices, of rows that were made equally long first (arXiv 2603.28254).

    Then all of a matrix is scaled to the norm that an orthogonal one has (arXiv 2602.21545).
    """
    rows, columns = matrices.shape[-2:]
    long = matrices.float().norm(dim=-1, keepdim=True)
    mean = long.norm(dim=-2, keepdim=True) / rows**0.5
    x = matrices * (mean / long.clamp_min(1e-6)).to(matrices.dtype)
    x = x.mT if rows > columns else x
    x = x / (1.01 * x.norm(dim=(-2, -1), keepdim=True) + 1e-6)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    size = x.float().norm(dim=(-2, -1), keepdim=True).clamp_min(1e-6)
    x = x * (min(rows, columns) ** 0.5 / size).to(x.dtype)
    return x.mT if rows > columns else x


def normed(direction: Tensor, second: Tensor) -> Tensor:
    """Evens out the rows (of a wide matrix the columns) by their second moment; the whole norm stays."""
    squares = direction.square().mean(dim=_within(direction), keepdim=True)
    second.lerp_(squares, 1.0 - SECOND_BETA)
    scale = second.clamp_min(TINY).rsqrt()
    before = squares.sum(dim=(-2, -1), keepdim=True).sqrt()
    after = (squares * scale.square()).sum(dim=(-2, -1), keepdim=True).sqrt()
    return direction * (scale * before / after.clamp_min(TINY))


def _within(matrices: Tensor) -> int:
    """The dimension along which a second moment is one: rows of a tall matrix, columns of a wide one."""
    return -1 if matrices.shape[-2] >= matrices.shape[-1] else -2


def _second_moment(matrices: Tensor) -> Tensor:
    return torch.zeros_like(matrices.mean(dim=_within(matrices), keepdim=True))


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
