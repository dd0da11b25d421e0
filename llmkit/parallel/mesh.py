"""Which process is what: the world of processes, cut into data-parallel and tensor-parallel groups.

    rank = data_rank * tensor_size + tensor_rank

so that tensor-parallel peers, who talk most, are neighbours on one node.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from llmkit.parallel.roll_call import RollCall


@dataclass(frozen=True)
class TensorParallel:
    """What layers know of the group over which they are cut.

    head_group, head_size: the ranks among which one key and value head is shared, where there are fewer
    such heads than ranks. sequence_parallel: between the cut layers, activations are cut along the
    sequence instead of being held whole by every rank.
    """

    rank: int = 0
    size: int = 1
    group: ProcessGroup | None = None
    head_group: ProcessGroup | None = None
    head_size: int = 1
    sequence_parallel: bool = False


@dataclass(frozen=True)
class Mesh:
    """The place of this process. Groups are None for a process alone, which joined no world.

    data_group: the ranks that hold the same part of the model and see different rows. tensor_group: the
    ranks that share a model and see the same rows. control_group: all ranks, gloo, for small messages
    beside training.
    """

    rank: int = 0
    world_size: int = 1
    tensor_size: int = 1
    data_group: ProcessGroup | None = None
    tensor_group: ProcessGroup | None = None
    control_group: ProcessGroup | None = None
    timeout: timedelta = timedelta(minutes=10)
    roll_call: RollCall | None = None
    _subgroups: dict[int, ProcessGroup] = field(default_factory=dict, repr=False)

    def cause_of(self, error: BaseException) -> BaseException:
        """`error` of this process, or what is behind it: see `RollCall.cause`."""
        return error if self.roll_call is None else self.roll_call.cause(error)

    @property
    def data_size(self) -> int:
        return self.world_size // self.tensor_size

    @property
    def data_rank(self) -> int:
        return self.rank // self.tensor_size

    @property
    def tensor_rank(self) -> int:
        return self.rank % self.tensor_size

    def tensor_parallel(self, num_key_value_heads: int, sequence_parallel: bool) -> TensorParallel:
        """The view of the layers. Makes groups where heads are shared: all ranks must call it alike."""
        if self.tensor_size == 1:
            return TensorParallel()
        sharing = max(1, self.tensor_size // num_key_value_heads)
        group = self._subgroup(sharing) if sharing > 1 else None
        return TensorParallel(
            self.tensor_rank, self.tensor_size, self.tensor_group, group, sharing, sequence_parallel
        )

    def _subgroup(self, size: int) -> ProcessGroup:
        """`size` neighbouring ranks of the tensor-parallel group, this one among them."""
        if size not in self._subgroups:
            for first in range(0, self.world_size, size):
                group = dist.new_group(range(first, first + size), timeout=self.timeout)
                if first <= self.rank < first + size:
                    self._subgroups[size] = group
        return self._subgroups[size]

    def sum_over_data(self, values: Tensor) -> Tensor:
        """The sum of the data-parallel ranks' `values`, in place and without waiting for the device."""
        if self.data_size > 1:
            dist.all_reduce(values, group=self.data_group)
        return values

    def count_over_data(self, count: int) -> int:
        """The sum of the data-parallel ranks' counts; waits for all ranks, which must all call it."""
        if self.data_size == 1:
            return count
        values = torch.tensor([count], dtype=torch.int64)
        dist.all_reduce(values, group=self.control_group)
        return int(values) // self.tensor_size

    def all_gather_text(self, text: str) -> list[str]:
        """What each rank gives, in the order of the ranks; for small messages. All ranks must call it."""
        if self.world_size == 1:
            return [text]
        sizes, padded = self._padded(_bytes(text))
        texts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(texts, padded, group=self.control_group)
        return [_text(each, size) for each, size in zip(texts, sizes, strict=True)]

    def gather_bytes(self, content: bytes) -> list[bytes]:
        """On rank 0 what each rank gives, on the others nothing; for messages of any size."""
        if self.world_size == 1:
            return [content]
        sizes, padded = self._padded(torch.frombuffer(bytearray(content + b"\0"), dtype=torch.uint8))
        found = [torch.empty_like(padded) for _ in sizes] if self.rank == 0 else None
        dist.gather(padded, found, dst=0, group=self.control_group)
        pairs = zip(found or [], sizes, strict=False)
        return [values[: size - 1].numpy().tobytes() for values, size in pairs]

    def broadcast_text(self, text: str) -> str:
        """What rank 0 gives."""
        if self.world_size == 1:
            return text
        mine = _bytes(text)
        size = torch.tensor([len(mine)])
        dist.broadcast(size, 0, group=self.control_group)
        values = mine if self.rank == 0 else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(values, 0, group=self.control_group)
        return _text(values, int(size))

    def _padded(self, mine: Tensor) -> tuple[list[int], Tensor]:
        """How many bytes each rank gives, and this rank's, padded to the most."""
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([len(mine)]), group=self.control_group)
        counts = [int(size) for size in sizes]
        return counts, torch.nn.functional.pad(mine, (0, max(counts) - len(mine)))


def make_mesh(
    tensor_size: int, timeout: timedelta = timedelta(minutes=10), control: ProcessGroup | None = None
) -> Mesh:
    """Cuts the world that this process has joined; the world's size must be a multiple of `tensor_size`.

    control: the group of all ranks for small messages, if there is one already.
    The groups are made here, with our timeout: those that a library makes itself wait for half an hour.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    assert world % tensor_size == 0, (world, tensor_size)
    mine: dict[str, ProcessGroup] = {}
    cuts = {
        "tensor": [range(first, first + tensor_size) for first in range(0, world, tensor_size)],
        "data": [range(first, world, tensor_size) for first in range(tensor_size)],
    }
    for name, parts in cuts.items():
        for ranks in parts:
            group = dist.new_group(ranks, timeout=timeout)
            if rank in ranks:
                mine[name] = group
    control = control or dist.new_group(backend="gloo", timeout=timeout)
    return Mesh(rank, world, tensor_size, mine["data"], mine["tensor"], control, timeout)


def _bytes(text: str) -> Tensor:
    """Its UTF-8 with a zero at the end: no tensor is empty."""
    return torch.frombuffer(bytearray(text.encode() + b"\0"), dtype=torch.uint8)


def _text(values: Tensor, size: int) -> str:
    """The text of which `_bytes` made the first `size` values."""
    return values[: size - 1].numpy().tobytes().decode()
