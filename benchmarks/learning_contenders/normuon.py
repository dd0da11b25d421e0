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

    dtype: of the products. compiled: whether torch.compile makes one function of what is done to each weight
    at the end; of the whole update it cannot (PyTorch 2.13 on a CPU).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, dtype: torch.dtype, compiled: bool) -> None:
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in parameters:
            by_shape.setdefault(parameter.shape, []).append(parameter)
        self._groups = list(by_shape.values())
        self._momenta = [torch.zeros(len(group), *group[0].shape) for group in self._groups]
        self._seconds = [torch.zeros_like(_squares(momentum)) for momentum in self._momenta]
        self._dtype = dtype
        self._moved: Any = torch.compile(moved, dynamic=False) if compiled else moved

    @torch.no_grad()
    def step(self, *, rate: float, momentum: float, weight_decay: float) -> None:
        """One update from the gradients. A tall matrix has the rate times the root of rows / columns."""
        for group, moment, second in zip(self._groups, self._momenta, self._seconds, strict=True):
            rows, columns = group[0].shape
            scaled = rate * max(1.0, rows / columns) ** 0.5
            # Tensors, not numbers: compiled code is made anew for each number it was not made for.
            rates = torch.tensor(scaled), torch.tensor(scaled * weight_decay)
            gradients = torch.stack([_gradient(parameter) for parameter in group])
            moment.lerp_(gradients, 1.0 - momentum)
            x = orthogonal(torch.lerp(gradients, moment, momentum), self._dtype)
            weights = self._moved(torch.stack(list(group)), x, even(x, second), *rates)
            torch._foreach_copy_(list(group), list(weights.unbind()))


def orthogonal(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest semi-orthogonal matrices, of rows that are made equally long first (arXiv 2603.28254).

    matrices: (count, rows, columns), fp32. dtype: of the products and the result.
    """
    lengths = matrices.norm(dim=-1, keepdim=True)
    all_of_it = lengths.norm(dim=-2, keepdim=True)
    mean = all_of_it / matrices.shape[-2] ** 0.5
    x = (matrices * (mean / lengths.clamp_min(1e-6) / (1.01 * all_of_it + 1e-6))).to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def even(x: Tensor, second: Tensor) -> Tensor:
    """What to multiply rows (of a wide matrix columns) by, so that they become alike; `second` is advanced.

    By the second moment of each over the steps; all of a matrix then has the norm of an orthogonal one
    (arXiv 2602.21545).
    """
    shorter = min(x.shape[-2:])
    squares = _squares(x)
    to_norm = shorter / squares.sum(dim=(-2, -1), keepdim=True).clamp_min(TINY)
    squares = squares * to_norm
    second.lerp_(squares / shorter, 1.0 - SECOND_BETA)
    scale = second.clamp_min(TINY).rsqrt()
    after = (squares * scale.square()).sum(dim=(-2, -1), keepdim=True).clamp_min(TINY)
    return scale * (to_norm * shorter / after).sqrt()


def moved(weights: Tensor, x: Tensor, scale: Tensor, rate: Tensor, decay: Tensor) -> Tensor:
    """The new weights: less the update, and less a share of those that it makes smaller."""
    x = x.float() * scale
    return weights - rate * x - decay * (x * weights >= 0.0) * weights


def _squares(x: Tensor) -> Tensor:
    """Of each row of a tall matrix, of each column of a wide one: the sum, fp32."""
    dim = -1 if x.shape[-2] >= x.shape[-1] else -2
    return torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.float32).square()


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
