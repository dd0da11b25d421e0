"""Sends copies of tokens to the ranks that hold their experts, and what the experts give back.

Nothing is padded and no token dropped: each rank is sent as many copies as its experts were chosen for, so
the ranks tell each other first how many those are. The host has to know the sizes of its messages: with a GPU
it waits for the router once in each layer, and once more where that is recomputed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmkit.kernels.experts import Dispatch, permute
from llmkit.parallel.collectives import UnderWay, all_to_all, arrived, send_to_all, start_all_to_all, wait
from llmkit.parallel.mesh import ExpertParallel


@dataclass(frozen=True)
class ExpertExchange:
    """The copies that the ranks of a group exchange in a layer, for one choice of experts.

    sent, received: how many of its copies this rank sends to each rank, and gets from it. arrived: how those
    that it gets, rank after rank, lie grouped by its own experts.
    """

    ranks: ExpertParallel
    sent: list[int]
    received: list[int]
    arrived: Dispatch

    @classmethod
    def of(cls, dispatch: Dispatch, ranks: ExpertParallel) -> ExpertExchange:
        """dispatch: of this rank's tokens, over all experts. Collective."""
        assert ranks.group is not None
        counts = torch.diff(dispatch.ends, prepend=dispatch.ends.new_zeros(1))  # copies for each expert
        own = len(counts) // ranks.size
        sizes = [own] * ranks.size
        # (ranks * own,): the copies from each rank for each expert of this one.
        arriving = wait(start_all_to_all(counts, sizes, sizes, ranks.group.group_name))
        sent, received = torch.stack((counts, arriving)).unflatten(1, (ranks.size, own)).sum(-1).tolist()
        experts = torch.arange(own, device=counts.device).repeat(ranks.size)
        chosen = torch.repeat_interleave(experts, arriving, output_size=sum(received))
        return cls(ranks, sent, received, Dispatch.of(chosen, own))

    def send(self, copies: Tensor) -> tuple[Tensor, UnderWay]:
        """Starts to send copies, (copies, width), grouped by expert.

        Collective, forward and backward, as are the two below.
        """
        assert self.ranks.group is not None
        return send_to_all(copies, self.received, self.sent, self.ranks.group)

    def at_experts(self, sent: tuple[Tensor, UnderWay]) -> Tensor:
        """What `send` has started, once it is there: copies for this rank's experts, grouped by expert."""
        return permute(arrived(*sent), self.arrived.order, self.arrived.inverse)

    def from_experts(self, outputs: Tensor) -> Tensor:
        """What the experts give for each copy, in the order in which `send` was given these."""
        assert self.ranks.group is not None
        by_rank = permute(outputs, self.arrived.inverse, self.arrived.order)
        return all_to_all(by_rank, self.sent, self.received, self.ranks.group)
