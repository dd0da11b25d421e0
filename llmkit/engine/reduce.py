"""Sums gradients over the data-parallel ranks while the backward pass still runs.

Gradients are accumulated in fp32 in a few flat buckets, the last layers first, as they are finished
first. In the last micro-batch of a step each bucket is reduced as soon as it is complete (Li et al. 2020,
"PyTorch Distributed"); in the others nothing is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from llmkit.parallel.mesh import Axis
from llmkit.plan.buckets import fill, offsets

REDUCE_SCATTER, ALL_GATHER = "reduce_scatter_single", "all_gather_single"
if not hasattr(dist, REDUCE_SCATTER):  # torch before 2.13
    REDUCE_SCATTER, ALL_GATHER = "reduce_scatter_tensor", "all_gather_into_tensor"
"""The names of today warn of those of yesterday."""


@dataclass
class Bucket:
    """The gradients of some weights in one flat fp32 tensor.

    offsets: where in `gradient` that of each weight begins. missing: weights whose gradient is not complete.
    """

    weights: list[Tensor]
    offsets: list[int]
    gradient: Tensor
    missing: int = field(init=False)

    def __post_init__(self) -> None:
        self.missing = len(self.weights)

    def views(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(weight, its gradient, of the same shape)."""
        for weight, offset in zip(self.weights, self.offsets, strict=True):
            yield weight, self.gradient[offset : offset + weight.numel()].view(weight.shape)


class GradientBuckets:
    """Owns the gradients of weights, which are summed in fp32.

    After each backward pass the gradient of a weight of another type is added to its view of the bucket
    (`Bucket.views`) and freed; the `grad` of an fp32 weight must be that view.

    weights: the leaves that the model works with, in the order of the forward pass, each with a number: those
    of different numbers share no bucket. axis: the ranks over which gradients are summed. bucket_bytes: a
    bucket is full as soon as it has so many. partitioned: each rank gets its slice of a bucket's sum only
    (`own`); the rest of the bucket is then of no use.
    """

    def __init__(
        self, weights: Sequence[tuple[Tensor, int]], axis: Axis, bucket_bytes: int, *, partitioned: bool
    ) -> None:
        self.axis, self.partitioned = axis, partitioned
        self.last_micro_batch = False
        self.before_sending: Callable[[Tensor], None] = lambda gradient: None
        """Called with the gradient of each bucket, while it is that of this rank alone."""
        self.buckets: list[Bucket] = []
        self._sent: list[dist.Work] = []
        sizes = [(weight.numel(), number) for weight, number in weights]
        for bucket in fill(sizes, bucket_bytes, axis.size):
            self._add([weights[index][0] for index in bucket])

    def _add(self, weights: list[Tensor]) -> None:
        sizes = [weight.numel() for weight in weights]
        begins, size = offsets(sizes, self.axis.size, partitioned=self.partitioned)
        bucket = Bucket(weights, begins, torch.zeros(size, dtype=torch.float32, device=weights[0].device))
        for weight, gradient in bucket.views():
            weight.register_post_accumulate_grad_hook(self._hook(gradient, bucket))
        self.buckets.append(bucket)

    def _hook(self, gradient: Tensor, bucket: Bucket) -> Callable[[Tensor], None]:
        def accumulated(weight: Tensor) -> None:
            if weight.dtype != torch.float32:
                assert weight.grad is not None
                gradient.add_(weight.grad)
                weight.grad = None
            if self.last_micro_batch:
                bucket.missing -= 1
                self._send()

        return accumulated

    def own(self, bucket: Bucket) -> slice:
        """The elements of a bucket, weights or gradients, that this rank updates."""
        size = bucket.gradient.numel() // self.axis.size
        return slice(self.axis.rank * size, (self.axis.rank + 1) * size)

    def _send(self) -> None:
        """Starts the reduction of complete buckets, on all ranks in the same order."""
        group = self.axis.group
        while len(self._sent) < len(self.buckets) and self.buckets[len(self._sent)].missing == 0:
            bucket = self.buckets[len(self._sent)]
            self.before_sending(bucket.gradient)
            if self.partitioned:
                mine = bucket.gradient[self.own(bucket)]
                work = getattr(dist, REDUCE_SCATTER)(mine, bucket.gradient, group=group, async_op=True)
            else:
                work = dist.all_reduce(bucket.gradient, group=group, async_op=True)
            assert work is not None
            self._sent.append(work)

    def finish(self) -> None:
        """After the last backward pass: the gradients are summed (on a GPU: once the stream gets there)."""
        for bucket in self.buckets:
            bucket.missing = 0  # a weight that took no part has sent nothing
        self._send()
        for work in self._sent:
            work.wait()
        self._sent.clear()
        for bucket in self.buckets:
            bucket.missing = len(bucket.weights)

    def zero(self) -> None:
        """Before the first backward pass of a step."""
        torch._foreach_zero_([bucket.gradient for bucket in self.buckets])

    def all_gather(self, tensors: Sequence[Tensor]) -> None:
        """Sends each rank's own slices of flat tensors, one a bucket, to all others."""
        sent: list[dist.Work | None] = []
        for bucket, tensor in zip(self.buckets, tensors, strict=True):
            if tensor.is_cpu:  # not gloo's all-gather: see llmkit.parallel.collectives
                for rank, part in enumerate(tensor.chunk(self.axis.size)):
                    sent.append(dist.broadcast(part, group=self.axis.group, group_src=rank, async_op=True))
            else:
                mine = tensor[self.own(bucket)]
                gather = getattr(dist, ALL_GATHER)
                sent.append(gather(tensor, mine, group=self.axis.group, async_op=True))
        for work in sent:
            if work is not None:
                work.wait()
