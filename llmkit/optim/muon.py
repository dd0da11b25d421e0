"""Muon: momentum whose matrices are orthogonalised before they become updates (Jordan et al. 2024).

A gradient matrix is dominated by few directions; replacing it by the nearest orthogonal matrix learns
from all of them at once. For hidden matrices only: embeddings, norms and biases are AdamW's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from llmkit.optim.exchange import MatrixExchange, MatrixShard

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


def orthogonalise_all(matrices: Sequence[Tensor]) -> list[Tensor]:
    """`orthogonalise` of matrices of any shapes; those of one shape go through the iteration together."""
    by_shape: dict[torch.Size, list[int]] = {}
    for index, matrix in enumerate(matrices):
        by_shape.setdefault(matrix.shape, []).append(index)
    results = list(matrices)
    for indices in by_shape.values():
        stacked = orthogonalise(torch.stack([matrices[index] for index in indices]))
        for index, result in zip(indices, stacked.unbind(), strict=True):
            results[index] = result
    return results


class Muon(torch.optim.Optimizer):
    """Muon over tensors that hold matrices, or any elements of them.

    tensors: (fp32 tensor of any shape, its shards); elements in no shard are padding. A stacked q/k/v
    projection holds three matrices. exchange: made of all shards in this order; it assembles full matrices.

    PyTorch's own (torch.optim.Muon) takes one full matrix a parameter: no stacks, no shards. And like
    PyTorch's fused optimizers, this one takes a device scalar `found_inf`: where that is 1.0 the step changes
    nothing, and nobody has to wait for its value.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        tensors: Sequence[tuple[Tensor, Sequence[MatrixShard]]],
        exchange: MatrixExchange,
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        super().__init__(
            [tensor for tensor, _ in tensors], {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        )
        self.tensors = [tensor for tensor, _ in tensors]
        self.shards = [list(shards) for _, shards in tensors]
        self.exchange = exchange

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update from the gradients; parameters without one are left alone."""
        assert closure is None
        (group,) = self.param_groups
        skipped = self.found_inf
        if skipped is None:
            skipped = torch.zeros((), device=self.tensors[0].device)
        used = [tensor for tensor in self.tensors if tensor.grad is not None]
        updates = [
            torch.zeros_like(t) if t.grad is None else self._momentum(t, group["momentum"], skipped)
            for t in self.tensors
        ]
        rate = group["lr"] * (1.0 - skipped)
        if used:
            torch._foreach_mul_(used, 1.0 - rate * group["weight_decay"])
        results = self.exchange.apply(self._views(updates), orthogonalise_all)
        by_size: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        shards = [shard for held in self.shards for shard in held]
        for shard, view, result in zip(shards, self._views(self.tensors), results, strict=True):
            views, orthogonal = by_size.setdefault(max(shard.shape), ([], []))
            views.append(view)
            orthogonal.append(result.to(view.device, torch.float32))
        for size, (views, orthogonal) in by_size.items():
            torch._foreach_sub_(views, torch._foreach_mul(orthogonal, rate * RMS * size**0.5))
        return None

    def _views(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each shard's elements, flat, of tensors that lie as the optimizer's own do."""
        return [
            tensor.view(-1)[shard.offset : shard.offset + shard.numel]
            for tensor, held in zip(tensors, self.shards, strict=True)
            for shard in held
        ]

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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Not used: checkpoints hold pieces, which the engine writes into the state."""
        raise NotImplementedError
