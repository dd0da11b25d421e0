"""The place of a process, from what its launcher set; a place that is only partly given is refused."""

from __future__ import annotations

import pytest

from llmkit.errors import UserError
from llmkit.parallel.rank_info import RankInfo, rank_info_from_env

WHOLE = {
    "WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip


def test_the_launcher_gives_a_place():
    assert rank_info_from_env(WHOLE) == RankInfo(5, 8, 1, 4)


BATCH_SCRIPT = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
STEP_OF_ONE = {**BATCH_SCRIPT, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}
STEP_OF_FOUR = {**STEP_OF_ONE, "SLURM_STEP_NUM_TASKS": "4"}
"""As SLURM sets them; SLURM_NTASKS is what was asked for, also where a single process runs."""


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WORLD_SIZE": ""},
        {"WORLD_SIZE": "1", "RANK": "0"},
        {"LOCAL_RANK": "0"},
        BATCH_SCRIPT,
        STEP_OF_ONE,
        {"SLURM_NTASKS": "4"},  # the shell of salloc
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        {**STEP_OF_FOUR, "SLURM_PROCID": "2", "WORLD_SIZE": "1"},  # four runs, on purpose
    ],
)
def test_a_process_that_nobody_launched_is_alone(environment):
    assert rank_info_from_env(environment) == RankInfo()


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_a_place_must_be_whole(missing):
    rest = {name: value for name, value in WHOLE.items() if name != missing}
    with pytest.raises(UserError, match=f"WORLD_SIZE is 8, but not set: {missing}"):
        rank_info_from_env(rest)


@pytest.mark.parametrize(
    ("environment", "what"),
    [
        (STEP_OF_FOUR, "srun started 4 tasks (SLURM_STEP_NUM_TASKS)"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, "task 1 of a SLURM job (SLURM_PROCID)"),
        ({"PMIX_RANK": "2"}, "task 2 of an MPI job (PMIX_RANK)"),
        ({"FLUX_TASK_RANK": "1", "FLUX_JOB_SIZE": "4"}, "task 1 of a Flux job (FLUX_TASK_RANK)"),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"}, "mpirun started 4 tasks"),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, "mpiexec started 2 tasks"),
        ({"MV2_COMM_WORLD_SIZE": "2"}, "MV2_COMM_WORLD_SIZE"),
        ({"RANK": "0"}, "RANK is 0, but WORLD_SIZE is not set"),
        ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": ""}, "RANK is 1 and LOCAL_RANK is 1"),
        ({"LOCAL_RANK": "3"}, "LOCAL_RANK is 3"),
        ({"LOCAL_RANK": "one"}, "LOCAL_RANK is one"),
    ],
)
def test_one_task_of_several_does_not_train_alone(environment, what):
    with pytest.raises(UserError) as refusal:
        rank_info_from_env(environment)
    assert what in str(refusal.value)
    assert "torchrun, accelerate launch or llmkit submit" in str(refusal.value)


@pytest.mark.parametrize("wrong", [{"RANK": "1"}, {"LOCAL_RANK": "1"}, {"RANK": "x"}])
def test_a_world_of_one_has_no_second_process(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        rank_info_from_env({"WORLD_SIZE": "1", **wrong})


@pytest.mark.parametrize(
    "wrong", [{"RANK": "8"}, {"LOCAL_RANK": "4"}, {"RANK": "-1"}, {"WORLD_SIZE": "two"}, {"WORLD_SIZE": "0"}]
)
def test_a_place_must_exist(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        rank_info_from_env(WHOLE | wrong)


def test_a_launcher_that_made_one_process_of_several_is_found_out():
    """`accelerate launch` of the type MULTI_CPU: it sets these, and starts one process."""
    with pytest.raises(UserError, match=r"launch/cpu\.yaml"):
        rank_info_from_env({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"})
