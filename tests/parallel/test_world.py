"""Joining a world, agreeing in it, and leaving it, in order and otherwise."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from llmkit.errors import AlreadyReported, UserError
from llmkit.parallel.mesh import Mesh, small_group
from llmkit.parallel.rank_info import RankInfo
from llmkit.parallel.world import _choose_device, check_own_gpu, process_group
from llmkit.stopping import LAUNCHERS
from tests.limits import HANG
from tests.ranks import run_ranks

LIMIT = timedelta(seconds=HANG)


def test_a_process_alone_joins_nothing():
    with process_group(RankInfo(), LIMIT) as mesh:
        assert mesh == Mesh(timeout=LIMIT)
        assert mesh.split() == mesh
        assert not dist.is_initialized()


def test_a_process_alone_can_be_a_world(monkeypatch):
    """DeepSpeed needs one. It is gone afterwards, whether it ended well or not."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "1")  # of the launcher; DeepSpeed would complain
    for error in (None, UserError("wrong"), KeyError("bug")):
        try:
            with process_group(RankInfo(), LIMIT, needs_group=True) as mesh:
                mesh = mesh.split()
                assert mesh["data"].group is None
                assert mesh.group("data") is dist.group.WORLD
                assert mesh.all_gather_text("me") == ["me"]
                assert "OMPI_COMM_WORLD_LOCAL_RANK" not in os.environ
                if error:
                    raise error
        except (UserError, KeyError) as caught:
            assert caught is error
        assert not dist.is_initialized()


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    refusal = pytest.raises(UserError, match="4 processes were started on a host that has 2 GPUs")
    with refusal, process_group(RankInfo(3, 4, 3, 4), LIMIT):
        pass


def test_a_task_that_sees_one_gpu_takes_it(monkeypatch):
    """As srun --gpus-per-task=1 starts it."""
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert _choose_device(RankInfo(3, 4, 3, 4)) == torch.device("cuda", 0)
    assert os.environ["LOCAL_RANK"] == "0"  # which DeepSpeed and accelerate take for the GPU's number


@pytest.mark.parametrize("shared", [False, True])
def test_processes_that_share_a_gpu_are_refused(capfd, shared):
    """Of what each sees nobody can tell whether its only GPU is its own: they compare."""
    store = HashStore()

    def compare(rank: int) -> str:
        uuid = "the same" if shared and rank != 1 else f"GPU-{rank}"
        try:
            check_own_gpu(RankInfo(rank, 3, rank, 3), store, uuid, LIMIT)
        except AlreadyReported as end:
            return f"code {end.code}"
        return "its own"

    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(compare, range(3)))
    assert found == ["code 2" if shared else "its own"] * 3
    told = capfd.readouterr().err
    assert told.count("llmkit: 1 of 3 processes use a GPU that another one uses too") == int(shared)


def test_small_messages_wait_longer_than_the_start():
    """The group is joined within the setting; its messages may take an hour. By a private method."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        group = small_group(timedelta(minutes=2))
        assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(hours=1)
        group = small_group(timedelta(hours=2))
        assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(hours=2)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("gpus", [0, 4])
def test_each_process_of_a_host_gets_its_share_of_the_cores_beside_a_gpu_too(monkeypatch, gpus):
    class Reached(Exception):
        pass

    def open_store(*arguments):
        raise Reached

    given: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr("llmkit.parallel.world.available_cores", lambda: 64)
    monkeypatch.setattr("llmkit.parallel.world.open_store", open_store)
    for threads, left in (("1", "16"), ("6", "6")):  # what a user has set stays
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        with pytest.raises(Reached), process_group(RankInfo(3, 8, 3, 4), LIMIT):
            pass
        assert os.environ["OMP_NUM_THREADS"] == left
    assert given == [16]


@pytest.mark.parametrize(
    ("launcher", "before", "after"),
    [("ACCELERATE_DYNAMO_BACKEND", "1", "64"), ("TORCHELASTIC_RUN_ID", "6", "6"), (None, "1", "1")],
)
def test_a_process_that_a_launcher_started_alone_gets_all_cores(monkeypatch, launcher, before, after):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    if launcher:
        monkeypatch.setenv(launcher, "no")
    given: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr("llmkit.parallel.world.available_cores", lambda: 64)
    monkeypatch.setenv("OMP_NUM_THREADS", before)
    with process_group(RankInfo(), LIMIT):
        assert os.environ["OMP_NUM_THREADS"] == after
    assert given == ([64] if after == "64" else [])


def test_deepspeed_has_the_switch_of_its_cpu_extension():
    """A private name: without it every start on a CPU would compile for half a minute."""
    import deepspeed.ops

    assert "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__


def test_a_rank_that_finds_no_others_says_where_it_looked():
    case = "tests.parallel.world_cases:waits_alone"
    (said,) = run_ranks(1, case, joined=False, environment={"WORLD_SIZE": "2"})
    assert said.startswith("RunFault: rank 0 of 2 could not join the others at 127.0.0.1:")
    assert "within 0.05 minutes" in said
