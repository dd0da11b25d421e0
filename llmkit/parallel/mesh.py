"""The mesh: all ranks of a run, arranged along named dimensions.

    rank = (data index * context size + context index) * tensor size + tensor index

Tensor-parallel peers, which communicate most, are neighbours on one node. `mesh["tensor"]` is one
dimension as this rank sees it, `mesh["data", "context"]` several of them flattened into one. Rows of a
batch are dealt over `data`; the loss, the gradients and ZeRO's shards run over `data` and `context`. A
further dimension (pipeline) is a further name in `DIMENSIONS`.

Experts are dealt out over the ranks of `data` and `context`, which are arranged once more for that, whatever
their sizes:

    data index * context size + context index = expert_data index * expert size + expert index

Neighbours along `expert` hold different experts; ranks along `expert_data` hold the same ones.

Why this is not torch's DeviceMesh, though `Mesh.device_mesh` gives one where a library asks for it: in
PyTorch 2.13 that makes a group for each dimension of size 1 too, lets groups wait for PyTorch's timeout
instead of the run's own, calls `new_group` on every rank for every group of a partition, and flattens
dimensions by a private method.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from llmkit.parallel import messages
from llmkit.parallel.roll_call import RollCall

DIMENSIONS = ("data", "context", "tensor")
"""From the slowest to the fastest: neighbouring ranks differ in the last one."""
EXPERT_DIMENSIONS = ("expert_data", "expert", "tensor")
"""The same ranks, arranged by the experts that they hold."""
PATIENCE = timedelta(hours=1)
"""At least this long ranks wait for each other in small messages: one may verify a large checkpoint."""


@dataclass(frozen=True)
class Axis:
    """One dimension of the mesh, or several flattened into one, as this rank sees it.

    rank: this rank's index along it. size: the number of ranks along it, whose other indices are this rank's.
    """

    rank: int = 0
    size: int = 1
    _make_group: Callable[[], ProcessGroup] | None = field(default=None, repr=False, compare=False)

    @property
    def group(self) -> ProcessGroup | None:
        """The ranks along this axis, in order; None where there is one only, which needs no communication.

        Collective at the first use of a combination of dimensions that `Mesh.split` has not made.
        """
        return None if self.size == 1 or self._make_group is None else self._make_group()

    def sum(self, values: Tensor) -> Tensor:
        """Sums `values` over the ranks, in place, without waiting for the device. Collective."""
        if self.size > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def largest(self, values: Tensor) -> Tensor:
        """The largest of each of `values` over the ranks, in place; as `sum`. Collective."""
        if self.size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group)
        return values


@dataclass(frozen=True)
class TensorParallel:
    """What layers know of the tensor dimension over which they are sharded.

    head_group, head_size: the ranks that share one key and value head, where there are fewer such heads
    than ranks. sequence_parallel: between the sharded layers each rank holds its piece of the sequence
    instead of all of it (Korthikanti et al. 2022).
    """

    rank: int = 0
    size: int = 1
    group: ProcessGroup | None = None
    head_group: ProcessGroup | None = None
    head_size: int = 1
    sequence_parallel: bool = False

    @property
    def sequence_group(self) -> ProcessGroup | None:
        """The ranks that hold different pieces of a sequence between the sharded layers; None: none do."""
        return self.group if self.sequence_parallel else None


@dataclass(frozen=True)
class ExpertParallel:
    """What a mixture knows of the ranks over which its experts are dealt out."""

    rank: int = 0
    size: int = 1
    group: ProcessGroup | None = None

    def own(self, experts: int) -> range:
        """The experts of this rank, of so many."""
        share = experts // self.size
        return range(self.rank * share, (self.rank + 1) * share)


ALL_EXPERTS = ExpertParallel()
"""Of a rank that holds every expert."""


def arrangement_of(dims: Collection[str]) -> tuple[str, ...]:
    """The dimensions along which all ranks are arranged, of those two arrangements the one with `dims`."""
    return EXPERT_DIMENSIONS if set(dims) & set(EXPERT_DIMENSIONS[:2]) else DIMENSIONS


@dataclass(frozen=True)
class Mesh:
    """This rank's coordinates and process groups.

    sizes: of the dimensions that are larger than 1, but for `data`, which takes the remaining ranks, and
    `expert_data`, which takes those that remain beside `expert`.
    device: where this rank computes. timeout: of every group. store: where the ranks found each other.
    control: all ranks over gloo, for small messages beside training; None for a process without a process
    group. saving: another such group, for checkpoints, whose messages then need no order among the others.
    """

    rank: int = 0
    world_size: int = 1
    sizes: Mapping[str, int] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    timeout: timedelta = timedelta(minutes=10)
    store: Store | None = field(default=None, compare=False, repr=False)
    control: ProcessGroup | None = field(default=None, compare=False, repr=False)
    saving: ProcessGroup | None = field(default=None, compare=False, repr=False)
    roll_call: RollCall | None = field(default=None, compare=False, repr=False)
    _groups: dict[Hashable, ProcessGroup] = field(default_factory=dict, compare=False, repr=False)

    def split(self, **sizes: int) -> Mesh:
        """The same ranks arranged with these sizes of dimensions; `data` takes what remains. Collective.

        Makes the groups of each dimension, and of those over which gradients are summed, in the same order on
        all ranks. The product of the sizes must divide the number of ranks; that of `expert` apart, which
        must divide the ranks along `data` and `context`.
        """
        assert set(sizes) <= {*DIMENSIONS, "expert"} - {"data"}, sizes
        large = {name: size for name, size in sizes.items() if size > 1}
        mesh = replace(self, sizes=large, _groups={})
        for arrangement in (DIMENSIONS, EXPERT_DIMENSIONS):
            product = prod(large.get(name, 1) for name in arrangement)
            assert self.world_size % product == 0, (self.world_size, sizes)
        dims: tuple[str | tuple[str, ...], ...] = (*DIMENSIONS, ("data", "context"))
        for each in (*dims, *EXPERT_DIMENSIONS[:2]) if "expert" in large else dims:
            _ = mesh[each].group
        return mesh

    def __getitem__(self, dims: str | tuple[str, ...]) -> Axis:
        """The axis of one dimension, or of several flattened, whatever order they are named in."""
        names = {dims} if isinstance(dims, str) else set(dims)
        rank, size, indices = 0, 1, self._coordinates(self.rank)
        for name in arrangement_of(names):
            if name in names:
                names.remove(name)
                rank, size = rank * self._size(name) + indices[name], size * self._size(name)
        assert not names, f"the mesh has no dimension {names}"
        return Axis(rank, size, lambda: self.group(dims))

    def group(self, dims: str | tuple[str, ...]) -> ProcessGroup:
        """The group of an axis even where it holds this rank alone, for a library that insists on one.

        Collective at its first use. An axis of all ranks has the default group.
        """
        large = self._large({dims} if isinstance(dims, str) else set(dims))
        if large not in self._groups:
            partition: dict[tuple[int, ...], list[int]] = {}
            for rank in range(self.world_size):
                indices = self._coordinates(rank)
                others = tuple(indices[name] for name in arrangement_of(large) if name not in large)
                partition.setdefault(others, []).append(rank)
            self._groups[large] = self._new_group(list(partition.values()))
        return self._groups[large]

    def _large(self, names: set[str]) -> frozenset[str]:
        """The dimensions larger than 1 among these, each set of ranks by one name: where all ranks of data x
        context are meant, by those two."""
        large = frozenset(name for name in names if self._size(name) > 1)
        over_experts = frozenset(name for name in EXPERT_DIMENSIONS[:2] if self._size(name) > 1)
        if not large & over_experts or not over_experts <= large:
            return large
        return self._large({*large - over_experts, "data", "context"})

    def _size(self, name: str) -> int:
        if name not in ("data", "expert_data"):
            return self.sizes.get(name, 1)
        return self.world_size // prod(self.sizes.get(each, 1) for each in arrangement_of({name}))

    def _coordinates(self, rank: int) -> dict[str, int]:
        """The index of a rank along each dimension, of both arrangements."""
        indices = {}
        for arrangement in (EXPERT_DIMENSIONS, DIMENSIONS):
            rest = rank
            for name in reversed(arrangement):
                rest, indices[name] = divmod(rest, self._size(name))
        return indices

    def differs_only_in(self, rank: int, dims: tuple[str, ...]) -> bool:
        """Whether a rank has the coordinates of this one but for those along `dims`."""
        own, other = self._coordinates(self.rank), self._coordinates(rank)
        return all(own[name] == other[name] for name in arrangement_of(dims) if name not in dims)

    def _new_group(self, partition: list[list[int]]) -> ProcessGroup:
        """This rank's group of a partition of all ranks: one call each, however many groups it has."""
        if len(partition) == 1:
            group = dist.group.WORLD
        elif dist.distributed_c10d._get_default_group().bound_device_id is not None:
            group = dist.split_group(split_ranks=partition, timeout=self.timeout)
        else:
            mine = next(ranks for ranks in partition if self.rank in ranks)
            group = dist.new_group(mine, timeout=self.timeout, use_local_synchronization=True)
        assert group is not None
        return group

    def expert_parallel(self) -> ExpertParallel:
        """What a mixture of experts needs. Collective where `split` has not made the group."""
        axis = self["expert"]
        return ExpertParallel(axis.rank, axis.size, axis.group) if axis.size > 1 else ALL_EXPERTS

    def tensor_parallel(self, num_key_value_heads: int, sequence_parallel: bool) -> TensorParallel:
        """What layers need. Collective: makes a group where key and value heads are shared between ranks."""
        axis = self["tensor"]
        if axis.size == 1:
            return TensorParallel()
        sharing, head_group = max(1, axis.size // num_key_value_heads), None
        if sharing > 1:
            if ("heads", sharing) not in self._groups:
                starts = range(0, self.world_size, sharing)
                partition = [list(range(start, start + sharing)) for start in starts]
                self._groups["heads", sharing] = self._new_group(partition)
            head_group = self._groups["heads", sharing]
        return TensorParallel(axis.rank, axis.size, axis.group, head_group, sharing, sequence_parallel)

    def device_mesh(self, *dims: str) -> DeviceMesh:
        """torch's DeviceMesh of some dimensions around this rank, over the same groups. Collective."""
        axes = {name: self.group(name) for name in DIMENSIONS if name in dims}
        ranks = torch.tensor(dist.get_process_group_ranks(self.group(dims)), device="cpu")
        shape = [self._size(name) for name in axes]
        return DeviceMesh.from_group(
            list(axes.values()), self.device.type, ranks.view(shape), mesh_dim_names=tuple(axes)
        )

    def cause_of(self, error: BaseException) -> BaseException:
        """`error` of this process, or the error of another one that caused it: see `RollCall.cause`."""
        return error if self.roll_call is None else self.roll_call.cause(error)

    def count_over_data(self, count: int) -> int:
        """The sum of the data-parallel ranks' counts, on the host. Collective."""
        data = self["data"].size
        if data == 1:
            return count
        values = torch.tensor([count], dtype=torch.int64)
        dist.all_reduce(values, group=self.control)
        return int(values) // (self.world_size // data)

    def for_saving(self) -> Mesh:
        """The same mesh with its small messages over `saving`."""
        return replace(self, control=self.saving)

    def all_gather_text(self, text: str) -> list[str]:
        """See `llmkit.parallel.messages.all_gather_text`; over all ranks."""
        return messages.all_gather_text(text, self.control)

    def gather_bytes(self, content: bytes) -> list[bytes]:
        """See `llmkit.parallel.messages.gather_bytes`; over all ranks."""
        return messages.gather_bytes(content, self.control)

    def broadcast_text(self, text: str) -> str:
        """See `llmkit.parallel.messages.broadcast_text`; over all ranks."""
        return messages.broadcast_text(text, self.control)


def small_group(timeout: timedelta, connect: timedelta | None = None) -> ProcessGroup:
    """A gloo group of all ranks for small messages, then patient. Collective.

    connect: how long its ranks may take to connect; default: `timeout`.
    """
    group = dist.new_group(backend="gloo", timeout=connect or timeout)
    set_timeout(group, max(timeout, PATIENCE))
    return group


def set_timeout(group: ProcessGroup | None, timeout: timedelta) -> None:
    """Lets the messages of a gloo group take so long from now on."""
    assert isinstance(group, ProcessGroup)
    group._get_backend(torch.device("cpu"))._set_default_timeout(timeout)


def make_mesh(
    tensor_size: int,
    timeout: timedelta = timedelta(minutes=10),
    *,
    context_size: int = 1,
    expert_size: int = 1,
) -> Mesh:
    """The mesh of a default process group that the caller has made. Collective."""
    mesh = Mesh(
        dist.get_rank(), dist.get_world_size(), timeout=timeout,
        control=small_group(timeout), saving=small_group(timeout),
    )  # fmt: skip
    return mesh.split(tensor=tensor_size, context=context_size, expert=expert_size)
