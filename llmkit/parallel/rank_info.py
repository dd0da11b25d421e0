"""This process's rank among those of a launch, from the environment that the launcher set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmkit.errors import UserError

TASKS = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpiexec",
    "MV2_COMM_WORLD_SIZE": "mpirun",
}
"""Variable: who sets it to the number of tasks that it started. Within a batch script, and in the shell of
salloc, SLURM_STEP_NUM_TASKS is absent or 1, whatever SLURM_NTASKS says."""
NUMBERS = {
    "SLURM_PROCID": "a SLURM job",
    "PMIX_RANK": "an MPI job",
    "PALS_RANKID": "a PALS job",
    "FLUX_TASK_RANK": "a Flux job",
}
"""Variable: who sets it to the number of a task, from 0. Only a number above 0 says that there are others."""
LAUNCHERS = "torchrun, accelerate launch or llmkit submit"


@dataclass(frozen=True)
class RankInfo:
    """Rank and number of processes, of all and of those on this host."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1


def rank_info_from_env(environment: Mapping[str, str]) -> RankInfo:
    """The rank that torchrun, accelerate or a batch script gave this process; the only one if none did.

    Raises UserError where the variables contradict each other, or where one is missing.
    """
    if environment.get("WORLD_SIZE"):
        if (world_size := _whole(environment, "WORLD_SIZE")) == 0:
            raise UserError("WORLD_SIZE is 0; it must be the number of processes, or not set")
    else:
        _check_alone(environment)
        world_size = 1
    if world_size == 1:
        # Of accelerate's launchers only the one that starts a single process sets the second.
        if "MASTER_ADDR" in environment and "ACCELERATE_USE_CPU" in environment:
            raise UserError(
                "accelerate was asked for several processes but started this one alone, as it does for "
                "distributed_type MULTI_CPU or NO: launch with launch/cpu.yaml (where one process is meant, "
                "unset MASTER_ADDR)"
            )
        for name in ("RANK", "LOCAL_RANK"):
            if environment.get(name) and _whole(environment, name) > 0:
                raise UserError(
                    f"ranks count from 0, but {name} is {environment[name]} where WORLD_SIZE is {world_size}"
                )
        return RankInfo()
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
    return RankInfo(rank, world_size, local_rank, local_size)


def _check_alone(environment: Mapping[str, str]) -> None:
    """Raises UserError where, without a WORLD_SIZE, something else says that there are other processes."""
    remedy = f"start all processes by {LAUNCHERS}; where each is a run of its own, set WORLD_SIZE=1"
    for name, starter in TASKS.items():
        tasks = environment.get(name, "")
        if tasks.isdecimal() and int(tasks) > 1:
            raise UserError(
                f"{starter} started {tasks} tasks ({name}), but WORLD_SIZE is not set, so each of them would "
                f"train alone: {remedy}"
            )
    for name, job in NUMBERS.items():
        task = environment.get(name, "")
        if task.isdecimal() and int(task) > 0:
            raise UserError(
                f"this is task {task} of {job} ({name}), but WORLD_SIZE is not set, so each task would train "
                f"alone: {remedy}"
            )
    # LOCAL_RANK 0 alone names no rank among others: DeepSpeed needs it of a single process, too.
    given = [name for name in ("RANK", "LOCAL_RANK") if environment.get(name)]
    if environment.get("RANK") or any(environment[name] != "0" for name in given):
        values = " and ".join(f"{name} is {environment[name]}" for name in given)
        raise UserError(f"{values}, but WORLD_SIZE is not set: {remedy}")


def _whole(environment: Mapping[str, str], name: str) -> int:
    if not environment[name].isdecimal():
        raise UserError(f"{name} is {environment[name]!r}; it must be a whole number")
    return int(environment[name])
