"""Muon: momentum whose matrices are orthogonalised before they become updates (Jordan et al. 2024).

A gradient matrix is dominated by few directions; replacing it by the nearest orthogonal matrix learns
from all of them at once. For hidden matrices only: embeddings, norms and biases are AdamW's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from llmkit.kernels.operators import TORCH, Operators
from llmkit.optim.exchange import MatrixExchange, MatrixShard

COEFFICIENTS = ((3.4445, -4.7750, 2.0315),) * 5
"""Of the quintic iteration, a round each; chosen by Jordan for the steepest slope at 0, so that five do.
Singular values above about 0.02 of their matrix's norm end between 0.6 and 1.3, smaller ones below."""
RMS = 0.2
"""Root mean square of an update at learning rate 1, like AdamW's (Liu et al. 2025, Moonlight): one
learning rate and one weight decay then serve both optimizers."""


class Muon(torch.optim.Optimizer):
    """Muon over tensors that hold matrices, or any elements of them.

    groups: as PyTorch's optimizers take them, of fp32 tensors of any shape, each with "lr", "momentum" and
    "weight_decay". shards: of each tensor; elements in no shard are padding. A stacked q/k/v projection holds
    three matrices. exchange: made of all shards, in the order of the tensors; it assembles full matrices.

    PyTorch's own (torch.optim.Muon) takes one full matrix a parameter: no stacks, no shards. And like
    PyTorch's fused optimizers, this one takes two device scalars: gradients are divided by `grad_scale`, and
    where `found_inf` is 1.0 the step changes nothing; nobody has to wait for their values.
    rounded: tensor -> the one of lower precision that is set to the same values, of all tensors or of none.
    """

    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None
    rounded: Mapping[Tensor, Tensor] = {}
    watch: Callable[[list[Tensor], list[Tensor], list[float], list[float]], None] | None = None
    """Called with what `descend` is about to be given: weights, updates, sizes and decays of all shards."""

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        shards: Mapping[Tensor, Sequence[MatrixShard]],
        exchange: MatrixExchange,
        *,
        operators: Operators = TORCH,
    ) -> None:
        super().__init__(list(groups), {})
        self.tensors: list[Tensor] = [tensor for group in self.param_groups for tensor in group["params"]]
        self.shards = [list(shards[tensor]) for tensor in self.tensors]
        self.exchange, self.operators = exchange, operators

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update from the gradients; parameters without one are left alone."""
        assert closure is None
        groups = [group for group in self.param_groups for _ in group["params"]]
        skipped = self.found_inf
        if skipped is None:
            skipped = torch.zeros((), device=self.tensors[0].device)
        ahead = {tensor: a for group in self.param_groups for tensor, a in self._look_ahead(group, skipped)}
        results = self.exchange.apply(
            self._views([ahead[tensor] for tensor in self.tensors]),
            lambda matrices: self.operators.orthogonalise(matrices, COEFFICIENTS),
        )
        sizes, decays = [], []
        for group, tensor, held in zip(groups, self.tensors, self.shards, strict=True):
            decay = 0.0 if tensor.grad is None else group["lr"] * group["weight_decay"]
            decays += [decay] * len(held)
            sizes += [group["lr"] * RMS * max(shard.shape) ** 0.5 for shard in held]
        weights = self._views(self.tensors)
        if self.watch is not None:
            self.watch(weights, results, sizes, decays)
        self.operators.descend(
            weights, results, sizes, decays, skipped=skipped,
            rounded=self._views([self.rounded[each] for each in self.tensors] if self.rounded else []),
        )  # fmt: skip
        return None

    def _views(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each shard's elements, flat, of tensors that lie as the optimizer's own do."""
        return [
            tensor.view(-1)[shard.offset : shard.offset + shard.numel]
            for tensor, held in zip(tensors, self.shards, strict=bool(tensors))
            for shard in held
        ]

    def _look_ahead(self, group: dict[str, Any], skipped: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Advances the momentum of a group; each tensor with Nesterov's look-ahead, zeros if unused."""
        used = [tensor for tensor in group["params"] if tensor.grad is not None]
        for tensor in used:
            if not self.state[tensor]:
                self.state[tensor]["step"] = torch.zeros((), device=tensor.device)
                self.state[tensor]["momentum_buffer"] = torch.zeros_like(tensor)
        found: dict[Tensor, Tensor] = {}
        if used:
            states = [self.state[tensor] for tensor in used]
            torch._foreach_add_([state["step"] for state in states], [1.0 - skipped] * len(states))
            ahead = self.operators.look_ahead(
                [tensor.grad for tensor in used], [state["momentum_buffer"] for state in states],
                group["momentum"], scale=None if self.grad_scale is None else self.grad_scale.reciprocal(),
                skipped=skipped, dtype=self.exchange.dtype,
            )  # fmt: skip
            found = dict(zip(used, ahead, strict=True))
        for tensor in group["params"]:
            unused = tensor not in found
            yield tensor, torch.zeros_like(tensor, dtype=self.exchange.dtype) if unused else found[tensor]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Not used: checkpoints hold pieces, which the engine writes into the state."""
        raise NotImplementedError
