"""Sums gradients over the data-parallel ranks while the backward pass still runs.

Gradients are accumulated in fp32 in a few flat buckets, the last layers first, as they are finished
first. In the last micro-batch of a step each bucket is reduced as soon as it is complete (Li et al. 2020,
"PyTorch Distributed"); in the others nothing is sent. Where a rank keeps its slices of the sums alone, after
each micro-batch, see `llmkit.engine.gradient_slices`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from llmkit.errors import UserError
from llmkit.parallel.mesh import Axis
from llmkit.plan.buckets import fill, offsets

REDUCE_SCATTER, ALL_GATHER = "reduce_scatter_single", "all_gather_single"
if not hasattr(dist, REDUCE_SCATTER):  # torch before 2.13
    REDUCE_SCATTER, ALL_GATHER = "reduce_scatter_tensor", "all_gather_into_tensor"
"""The names of today warn of those of yesterday."""


@dataclass(eq=False)
class Bucket:
    """Some weights whose gradients are sent together, in one flat fp32 tensor of `size` elements.

    offsets: where in it that of each weight begins. missing: numbers of the weights, in `weights`, whose
    gradient is not complete.
    """

    weights: list[Tensor]
    offsets: list[int]
    size: int
    missing: set[int] = field(init=False)

    def __post_init__(self) -> None:
        self.expect_all()

    def expect_all(self) -> None:
        """Before gradients come: none of them is complete."""
        self.missing = set(range(len(self.weights)))

    def view(self, flat: Tensor, index: int) -> Tensor:
        """What belongs to a weight in a flat tensor of this bucket, in the weight's shape."""
        weight, offset = self.weights[index], self.offsets[index]
        return flat[offset : offset + weight.numel()].view(weight.shape)

    def views(self, flat: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(weight, what belongs to it in a flat tensor of this bucket)."""
        for index, weight in enumerate(self.weights):
            yield weight, self.view(flat, index)


def came_again(weight: Tensor) -> UserError:
    """The error where a gradient comes that would be left out of the sum: a part of it was there before."""
    return UserError(
        f"a part of the gradient of a weight of shape {tuple(weight.shape)} comes after the ranks began to "
        "sum it: the model uses it in several segments of torch.utils.checkpoint with use_reentrant=True, "
        "which have backward passes of their own; set use_reentrant=False"
    )


class Buckets:
    """The weights in buckets, which are sent as they become complete, on all ranks in the same order.

    weights: the leaves that the model works with, in the order of the forward pass, each with a number: those
    of different numbers share no bucket. axis: the ranks over which gradients are summed. bucket_bytes: a
    bucket is full as soon as it has so many. partitioned: whether each rank has a slice of each (`own`).
    """

    def __init__(
        self, weights: Sequence[tuple[Tensor, int]], axis: Axis, bucket_bytes: int, *, partitioned: bool
    ) -> None:
        self.axis, self.partitioned = axis, partitioned
        self.before_sending: Callable[[Tensor], None] = lambda gradient: None
        """Called with the gradient of each bucket, while it is that of this rank alone."""
        self.buckets: list[Bucket] = []
        self.sent = 0
        """How many buckets are on their way, or were, since gradients began to come."""
        sizes = [(weight.numel(), number) for weight, number in weights]
        for indices in fill(sizes, bucket_bytes, axis.size):
            mine = [weights[index][0] for index in indices]
            numels = [each.numel() for each in mine]
            bucket = Bucket(mine, *offsets(numels, axis.size, partitioned=partitioned))
            for index, weight in enumerate(mine):
                weight.register_post_accumulate_grad_hook(partial(self._accumulated, bucket, index))
            self.buckets.append(bucket)

    def own(self, bucket: Bucket) -> slice:
        """The elements of a bucket, weights or gradients, that this rank updates."""
        size = bucket.size // self.axis.size
        return slice(self.axis.rank * size, (self.axis.rank + 1) * size)

    def send_complete(self) -> None:
        """Starts the reduction of complete buckets, on all ranks in the same order."""
        while self.sent < len(self.buckets) and not self.buckets[self.sent].missing:
            self._start(self.buckets[self.sent])
            self.sent += 1

    def expect_all(self) -> None:
        """Once all buckets are sent, before the next gradients come."""
        self.sent = 0
        for bucket in self.buckets:
            bucket.expect_all()

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

    def scatter(self, gradient: Tensor, bucket: Bucket) -> dist.Work:
        """Starts the sum of a bucket's gradient, of which each rank gets its slice, where it lies."""
        mine = gradient[self.own(bucket)]
        work = getattr(dist, REDUCE_SCATTER)(mine, gradient, group=self.axis.group, async_op=True)
        assert work is not None
        return work

    def _accumulated(self, bucket: Bucket, index: int, weight: Tensor) -> None:
        """Called in the backward pass as soon as `weight.grad` is there, of a bucket's weight `index`."""
        raise NotImplementedError

    def _start(self, bucket: Bucket) -> None:
        """Starts the reduction of a bucket."""
        raise NotImplementedError


class GradientBuckets(Buckets):
    """Owns the gradients of weights, which are summed in fp32.

    After each backward pass the gradient of a weight of another type is added to its view of the bucket's
    (`gradients`) and freed; the `grad` of an fp32 weight must be that view. Arguments: see `Buckets`.
    partitioned: each rank gets its slice of a bucket's sum only; the rest of the bucket is then of no use.
    """

    def __init__(
        self, weights: Sequence[tuple[Tensor, int]], axis: Axis, bucket_bytes: int, *, partitioned: bool
    ) -> None:
        super().__init__(weights, axis, bucket_bytes, partitioned=partitioned)
        self.last_micro_batch = False
        device = weights[0][0].device
        self.gradients = {
            bucket: torch.zeros(bucket.size, dtype=torch.float32, device=device) for bucket in self.buckets
        }
        self._views = {b: [view for _, view in b.views(flat)] for b, flat in self.gradients.items()}
        self._on_their_way: list[dist.Work] = []

    def own_gradient(self, bucket: Bucket) -> Tensor:
        """This rank's slice of the gradient; after `finish` summed over the ranks."""
        return self.gradients[bucket][self.own(bucket)]

    def keep_in(self, bucket: Bucket) -> None:
        """Makes the views of the bucket the `grad` of its weights, which must be fp32."""
        for weight, view in zip(bucket.weights, self._views[bucket], strict=True):
            weight.grad = view

    def zero(self) -> None:
        """Before the first backward pass of a step."""
        torch._foreach_zero_(list(self.gradients.values()))

    def before_backward(self, last: bool) -> None:
        """Before each micro-batch. last: whether it is the last one of the step."""
        self.last_micro_batch = last

    def finish(self) -> None:
        """After the last backward pass: the gradients are summed (on a GPU: once the stream gets there)."""
        for bucket in self.buckets:
            bucket.missing.clear()  # a weight that took no part has sent nothing
        self.send_complete()
        for work in self._on_their_way:
            work.wait()
        self._on_their_way.clear()
        self.expect_all()

    def _accumulated(self, bucket: Bucket, index: int, weight: Tensor) -> None:
        if weight.dtype != torch.float32:
            assert weight.grad is not None
            self._views[bucket][index].add_(weight.grad)
            weight.grad = None
        if self.last_micro_batch:
            if index not in bucket.missing and bucket in self.buckets[: self.sent]:
                raise came_again(weight)
            bucket.missing.discard(index)
            self.send_complete()

    def _start(self, bucket: Bucket) -> None:
        gradient = self.gradients[bucket]
        self.before_sending(gradient)
        if self.partitioned:
            work = self.scatter(gradient, bucket)
        else:
            found = dist.all_reduce(gradient, group=self.axis.group, async_op=True)
            assert found is not None
            work = found
        self._on_their_way.append(work)
