"""Differentiable collectives over a process group.

Each does nothing where the group is None, so that a model on one rank pays nothing. Forward and backward:

    copy_to_group      identity                       all-reduce (Megatron's f)
    reduce_from_group  all-reduce                     identity (Megatron's g)
    all_gather         all pieces concatenated        own piece of the sum
    reduce_scatter     own piece of the sum           all pieces concatenated
    all_to_all         a part from each rank          the parts sent back

`send_to_all` and `arrived` are the two halves of `all_to_all`: what is computed between them, forward and
backward, is computed while messages are under way.

They are made of PyTorch's functional collectives, which torch.compile traces and selective activation
checkpointing can keep.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

Group: TypeAlias = ProcessGroup | None

_ops = torch.ops._c10d_functional


def start_all_reduce(x: Tensor, operation: str, group: str) -> Tensor:
    """Starts the "sum" or "max" of the ranks' x, on every rank; `wait` gives the result."""
    return _ops.all_reduce(x.contiguous(), operation, group)


def start_all_reduce_(x: Tensor, operation: str, group: str) -> Tensor:
    """As `start_all_reduce`, in the memory of x, which is contiguous."""
    return _ops.all_reduce_(x, operation, group)


def start_all_gather(x: Tensor, size: int, group: str) -> Tensor:
    """Starts gathering the x of all `size` ranks, concatenated along dimension 0; `wait` gives them."""
    x = x.contiguous()
    if x.is_cpu:
        # Not gloo's own all-gather: in PyTorch 2.13 two threads of a gloo group write the operation's name,
        # longer than a short std::string, into the group's status without a lock, which can corrupt the heap.
        copies = x.repeat(size, *[1] * (x.dim() - 1))
        return _ops.all_to_all_single(copies, [x.shape[0]] * size, [x.shape[0]] * size, group)
    return _ops.all_gather_into_tensor(x, size, group)


def start_reduce_scatter(x: Tensor, size: int, group: str) -> Tensor:
    """Starts summing the ranks' x; `wait` gives this rank's piece, one of `size` along dimension 0."""
    return _ops.reduce_scatter_tensor(x.contiguous(), "sum", size, group)


def start_all_to_all(x: Tensor, received: list[int], sent: list[int], group: str) -> Tensor:
    """Starts sending `sent[i]` rows of x (dimension 0) to each rank i; `wait` gives `received[i]` from it."""
    return _ops.all_to_all_single(x.contiguous(), received, sent, group)


def start_sum(of_x: Tensor, pieces: int, group: str) -> Tensor:
    """Starts the sum over the ranks of a gradient that nobody else reads, in its memory.

    pieces: where each rank needs its piece of the sum along dimension 0 only, how many there are; else 0.
    """
    return start_reduce_scatter(of_x, pieces, group) if pieces else start_all_reduce_(of_x, "sum", group)


def wait(started: Tensor) -> Tensor:
    """The result of what a `start_...` began. Until then the tensor must not be read."""
    return _ops.wait_tensor(started)


def _all_reduce(x: Tensor, operation: str, group: str) -> Tensor:
    """The "sum" or "max" of the ranks' x, on every rank."""
    return wait(start_all_reduce(x, operation, group))


def _all_gather(x: Tensor, dim: int, size: int, group: str) -> Tensor:
    """The x of all `size` ranks, concatenated along `dim`. Copies it unless `dim` is 0."""
    stacked = wait(start_all_gather(x, size, group))
    return stacked.unflatten(0, (size, -1)).movedim(0, dim).flatten(dim, dim + 1)


def _reduce_scatter(x: Tensor, dim: int, size: int, group: str) -> Tensor:
    """This rank's piece along `dim` of the sum of all `size` ranks' x. Copies x unless `dim` is 0."""
    stacked = x.unflatten(dim, (size, -1)).movedim(dim, 0).flatten(0, 1)
    return wait(start_reduce_scatter(stacked, size, group))


class _CopyToGroup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: str) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _all_reduce(gradients[0], "sum", ctx.group), None


class _ReduceFromGroup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: str) -> Tensor:
        return _all_reduce(x, "sum", group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, size: int, group: str) -> Tensor:
        ctx.how = (dim, size, group)
        return _all_gather(x, dim, size, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _reduce_scatter(gradients[0], *ctx.how), None, None, None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, size: int, group: str) -> Tensor:
        ctx.how = (dim, size, group)
        return _reduce_scatter(x, dim, size, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_gather(gradients[0], *ctx.how), None, None, None


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, received: list[int], sent: list[int], group: str) -> Tensor:
        ctx.back = (sent, received, group)
        return wait(start_all_to_all(x, received, sent, group))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return wait(start_all_to_all(gradients[0], *ctx.back)), None, None, None


class UnderWay:
    """Rows that `send_to_all` has started to send: on the way back, their gradients.

    They are no result of an autograd function: autograd would let others read them, and wants gradients to
    have the shape of what they are of.
    """

    def __init__(self, received: list[int], sent: list[int], group: str) -> None:
        self.forward, self.backward = (received, sent, group), (sent, received, group)
        self.started: Tensor | None = None

    def arrived(self) -> Tensor:
        """What has been started, once it is there."""
        assert self.started is not None
        found, self.started = wait(self.started), None
        return found


class _SendToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, under_way: UnderWay) -> Tensor:
        ctx.under_way = under_way
        under_way.started = start_all_to_all(x, *under_way.forward)
        return x.new_zeros(())  # never read, but looked at where NaN are searched for

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.under_way.arrived(), None


class _Arrived(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, link: Tensor, under_way: UnderWay) -> Tensor:
        ctx.under_way = under_way
        return under_way.arrived()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.under_way.started = start_all_to_all(gradients[0], *ctx.under_way.backward)
        return gradients[0].new_zeros(()), None


def copy_to_group(x: Tensor, group: Group) -> Tensor:
    """x itself; its gradient is summed over the group.

    For activations that every rank holds and each uses for its own part of a sharded layer.
    """
    return x if group is None else _CopyToGroup.apply(x, group.group_name)  # type: ignore[no-untyped-call]


def replicated_weight(weight: Tensor, group: Group) -> Tensor:
    """A weight that every rank holds and applies to other activations; its gradient is summed in fp32."""
    return weight if group is None else copy_to_group(weight.float(), group).to(weight.dtype)


def reduce_from_group(x: Tensor, group: Group) -> Tensor:
    """The sum of the ranks' x. What follows is the same on all ranks, and so is the gradient passed on."""
    return x if group is None else _ReduceFromGroup.apply(x, group.group_name)  # type: ignore[no-untyped-call]


def all_gather(x: Tensor, dim: int, group: Group) -> Tensor:
    """The ranks' x concatenated along `dim` (not negative); each rank uses it for its own part."""
    return x if group is None else _AllGather.apply(x, dim, group.size(), group.group_name)  # type: ignore[no-untyped-call]


def reduce_scatter(x: Tensor, dim: int, group: Group) -> Tensor:
    """This rank's piece along `dim` (not negative) of the sum of the ranks' x."""
    return x if group is None else _ReduceScatter.apply(x, dim, group.size(), group.group_name)  # type: ignore[no-untyped-call]


def all_to_all(x: Tensor, received: list[int], sent: list[int], group: ProcessGroup) -> Tensor:
    """`received[i]` rows (dimension 0) from each rank i; of x, `sent[i]` rows go there."""
    return _AllToAll.apply(x, received, sent, group.group_name)  # type: ignore[no-untyped-call]


def send_to_all(
    x: Tensor, received: list[int], sent: list[int], group: ProcessGroup
) -> tuple[Tensor, UnderWay]:
    """Starts what `all_to_all` does; `arrived` gives the result, for these two.

    The first is a value of no meaning by which autograd knows the order: it goes back through what is
    computed in between after it has started to send gradients back, and before it needs those that come.
    """
    under_way = UnderWay(received, sent, group.group_name)
    return _SendToAll.apply(x, under_way), under_way  # type: ignore[no-untyped-call]


def arrived(link: Tensor, under_way: UnderWay) -> Tensor:
    """What `send_to_all` has started, once it is there. Once only."""
    return _Arrived.apply(link, under_way)  # type: ignore[no-untyped-call]


def all_reduce_max(x: Tensor, group: Group) -> Tensor:
    """The largest of the ranks' x, element by element. Not differentiable."""
    return x if group is None else _all_reduce(x.detach(), "max", group.group_name)
