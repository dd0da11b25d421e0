"""The fp32 weights that the native engine updates, their gradients, and the weights that follow from them.

Two ways to keep them on data-parallel ranks: every rank all of them (`ReplicatedMasters`), or each rank a
slice (`PartitionedMasters`, ZeRO stages 1 and 2). Weights whose gradients are summed over other ranks, as
those of experts that are dealt out, are kept by another one of these (`SeveralMasters`). Weights that take no
gradient have no part in this.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from llmkit.config.groups import Group
from llmkit.engine.gradient_slices import GradientSlices
from llmkit.engine.reduce import Bucket, GradientBuckets
from llmkit.optim.build import Held
from llmkit.parallel.mesh import Axis
from llmkit.parallel.slices import Fragment
from llmkit.precision import Precision, torch_dtype


class Masters(Protocol):
    """What the engine needs of either."""

    @property
    def held(self) -> Sequence[Held]:
        """The fp32 tensors that this rank updates; after `reduce` their `grad` is summed over the ranks."""
        ...

    def zero_gradients(self) -> None:
        """Before the first backward pass of a step."""
        ...

    def before_backward(self, last: bool) -> None:
        """last: whether it is the last backward pass of the step."""
        ...

    def reduce(self) -> None:
        """After the last backward pass: sums the gradients over the ranks."""
        ...

    def rounded(self) -> dict[Tensor, Tensor]:
        """Master -> the weights of lower precision that follow from it, of the same elements."""
        ...

    def round_weights(self, written: Collection[Tensor] = ()) -> None:
        """Sets the weights of which this rank has the masters to their values, rounded to their type.

        written: masters whose elements of the weights have been set already.
        """
        ...

    def send_weights(self) -> None:
        """Gives the weights that `round_weights` has set to the ranks that lack them. Collective."""
        ...


class ReplicatedMasters:
    """Every rank holds, and updates, all masters.

    weights: name -> fp32 parameter, in the order of the forward pass; where the precision keeps masters, they
    are rounded to its type. groups: of these parameters, and perhaps of others. axis: the
    ranks over which gradients are summed.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        groups: Sequence[Group],
        precision: Precision,
        axis: Axis,
        bucket_bytes: int,
    ) -> None:
        self.weights: list[Tensor] = list(weights.values())
        self.masters = self.weights
        if precision.keeps_masters:
            self.masters = [nn.Parameter(weight.detach().clone()) for weight in self.weights]
            for weight in self.weights:
                weight.data = weight.data.to(torch_dtype(precision.weights))
        named = dict(zip(weights, self.masters, strict=True))
        self.held = [
            Held(group, named[name], [Fragment(name, 0, 0, named[name].numel())])
            for group in groups
            for name in group.names
            if name in named
        ]
        self.buckets: GradientBuckets | None = None
        if axis.size > 1:
            self.buckets = GradientBuckets(
                [(w, 0) for w in self.weights], axis, bucket_bytes, partitioned=False
            )
            flat = self.buckets.gradients.items()
            gradients = {weight: view for bucket, whole in flat for weight, view in bucket.views(whole)}
            for weight, master in zip(self.weights, self.masters, strict=True):
                master.grad = gradients[weight]
        elif precision.keeps_masters:
            for weight, master in zip(self.weights, self.masters, strict=True):
                weight.register_post_accumulate_grad_hook(_adds_to(master))

    def zero_gradients(self) -> None:
        """See `Masters.zero_gradients`."""
        if self.buckets is not None:
            self.buckets.zero()
        for master in self.masters if self.buckets is None else ():
            master.grad = None

    def before_backward(self, last: bool) -> None:
        """See `Masters.before_backward`."""
        if self.buckets is not None:
            self.buckets.before_backward(last)

    def reduce(self) -> None:
        """See `Masters.reduce`. A weight that took no part has a gradient of zero, as it has in buckets."""
        if self.buckets is not None:
            self.buckets.finish()
        for master in self.masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)

    def rounded(self) -> dict[Tensor, Tensor]:
        """See `Masters.rounded`."""
        return {} if self.masters is self.weights else dict(zip(self.masters, self.weights, strict=True))

    @torch.no_grad()
    def round_weights(self, written: Collection[Tensor] = ()) -> None:
        """See `Masters.round_weights`."""
        left = {master: weight for master, weight in self.rounded().items() if master not in written}
        if left:
            torch._foreach_copy_(list(left.values()), list(left))

    def send_weights(self) -> None:
        """Does nothing: every rank has all masters."""


def _adds_to(master: Tensor) -> Callable[[Tensor], None]:
    """Moves a gradient to its master as soon as it is there: out of caches, and never are all kept twice."""

    def accumulated(weight: Tensor) -> None:
        assert weight.grad is not None
        if master.grad is None:
            master.grad = weight.grad.float()
        else:
            master.grad += weight.grad
        weight.grad = None

    return accumulated


class PartitionedMasters:
    """ZeRO stages 1 and 2 (Rajbhandari et al. 2020), as in Megatron-LM's distributed optimizer.

    Weights and gradients lie in flat buckets, those of a group of parameters in buckets of their own, and of
    each bucket every rank updates one slice, wherever parameters begin in it. Gradients are reduce-scattered
    as their buckets become complete, weights all-gathered after the update. Arguments as in
    `ReplicatedMasters`; the weights are moved into flat tensors beside the buckets. sliced: whether gradients
    are kept as slices, too (stage 2).
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        groups: Sequence[Group],
        precision: Precision,
        axis: Axis,
        bucket_bytes: int,
        *,
        sliced: bool = False,
    ) -> None:
        number = {name: index for index, group in enumerate(groups) for name in group.names}
        names = {weight: name for name, weight in weights.items()}
        numbered = [(weight, number[name]) for name, weight in weights.items()]
        self.buckets: GradientBuckets | GradientSlices
        if sliced:
            self.buckets = GradientSlices(numbered, axis, bucket_bytes)
        else:
            self.buckets = GradientBuckets(numbered, axis, bucket_bytes, partitioned=True)
        self.held: list[Held] = []
        self.flat_weights: list[Tensor] = []
        for bucket in self.buckets.buckets:
            mine = self.buckets.own(bucket)
            flat, master = _flatten(bucket, mine, precision)
            master.grad = self.buckets.own_gradient(bucket)
            if isinstance(self.buckets, GradientBuckets) and not precision.keeps_masters:
                self.buckets.keep_in(bucket)
            fragments = []
            for weight, offset in zip(bucket.weights, bucket.offsets, strict=True):
                first, last = max(offset, mine.start), min(offset + weight.numel(), mine.stop)
                if first < last:
                    place = (first - mine.start, first - offset, last - first)
                    fragments.append(Fragment(names[weight], *place))
            self.flat_weights.append(flat)
            self.held.append(Held(groups[number[names[bucket.weights[0]]]], master, fragments))

    def zero_gradients(self) -> None:
        """See `Masters.zero_gradients`."""
        self.buckets.zero()

    def before_backward(self, last: bool) -> None:
        """See `Masters.before_backward`."""
        self.buckets.before_backward(last)

    def reduce(self) -> None:
        """See `Masters.reduce`."""
        self.buckets.finish()

    def rounded(self) -> dict[Tensor, Tensor]:
        """See `Masters.rounded`."""
        slices = {
            held.tensor: flat[self.buckets.own(bucket)]
            for bucket, flat, held in zip(self.buckets.buckets, self.flat_weights, self.held, strict=True)
        }
        return {master: mine for master, mine in slices.items() if mine.dtype != torch.float32}

    @torch.no_grad()
    def round_weights(self, written: Collection[Tensor] = ()) -> None:
        """See `Masters.round_weights`."""
        for master, mine in self.rounded().items():
            if master not in written:
                mine.copy_(master)

    def send_weights(self) -> None:
        """See `Masters.send_weights`. Each rank sends its slices."""
        with torch.no_grad():
            self.buckets.all_gather(self.flat_weights)


class SeveralMasters:
    """Masters of weights whose gradients are summed over different ranks. parts: in the same order on all."""

    def __init__(self, parts: Sequence[Masters]) -> None:
        self.parts = parts
        self.held = [held for part in parts for held in part.held]

    def zero_gradients(self) -> None:
        """See `Masters.zero_gradients`."""
        for part in self.parts:
            part.zero_gradients()

    def before_backward(self, last: bool) -> None:
        """See `Masters.before_backward`."""
        for part in self.parts:
            part.before_backward(last)

    def reduce(self) -> None:
        """See `Masters.reduce`."""
        for part in self.parts:
            part.reduce()

    def rounded(self) -> dict[Tensor, Tensor]:
        """See `Masters.rounded`."""
        return {master: weight for part in self.parts for master, weight in part.rounded().items()}

    def round_weights(self, written: Collection[Tensor] = ()) -> None:
        """See `Masters.round_weights`."""
        for part in self.parts:
            part.round_weights(written)

    def send_weights(self) -> None:
        """See `Masters.send_weights`."""
        for part in self.parts:
            part.send_weights()


@torch.no_grad()
def _flatten(bucket: Bucket, mine: slice, precision: Precision) -> tuple[Tensor, Tensor]:
    """Moves the fp32 weights of a bucket into one flat tensor; that, and the masters of the slice `mine`."""
    values = torch.zeros(bucket.size, dtype=torch.float32, device=bucket.weights[0].device)
    for weight, view in bucket.views(values):
        view.copy_(weight)
    flat = values.to(torch_dtype(precision.weights))
    master = values[mine].clone() if precision.keeps_masters else flat[mine]
    for weight, view in bucket.views(flat):
        weight.data = view
    return flat, master
