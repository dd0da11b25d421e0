"""Coordinates, groups and what they cost; as one rank of many in PyTorch's fake world, and on real ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.testing._internal.distributed.fake_pg import FakeStore

from llmkit.parallel import mesh as mesh_module
from llmkit.parallel.layout import Layout
from llmkit.parallel.mesh import DIMENSIONS, Axis, Mesh, make_mesh
from llmkit.plan.memory import groups_of_ranks
from tests.ranks import run_ranks

LIMIT = timedelta(minutes=3)


@contextmanager
def fake_ranks(rank: int, world_size: int) -> Iterator[Mesh]:
    """A default process group of which only this rank exists; nothing is sent."""
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        yield Mesh(rank, world_size, timeout=LIMIT)
    finally:
        dist.destroy_process_group()


def members(mesh: Mesh, *dims: str) -> list[int]:
    return dist.get_process_group_ranks(mesh.group(dims))


def groups() -> int:
    """Process groups that this process has, the default one among them."""
    return len(distributed_c10d._world.pg_map)


@pytest.mark.parametrize("rank", range(6))
def test_six_ranks_of_three_by_two(rank):
    with fake_ranks(rank, 6) as joined:
        mesh = joined.split(tensor=2)
        assert (mesh["data"].rank, mesh["data"].size) == (rank // 2, 3)
        assert (mesh["tensor"].rank, mesh["tensor"].size) == (rank % 2, 2)
        assert members(mesh, "data") == [rank % 2, rank % 2 + 2, rank % 2 + 4]
        assert members(mesh, "tensor") == [rank // 2 * 2, rank // 2 * 2 + 1]
        assert mesh["context"] == Axis() and mesh["context"].group is None
        assert mesh["data", "context"].group is mesh["data"].group
        assert mesh["data", "tensor"].group is dist.group.WORLD
        assert mesh["tensor", "data"].rank == rank  # flattened from the slowest to the fastest, however named


@pytest.mark.parametrize("rank", range(8))
def test_eight_ranks_along_three_dimensions(rank):
    data, context, tensor = rank // 4, rank // 2 % 2, rank % 2
    with fake_ranks(rank, 8) as joined:
        mesh = joined.split(tensor=2, context=2)
        assert [mesh[name].rank for name in DIMENSIONS] == [data, context, tensor]
        assert [mesh[name].size for name in DIMENSIONS] == [2, 2, 2]
        assert members(mesh, "data", "context") == [tensor, 2 + tensor, 4 + tensor, 6 + tensor]
        assert mesh["data", "context"].rank == 2 * data + context
        assert members(mesh, "context") == [4 * data + tensor, 4 * data + 2 + tensor]
        assert members(mesh, "data", "tensor") == [2 * context + each for each in (0, 1, 4, 5)]
        assert mesh["context", "tensor"].rank == 2 * context + tensor
        assert mesh[DIMENSIONS].group is dist.group.WORLD


def test_a_dimension_of_size_one_and_the_whole_mesh_cost_no_group():
    with fake_ranks(5, 6) as joined:
        for split, made in (
            ({}, 0),
            ({"tensor": 6}, 0),
            ({"tensor": 3}, 2),
            ({"tensor": 3, "context": 2}, 2),
        ):
            before = groups()
            mesh = joined.split(**split)
            assert groups() - before == made, split
            for dims in (*DIMENSIONS, ("data", "context"), ("data", "tensor"), DIMENSIONS, ()):
                axis = mesh[dims]
                assert (axis.group is None) == (axis.size == 1)
    with fake_ranks(5, 8) as joined:
        before = groups()
        joined.split(tensor=2, context=2)
        assert groups() - before == 4  # three dimensions, and data x context


def test_a_group_of_one_is_made_only_for_who_insists():
    with fake_ranks(2, 4) as joined:
        mesh, before = joined.split(tensor=4), groups()
        assert members(mesh, "data", "context") == [2]
        assert mesh["data", "context"].group is None
        assert mesh.group("data") is mesh.group("context")
        assert groups() - before == 1


def test_a_partition_of_a_thousand_ranks_is_one_call(monkeypatch):
    """NCCL splits a partition at once; elsewhere only the members of a group meet."""
    calls: list[dict[str, Any]] = []
    bound = SimpleNamespace(bound_device_id=None)

    def new_group(ranks: list[int], **options: Any) -> str:
        calls.append({"ranks": ranks, **options})
        return "group"

    def split_group(split_ranks: list[list[int]], **options: Any) -> str:
        calls.append({"split": split_ranks, **options})
        return "group"

    monkeypatch.setattr(mesh_module.dist, "new_group", new_group)
    monkeypatch.setattr(mesh_module.dist, "split_group", split_group)
    monkeypatch.setattr(distributed_c10d, "_get_default_group", lambda: bound)
    joined = Mesh(9, 1024, timeout=LIMIT)
    mesh = joined.split(tensor=8)
    options = {"timeout": LIMIT, "use_local_synchronization": True}
    assert calls == [
        {"ranks": list(range(1, 1024, 8)), **options},
        {"ranks": list(range(8, 16)), **options},
    ]
    calls.clear()
    bound.bound_device_id = torch.device("cuda", 1)
    mesh = joined.split(tensor=8)
    assert calls == [
        {"split": [list(range(first, 1024, 8)) for first in range(8)], "timeout": LIMIT},
        {"split": [list(range(first, first + 8)) for first in range(0, 1024, 8)], "timeout": LIMIT},
    ]
    calls.clear()
    for _ in range(2):  # of eight ranks, two share each of four heads
        tp = mesh.tensor_parallel(num_key_value_heads=4, sequence_parallel=False)
        assert (tp.rank, tp.size, tp.head_size, tp.head_group) == (1, 8, 2, "group")
    assert calls == [{"split": [[first, first + 1] for first in range(0, 1024, 2)], "timeout": LIMIT}]


def test_a_process_alone_needs_no_process_group():
    mesh = Mesh().split()
    assert mesh == Mesh()
    for dims in (*DIMENSIONS, ("data", "context"), DIMENSIONS):
        assert mesh[dims] == Axis() and mesh[dims].group is None
    values = torch.ones(3)
    assert mesh["data", "context"].sum(values) is values
    assert mesh.count_over_data(5) == 5
    assert mesh.tensor_parallel(2, True).size == 1
    assert mesh.all_gather_text("a") == ["a"] and mesh.gather_bytes(b"a") == [b"a"]
    assert mesh.broadcast_text("a") == "a"


def test_what_is_no_dimension_or_does_not_divide_is_refused():
    with pytest.raises(AssertionError, match="pipeline"):
        Mesh(0, 4)["pipeline"]
    for sizes in ({"tensor": 4}, {"pipeline": 2}, {"data": 6}):
        with pytest.raises(AssertionError):
            Mesh(0, 6).split(**sizes)


def test_a_further_dimension_is_a_further_name(monkeypatch):
    dimensions = ("pipeline", "data", "context", "tensor")
    monkeypatch.setattr(mesh_module, "DIMENSIONS", dimensions)
    with fake_ranks(13, 24) as joined:  # 2 x 3 x 2 x 2
        mesh = joined.split(pipeline=2, context=2, tensor=2)
        assert [mesh[name].rank for name in dimensions] == [1, 0, 0, 1]
        assert members(mesh, "pipeline") == [1, 13]
        assert members(mesh, "data", "context") == [13, 15, 17, 19, 21, 23]
        assert members(mesh, "data", "tensor") == [12, 13, 16, 17, 20, 21]


@pytest.mark.parametrize("rank", range(12))
def test_experts_are_dealt_out_over_neighbours_that_have_other_tokens(rank):
    """12 ranks: data 3, context 2, tensor 2; the six with other tokens in two groups of three."""
    flat, tensor = rank // 2, rank % 2
    with fake_ranks(rank, 12) as joined:
        mesh = joined.split(tensor=2, context=2, expert=3)
        assert (mesh["expert"].rank, mesh["expert"].size) == (flat % 3, 3)
        assert (mesh["expert_data"].rank, mesh["expert_data"].size) == (flat // 3, 2)
        assert members(mesh, "expert") == [2 * (flat // 3 * 3 + each) + tensor for each in range(3)]
        assert members(mesh, "expert_data") == [2 * (flat % 3 + each) + tensor for each in (0, 3)]
        assert mesh["expert_data", "expert"].group is mesh["data", "context"].group
        assert mesh["expert_data", "expert"].rank == mesh["data", "context"].rank
        assert mesh["expert", "tensor"].rank == 2 * (flat % 3) + tensor
        alike = [other for other in range(12) if mesh.differs_only_in(other, ("expert_data",))]
        assert alike == members(mesh, "expert_data")
        ranks = mesh.expert_parallel()
        assert ranks.group is mesh["expert"].group
        assert list(ranks.own(6)) == [2 * ranks.rank, 2 * ranks.rank + 1]


def test_experts_over_all_ranks_with_other_tokens_cost_no_group_of_their_own():
    with fake_ranks(5, 8) as joined:
        mesh, before = joined.split(tensor=2, context=2, expert=4), groups()
        assert mesh["expert"].group is mesh["data", "context"].group and mesh["expert_data"].group is None
        assert joined.split(tensor=2)["expert_data"].size == 4 and joined["expert"].size == 1
        assert mesh["expert_data", "tensor"].group is mesh["tensor"].group
        assert mesh.expert_parallel().size == 4 and groups() - before == 2


@pytest.mark.parametrize(
    ("context", "expert", "count"),
    [(1, 1, 2), (2, 1, 3), (8, 1, 2), (1, 2, 4), (1, 8, 2), (4, 2, 5), (4, 4, 5), (2, 8, 3), (8, 2, 4)],
)
def test_a_plan_counts_the_groups_that_are_sent_to(context, expert, count):
    """Two ranks share each layer, and eight have other tokens."""
    layout = Layout(16, 2, context_parallel_size=context, expert_parallel_size=expert)
    with fake_ranks(5, 16) as joined:
        mesh = joined.split(tensor=2, context=context, expert=expert)
        axes = ("data", "context"), "tensor", "context", "expert", "expert_data"
        made = {id(group) for axis in axes if (group := mesh[axis].group) is not None}
        assert len(made) == groups_of_ranks(layout) == count


def test_experts_need_ranks_that_they_divide():
    for sizes in ({"expert": 4}, {"expert": 2, "tensor": 2}, {"expert_data": 2}):
        with pytest.raises(AssertionError):
            Mesh(0, 6).split(**sizes)


def sums() -> dict[str, Any]:
    """On one of 6 ranks: sums along several axes, and the groups' timeouts."""
    mesh = make_mesh(2, LIMIT)
    three = make_mesh(1, LIMIT, context_size=3)
    assert mesh.for_saving().control is mesh.saving
    values = torch.tensor([10.0**mesh.rank])
    torch_mesh = mesh.device_mesh("data", "tensor")
    assert torch_mesh.get_group("data") is mesh["data"].group
    limits = {
        mesh[name].group._get_backend(torch.device("cpu")).options._timeout for name in ("data", "tensor")
    }
    return {
        "data": mesh["data"].sum(values.clone()).item(),
        "tensor": mesh["tensor"].sum(values.clone()).item(),
        "context": three["context"].sum(values.clone()).item(),
        "all": three["data", "context"].sum(values.clone()).item(),
        "rows": [mesh.count_over_data(mesh["data"].rank + 1), three.count_over_data(three["data"].rank + 1)],
        "torch": [torch_mesh.mesh.tolist(), torch_mesh.mesh_dim_names, torch_mesh.get_coordinate()],
        "limits": [limit.total_seconds() for limit in limits],
        "apart": len({id(group) for group in (mesh.control, mesh.saving, dist.group.WORLD)}),
        "saving": mesh.for_saving().all_gather_text(str(mesh.rank)),
    }


def test_real_ranks_add_up_along_each_axis():
    for rank, found in enumerate(run_ranks(6, "tests.parallel.test_mesh:sums")):
        assert found["data"] == (10101.0, 101010.0)[rank % 2]
        assert found["tensor"] == 11.0 * 100 ** (rank // 2)
        assert found["context"] == (111.0, 111000.0)[rank // 3]
        assert found["all"] == 111111.0
        assert found["rows"] == [6, 3]
        assert found["torch"] == [[[0, 1], [2, 3], [4, 5]], ["data", "tensor"], [rank // 2, rank % 2]]
        assert found["limits"] == [LIMIT.total_seconds()]
        assert found["apart"] == 3
        assert found["saving"] == list("012345")
