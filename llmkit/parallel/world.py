"""Joining the world of processes that a launcher started, and leaving it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from llmkit.cores import available_cores
from llmkit.errors import RunFault, UserError
from llmkit.parallel.agreement import tell_once
from llmkit.parallel.mesh import Mesh, make_mesh

CONTROL_TIMEOUT = timedelta(hours=1)
"""At least this long ranks wait for each other in small messages: one may verify a large checkpoint."""


@dataclass(frozen=True)
class Place:
    """Which of how many processes this one is, in all and on its host."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1


def read_place(environment: Mapping[str, str]) -> Place:
    """The place that torchrun, accelerate or a batch script gave this process; alone if none did.

    Raises UserError where the variables do not make up a place in a world.
    """
    world_size = _whole(environment, "WORLD_SIZE") if environment.get("WORLD_SIZE") else 1
    if world_size <= 1:
        # Of accelerate's launchers only the one that starts a single process sets the second.
        if "MASTER_ADDR" in environment and "ACCELERATE_USE_CPU" in environment:
            raise UserError(
                "accelerate was asked for several processes but started this one alone, as it does for "
                "distributed_type MULTI_CPU or NO: launch with launch/cpu.yaml (where one process is meant, "
                "unset MASTER_ADDR)"
            )
        return Place()
    needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in environment]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {world_size}, but not set: {', '.join(missing)}. Start all processes by "
            "accelerate launch or torchrun, or set what these set"
        )
    rank, local_rank = _whole(environment, "RANK"), _whole(environment, "LOCAL_RANK")
    local_size = local_rank + 1
    if "LOCAL_WORLD_SIZE" in environment:
        local_size = _whole(environment, "LOCAL_WORLD_SIZE")
    if rank >= world_size or local_rank >= local_size:
        raise UserError(
            f"ranks count from 0, but RANK is {rank} of WORLD_SIZE {world_size}, and LOCAL_RANK {local_rank} "
            f"of LOCAL_WORLD_SIZE {local_size}"
        )
    return Place(rank, world_size, local_rank, local_size)


@contextmanager
def world(place: Place, timeout: timedelta, *, needs_group: bool = False) -> Iterator[Mesh]:
    """The world that all processes have joined, not yet cut into groups; left in order at the end.

    needs_group: a process alone, too, becomes a world (of one), as DeepSpeed needs it. Of errors that the
    user should read, the first rank prints one; the other ranks end with the same code.
    """
    mesh, store = _join(place, timeout, needs_group)
    try:
        yield mesh
    except (UserError, RunFault) as error:
        if mesh.world_size > 1:
            tell_once(mesh, store, error)
        raise
    else:
        if mesh.world_size > 1:
            dist.barrier(group=mesh.control_group)  # a process that leaves early can end the others with -6
            dist.destroy_process_group()
    finally:
        if mesh.world_size == 1 and mesh.control_group is not None:
            dist.destroy_process_group()


def cut(mesh: Mesh, tensor_size: int) -> Mesh:
    """The joined world, cut into groups; all ranks must call it with the same size."""
    if mesh.control_group is None:
        return mesh
    return make_mesh(tensor_size, mesh.timeout, mesh.control_group)


def _join(place: Place, timeout: timedelta, needs_group: bool) -> tuple[Mesh, Store]:
    """The joined world, and the store in which its processes have found each other."""
    device = _choose_device(place)
    if place.world_size == 1 and not needs_group:
        return Mesh(timeout=timeout), HashStore()
    backend = "nccl" if device.type == "cuda" else "gloo"
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        if place.world_size == 1:
            os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks the environment for its device
            store: Store = HashStore()
        else:
            store, _, _ = next(rendezvous("env://", timeout=timeout))
        dist.init_process_group(
            backend,
            store=PrefixStore("torch", store),
            rank=place.rank,
            world_size=place.world_size,
            timeout=timeout,
            # Not alone: there NCCL cannot split a group that is bound to its device.
            device_id=device if device.type == "cuda" and place.world_size > 1 else None,
        )
        if place.world_size > 1:
            _tell_accelerate(device)
    except dist.DistError as error:
        raise RunFault(
            f"rank {place.rank} of {place.world_size} could not join the others at {where} within "
            f"{timeout.total_seconds() / 60:g} minutes: {str(error).splitlines()[0]}"
        ) from error
    control = dist.new_group(backend="gloo", timeout=max(timeout, CONTROL_TIMEOUT))
    return Mesh(place.rank, place.world_size, control_group=control, timeout=timeout), store


def _choose_device(place: Place) -> torch.device:
    """The GPU of this process's own, made the current one, or the CPU with this process's share of cores."""
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        if place.local_size > count:
            raise UserError(
                f"{place.local_size} processes were started on a host that has {count} GPUs: start as many "
                "as there are, or set CUDA_VISIBLE_DEVICES to nothing to train on the CPU"
            )
        torch.cuda.set_device(place.local_rank)
        return torch.device("cuda", place.local_rank)
    # Launchers say 1 where the user says nothing.
    if place.world_size > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        threads = max(1, available_cores() // place.local_size)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
    return torch.device("cpu")


def _tell_accelerate(device: torch.device) -> None:
    """Gives accelerate the world that is there.

    Without `cpu=True` it would believe, where there is no GPU, that this process is alone.
    """
    from accelerate import PartialState

    if device.type == "cuda":
        PartialState()
    else:
        PartialState(cpu=True, backend="gloo")


def _whole(environment: Mapping[str, str], name: str) -> int:
    if not environment[name].isdecimal():
        raise UserError(f"{name} is {environment[name]!r}; it must be a whole number")
    return int(environment[name])
