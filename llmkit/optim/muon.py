"""Muon: momentum whose matrices are orthogonalised before they become updates (Jordan et al. 2024).

A gradient matrix is dominated by few directions; replacing it by the nearest orthogonal matrix learns
from all of them at once. For hidden matrices only: embeddings, norms and biases are AdamW's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration; chosen by Jordan for the steepest slope at 0, so that five rounds do."""
ROUNDS = 5
RMS = 0.2
"""Root mean square of an update at learning rate 1, like AdamW's (Liu et al. 2025, Moonlight): one
learning rate and one weight decay then serve both optimizers."""


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest matrices with singular values near 1, by Newton-Schulz iteration.

    matrices: (count, rows, columns) -> the same shape and dtype. Singular values above about 0.02 of
    their matrix's norm end between 0.6 and 1.3, smaller ones on the way there.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    # Of the rows first: of a whole large matrix a CPU's fp32 norm is off in the third digit.
    norm = x.float().norm(dim=-1, keepdim=True).norm(dim=-2, keepdim=True)
    x = x / (norm + 1e-7).to(x.dtype)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon over stored matrices, each of which may hold several of the model's.

    matrices: (parameter, rows of each matrix in it). A stacked q/k/v projection counts as three.
    dtype: in which the iteration runs; bf16 is exact enough where there are units for it.

    Like PyTorch's fused optimizers it takes a device scalar `found_inf`: where that is 1.0 the step
    changes nothing, and nobody has to wait for its value.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        matrices: Sequence[tuple[Tensor, Sequence[tuple[int, int]]]],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(
            [p for p, _ in matrices], {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        )
        self.rows = {parameter: list(rows) for parameter, rows in matrices}
        self.dtype = dtype

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update from the gradients; parameters without one are left alone."""
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            skipped = self.found_inf
            if skipped is None:
                skipped = torch.zeros((), device=parameters[0].device)
            updates = [self._momentum(p, group["momentum"], skipped) for p in parameters]
            rate = group["lr"] * (1.0 - skipped)
            torch._foreach_mul_(parameters, 1.0 - rate * group["weight_decay"])
            for views, orthogonal in self._orthogonal(parameters, updates):
                scale = rate * RMS * max(orthogonal.shape[-2:]) ** 0.5
                torch._foreach_sub_(views, list((orthogonal.float() * scale).unbind()))
        return None

    def _momentum(self, parameter: Tensor, beta: float, skipped: Tensor) -> Tensor:
        """Advances the momentum; returns Nesterov's look-ahead. A skipped gradient changes nothing."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        assert parameter.grad is not None
        gradient = torch.where(skipped > 0.0, buffer, parameter.grad)
        buffer.lerp_(gradient, 1.0 - beta)
        state["step"] += 1.0 - skipped
        return torch.lerp(gradient, buffer, beta)

    def _orthogonal(
        self, parameters: list[Tensor], updates: list[Tensor]
    ) -> Iterator[tuple[list[Tensor], Tensor]]:
        """(views of weights, their orthogonalised updates (count, rows, columns)), one pair a size."""
        sizes: dict[tuple[int, int], tuple[list[Tensor], list[Tensor]]] = {}
        for parameter, update in zip(parameters, updates, strict=True):
            for start, stop in self.rows[parameter]:
                views, matrices = sizes.setdefault((stop - start, parameter.shape[1]), ([], []))
                views.append(parameter[start:stop])
                matrices.append(update[start:stop].to(self.dtype))
        for views, matrices in sizes.values():
            yield views, orthogonalise(torch.stack(matrices))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Not used: checkpoints hold pieces, which the engine writes into the state."""
        raise NotImplementedError
