"""Sums gradients over the data-parallel ranks while the backward pass still runs.

Gradients are accumulated in fp32 in a few flat buckets, the last layers first, as they are finished
first. In the last micro-batch of a step each bucket is reduced as soon as it is complete (Li et al. 2020,
"PyTorch Distributed"); in the others nothing is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


class GradientBuckets:
    """Owns the gradients of `masters`, the fp32 forms of `weights` (which may be the same tensors).

    weights: the leaves that the model works with, in the order of the forward pass. bucket_bytes: a bucket is
    complete as soon as it has so many.
    """

    def __init__(
        self, weights: Sequence[Tensor], masters: Sequence[Tensor], group: ProcessGroup, bucket_bytes: int
    ) -> None:
        self.group = group
        self.last_micro_batch = False
        self._buckets: list[Tensor] = []
        self._missing: list[int] = []
        self._sizes: list[int] = []
        self._sent: list[dist.Work] = []
        waiting: list[tuple[Tensor, Tensor]] = []
        for pair in reversed(list(zip(weights, masters, strict=True))):
            waiting.append(pair)
            if sum(master.numel() for _, master in waiting) * 4 >= bucket_bytes:
                self._add_bucket(waiting)
                waiting = []
        if waiting:
            self._add_bucket(waiting)

    def _add_bucket(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        size = sum(master.numel() for _, master in pairs)
        bucket = torch.zeros(size, dtype=torch.float32, device=pairs[0][1].device)
        start = 0
        for weight, master in pairs:
            master.grad = bucket[start : start + master.numel()].view_as(master)
            start += master.numel()
            weight.register_post_accumulate_grad_hook(self._hook(master, len(self._buckets)))
        self._buckets.append(bucket)
        self._sizes.append(len(pairs))
        self._missing.append(len(pairs))

    def _hook(self, master: Tensor, bucket: int) -> Callable[[Tensor], None]:
        def accumulated(weight: Tensor) -> None:
            if weight is not master:
                assert master.grad is not None and weight.grad is not None
                master.grad += weight.grad
                weight.grad = None
            if self.last_micro_batch:
                self._missing[bucket] -= 1
                self._send()

        return accumulated

    def _send(self) -> None:
        """Starts the reduction of complete buckets, on all ranks in the same order."""
        while len(self._sent) < len(self._buckets) and self._missing[len(self._sent)] == 0:
            work = dist.all_reduce(self._buckets[len(self._sent)], group=self.group, async_op=True)
            assert work is not None
            self._sent.append(work)

    def finish(self) -> None:
        """After the last backward pass: the gradients are summed (on a GPU: once the stream gets there)."""
        self._missing = [0] * len(self._buckets)  # a weight that took no part has sent nothing
        self._send()
        for work in self._sent:
            work.wait()
        self._sent.clear()
        self._missing = list(self._sizes)

    def zero(self) -> None:
        """Before the first backward pass of a step."""
        torch._foreach_zero_(self._buckets)
