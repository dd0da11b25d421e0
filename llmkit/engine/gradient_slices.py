"""Gradients of which a rank keeps its slices alone (ZeRO stage 2, Rajbhandari et al. 2020).

The gradient of a micro-batch lies in memory one bucket after the other: from the first weight of a bucket
whose gradient is there until the ranks have summed it. A rank then adds its slice to what it keeps for the
step. So gradients are sent after every micro-batch, while its backward pass still runs, and those of the
bucket that is complete last while the next forward pass does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor

from llmkit.engine.reduce import Bucket, Buckets, came_again
from llmkit.parallel.mesh import Axis
from llmkit.plan.buckets import ON_THEIR_WAY


class GradientSlices(Buckets):
    """Owns this rank's slices of the gradients of weights, which are summed in fp32.

    Arguments: see `Buckets`. The gradient of a weight is copied to its bucket's buffer as it comes, and
    freed. A weight without one in a micro-batch counts as one whose gradient is zero; its bucket, and those
    behind it, wait in memory for the end of that micro-batch. Which weights these are may differ between
    ranks, unless a rank needs something of another one in its backward pass, too: it may be waiting for a
    bucket that the other one sends at its end.
    """

    def __init__(self, weights: Sequence[tuple[Tensor, int]], axis: Axis, bucket_bytes: int) -> None:
        super().__init__(weights, axis, bucket_bytes, partitioned=True)
        self.waiting: Callable[[], AbstractContextManager[None]] = nullcontext
        """Entered for each wait for other ranks: most are in the backward pass, hooks of gradients."""
        device = weights[0][0].device
        self.slices = {
            bucket: torch.zeros(bucket.size // axis.size, dtype=torch.float32, device=device)
            for bucket in self.buckets
        }
        self.buffers: dict[Bucket, Tensor] = {}
        """The gradients that are in memory: those of one micro-batch and this rank, or on their way."""
        self._on_their_way: deque[tuple[Bucket, dist.Work]] = deque()
        self._begun = False

    def own_gradient(self, bucket: Bucket) -> Tensor:
        """This rank's slice of the gradient; after `finish` summed over ranks and micro-batches."""
        return self.slices[bucket]

    def zero(self) -> None:
        """Before the first backward pass of a step."""
        torch._foreach_zero_(list(self.slices.values()))

    def before_backward(self, last: bool) -> None:
        """Before each micro-batch: what is left of the one before is sent. last: see `Masters`."""
        if self._begun:
            self._send_rest()
        self._begun = True

    def finish(self) -> None:
        """After the last backward pass: the gradients are summed (on a GPU: once the stream gets there)."""
        self._send_rest()
        self._take_back(0)
        self._begun = False

    def _accumulated(self, bucket: Bucket, index: int, weight: Tensor) -> None:
        assert weight.grad is not None
        if index not in bucket.missing:
            raise came_again(weight)
        bucket.view(self.buffer(bucket), index).copy_(weight.grad)
        weight.grad = None
        bucket.missing.discard(index)
        self.send_complete()

    def buffer(self, bucket: Bucket) -> Tensor:
        """The memory of a bucket's gradient: what belongs to no weight is zero, all else not set."""
        if not self.sent:  # what is on its way is of the micro-batch before, perhaps this very bucket
            self._take_back(0)
        if bucket in self.buffers:
            return self.buffers[bucket]
        slices = self.slices[bucket]
        buffer = self.buffers[bucket] = slices.new_empty(bucket.size)
        begins = [*bucket.offsets[1:], bucket.size]
        for weight, offset, following in zip(bucket.weights, bucket.offsets, begins, strict=True):
            if offset + weight.numel() < following:
                buffer[offset + weight.numel() : following].zero_()
        return buffer

    def _start(self, bucket: Bucket) -> None:
        buffer = self.buffer(bucket)
        self.before_sending(buffer)
        self._on_their_way.append((bucket, self.scatter(buffer, bucket)))
        self._take_back(ON_THEIR_WAY)

    def _send_rest(self) -> None:
        """After a micro-batch: sends the buckets of weights that took no part in it."""
        for bucket in self.buckets[self.sent :]:
            for index in bucket.missing:
                bucket.view(self.buffer(bucket), index).zero_()
            bucket.missing.clear()
            self.send_complete()
        self.expect_all()

    def _take_back(self, left: int) -> None:
        """Adds sums to the slices, and frees their buffers, until so many are on their way."""
        while len(self._on_their_way) > left:
            bucket, work = self._on_their_way.popleft()
            with self.waiting():
                work.wait()
            self.slices[bucket].add_(self.buffers.pop(bucket)[self.own(bucket)])
