"""slurm/train.sbatch on a real SLURM cluster, which slurm/local-cluster.sh starts on this machine."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from llmkit.cluster.starts import Record
from llmkit.end_file import read_end
from tests.program import events, make_project, rows, timeless
from tests.slurm.cluster import ROOT, Cluster, Job

STAND_IN = str(Path(__file__).with_name("stand_in"))


def stand_in(
    cluster: Cluster, folder: Path, *arguments: str, nodes: int = 1, processes: str = "",
    options: Sequence[str] = (), **variables: str,
) -> Job:  # fmt: skip
    """A job whose trainer is the stand-in; processes: "" = one a GPU, of which there are two."""
    variables = {
        "TRAIN_SECONDS": "600", "FAULT": "", "FAULT_HOST": "", "MISTAKE": "", "PREFLIGHT": "off", **variables
    }  # fmt: skip
    return cluster.submit(
        folder, "tiny.yaml", *arguments, options=[f"--nodes={nodes}", "--gpus-per-node=2", *options],
        PYTHONPATH=STAND_IN, RUN_FOLDER=str(folder), PROCESSES_PER_NODE=processes, **variables,
    )  # fmt: skip


def starts(folder: Path) -> list[str]:
    """The stand-ins that have started."""
    return sorted(path.stem for path in folder.glob("start-*.json"))


def test_each_rank_knows_its_place_and_gets_the_arguments_as_they_are(cluster, folder):
    odd = ["run.name=two words", 'it\'s="$HOME"', "$(touch oops)", "`touch oops`", "a\\b;c&d|e>f", "*", ""]
    job = stand_in(cluster, folder, *odd, nodes=2, TRAIN_SECONDS="0")
    assert job.wait() == "COMPLETED", job.log
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("start-0-rank-*.json"))]
    assert [(facts["rank"], facts["LOCAL_RANK"], facts["WORLD_SIZE"]) for facts in found] == [
        ("0", "0", "4"), ("1", "1", "4"), ("2", "0", "4"), ("3", "1", "4"),
    ]  # fmt: skip
    hosts = [facts["host"] for facts in found]
    assert hosts[0] == hosts[1] != hosts[2] == hosts[3]
    for facts in found:
        assert facts["arguments"] == ["train", "tiny.yaml", "parallel.world_size=4", *odd]
    assert not job.state_folder.exists() and not (folder / "oops").exists()


def test_a_task_of_an_array_requeues_itself_alone(cluster, folder):
    job = stand_in(cluster, folder, processes="1", options=["--array=0-1"])
    tasks = [Job(cluster, f"{job.number}_{task}", folder) for task in range(2)]
    for task in tasks:
        task.wait_until(lambda task=task: "start 0" in task.log)
    (last,) = (task for task in tasks if task.facts()["JobId"] == job.number)  # it has the array's number
    last.ask_to_stop()
    last.wait_until(lambda: last.facts()["Restarts"] == "1")
    other = tasks[1 - tasks.index(last)].facts()
    assert (other["JobState"], other["Restarts"]) == ("RUNNING", "0")
    job.signal()


def test_faults_are_counted_and_the_job_is_requeued_until_there_are_too_many(cluster, folder):
    """The node that is suspected is used again where the user names the nodes."""
    job = stand_in(
        cluster, folder, processes="1", options=["--nodelist=n2"], FAULT_HOST="n2", MAX_STARTS="2"
    )  # fmt: skip
    assert job.wait() == "FAILED", job.log
    assert starts(folder) == ["start-0-rank-0", "start-1-rank-0"]
    assert "n2 may be used again: the job asks for n2 by name" in job.log
    assert "fault: a rank on n2 has died; start 1 in a row without a new checkpoint, of at most 2" in job.log
    assert "2 starts in a row saved nothing new (no checkpoint at all), giving up" in job.log


def hosts_of_start(folder: Path, start: int) -> set[str]:
    return {json.loads(path.read_text())["host"] for path in folder.glob(f"start-{start}-rank-*.json")}


def test_a_node_that_is_named_by_a_fault_is_left_out_of_the_next_start(cluster, folder):
    job = stand_in(
        cluster, folder, nodes=2, processes="1", FAULT_HOST="n2", TRAIN_SECONDS="1", END_SECONDS="5"
    )  # fmt: skip
    assert job.wait() == "COMPLETED", job.log
    assert "n2" in hosts_of_start(folder, 0) and "n2" not in hosts_of_start(folder, 1)
    assert "n2 left out of the next starts" in job.log and job.facts()["ExcNodeList"] == "n2"


def test_a_node_that_is_not_fit_is_left_out_before_anything_starts(cluster, folder):
    (folder / "sick-n1").touch()
    job = stand_in(cluster, folder, processes="1", TRAIN_SECONDS="0", PREFLIGHT="on")
    assert job.wait() == "COMPLETED", job.log
    assert "the table" in job.log and "not fit: n1: requeued" in job.log
    assert starts(folder) == ["start-1-rank-0"] and "n1" not in hosts_of_start(folder, 1)


def test_nodes_whose_check_slurm_ends_are_not_to_blame(cluster, folder):
    (folder / "slow-n1").touch()
    job = stand_in(cluster, folder, processes="1", TRAIN_SECONDS="0", PREFLIGHT="on")
    job.wait_until(lambda: (job.state_folder / "nodes.0").exists())
    cluster.run("scontrol", "requeue", job.number)
    job.wait_until(lambda: "ended by SLURM" in job.log)
    (folder / "slow-n1").unlink()
    assert "while the nodes were checked" in job.log and "not fit" not in job.log
    assert job.wait() == "COMPLETED", job.log
    assert "left out" not in job.log and starts(folder) == ["start-1-rank-0"]


@pytest.mark.exhaustive
def test_a_node_that_does_not_end_its_check_is_left_out(cluster, folder):
    (folder / "hangs-n2").touch()
    job = stand_in(cluster, folder, nodes=2, processes="1", TRAIN_SECONDS="0", PREFLIGHT="on")
    assert job.wait() == "COMPLETED", job.log
    assert "not fit: n2: requeued" in job.log and "n2" not in hosts_of_start(folder, 1)


def test_where_no_others_are_left_a_strict_job_fails(cluster, folder):
    (folder / "sick-n3").touch()
    strict = stand_in(cluster, folder, nodes=4, processes="1", TRAIN_SECONDS="0", PREFLIGHT="strict")
    assert strict.wait() == "FAILED", strict.log
    assert "without n3 3 nodes of main are left, and 4 are needed" in strict.log
    assert "not fit: n3 (PREFLIGHT=strict)" in strict.log and starts(folder) == []


@pytest.mark.exhaustive  # tests/cluster/test_in_job.py has the reason without a cluster
def test_where_no_others_are_left_nodes_that_are_not_fit_are_used(cluster, folder):
    (folder / "sick-n3").touch()
    job = stand_in(cluster, folder, nodes=4, processes="1", TRAIN_SECONDS="0", PREFLIGHT="on")
    assert job.wait() == "COMPLETED", job.log
    assert "goes on with nodes that are not fit: n3" in job.log


def test_a_mistake_that_a_rank_finds_ends_the_job_at_once(cluster, folder):
    job = stand_in(cluster, folder, MISTAKE="1")
    assert job.wait() == "FAILED", job.log
    assert job.facts()["ExitCode"] == "2:0"
    assert "a mistake, which no other start would mend: no such file on this rank" in job.log
    assert "requeued" not in job.log


APPTAINER = """#!/bin/bash
echo "$@" >>"$RUN_FOLDER/apptainer"
while [ "$1" != my.sif ]; do shift; done
exec "${@:2}"
"""
PYXIS = """#!/bin/bash
[ "$1" != --help ] || { echo "--container-image=[USER@][REGISTRY#]IMAGE[:TAG]|PATH"; exit; }
for argument; do
  case $argument in
    --container-*) echo "$argument" >>"$RUN_FOLDER/pyxis" ;;
    *) arguments+=("$argument") ;;
  esac
done
exec /usr/bin/srun "${arguments[@]}"
"""


def in_container(folder: Path, program: str, script: str, image: str) -> dict[str, str]:
    """Variables by which a job trains in a container; a program that stands for its runtime runs no image."""
    path = folder / "bin" / program
    path.parent.mkdir()
    path.write_text(script)
    path.chmod(0o755)
    return {
        "PATH": f"{path.parent}:{os.environ['PATH']}", "CONTAINER": image, "CONTAINER_MOUNTS": "/data:/data",
        "CONTAINER_PYTHON": sys.executable, "PREFLIGHT": "on", "TRAIN_SECONDS": "0",
    }  # fmt: skip


def test_one_task_a_process_needs_no_launcher_and_sees_one_gpu(cluster, folder):
    container = in_container(folder, "apptainer", APPTAINER, "my.sif")
    job = stand_in(cluster, folder, nodes=2, LAUNCHER="srun", **container)
    assert job.wait() == "COMPLETED", job.log
    lines = (folder / "apptainer").read_text().splitlines()
    assert len(lines) == 6  # two nodes are checked, four processes train
    assert all(f"--bind {folder},/data:/data my.sif {sys.executable} -m llmkit" in line for line in lines)
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("start-0-rank-*.json"))]
    assert [(facts["rank"], facts["LOCAL_RANK"], facts["WORLD_SIZE"]) for facts in found] == [
        ("0", "0", "4"), ("1", "1", "4"), ("2", "0", "4"), ("3", "1", "4"),
    ]  # fmt: skip
    assert {facts["LOCAL_WORLD_SIZE"] for facts in found} == {"2"}
    assert [facts["CUDA_VISIBLE_DEVICES"].count(",") for facts in found] == [0, 0, 0, 0]
    hosts = [facts["host"] for facts in found]
    assert hosts[0] == hosts[1] != hosts[2] == hosts[3]


def test_accelerate_launches_as_its_configuration_says(cluster, folder):
    configuration = str(ROOT / "launch" / "multinode.yaml")
    job = stand_in(
        cluster, folder, nodes=2, LAUNCHER="accelerate", ACCELERATE_CONFIG=configuration,
        ACCELERATE_USE_CPU="true", **in_container(folder, "srun", PYXIS, "nvcr.io#nvidia/pytorch:26.08"),
    )  # fmt: skip
    assert job.wait() == "COMPLETED", job.log
    options = (folder / "pyxis").read_text().splitlines()
    assert options == 2 * [  # the nodes are checked in it, too
        "--container-image=nvcr.io#nvidia/pytorch:26.08",
        f"--container-mounts={folder}:{folder},/data:/data",
        f"--container-workdir={folder}",
    ]
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("start-0-rank-*.json"))]
    assert [(facts["rank"], facts["LOCAL_RANK"], facts["WORLD_SIZE"]) for facts in found] == [
        ("0", "0", "4"), ("1", "1", "4"), ("2", "0", "4"), ("3", "1", "4"),
    ]  # fmt: skip


@pytest.mark.drill(
    "D8",
    injection="a job of higher priority, with and without a time of grace",
    expected="saved, requeued, goes on",
)
@pytest.mark.parametrize("partition", ["main", pytest.param("hard", marks=pytest.mark.exhaustive)])
def test_a_job_that_is_preempted_goes_on_later(cluster, folder, partition):
    """With a time of grace (main) and without one (hard), where SLURM's KillWait is all there is."""
    job = stand_in(cluster, folder, nodes=4, processes="1", options=[f"--partition={partition}"])
    job.wait_until(lambda: len(starts(folder)) == 4)
    cluster.run("srun", "--partition=urgent", "--nodes=4", "--immediate=60", "sleep", "1")
    job.wait_until(lambda: len(starts(folder)) == 8)
    end = read_end(job.state_folder / "end.0")
    assert end is not None and end.end == "stopped" and "(SIGTERM)" in end.reason
    (folder / "STOP").touch()
    assert job.wait() == "FAILED" and job.facts()["Restarts"] == "1"


@pytest.mark.drill(
    "D47",
    injection="the tenth start in a row that SLURM ends before it has saved",
    expected="the job is held, and goes on once it is released",
)
def test_a_job_that_was_interrupted_too_often_waits_until_it_is_released(cluster, folder):
    job = stand_in(cluster, folder, processes="1", options=["--hold"], TRAIN_SECONDS="0")
    record = Record(newest=-1, interrupted=9, ended=False)  # as nine preemptions leave it
    job.state_folder.mkdir()
    record.write(job.state_folder / "starts.json")
    cluster.run("scontrol", "release", job.number)
    job.wait_until(lambda: job.facts()["JobState"] == "PENDING" and "requeued" in job.log)
    assert "10 starts in a row were ended by SLURM" in job.log
    assert f"requeued, and waits until `scontrol release {job.number}`" in job.log
    assert job.facts()["Reason"] == "job_requeued_in_held_state"
    cluster.run("scontrol", "release", job.number)
    assert job.wait() == "COMPLETED", job.log


LISTEN = """
import socket, sys, time
held = [socket.create_server(("", port)) for port in map(int, sys.argv[1:])]
print("listening", flush=True)
time.sleep(600)
"""


@pytest.mark.exhaustive  # tests/cluster/test_in_job.py has it without a cluster
def test_a_port_that_is_taken_is_not_tried(cluster, folder):
    first = stand_in(cluster, folder, processes="1", TRAIN_SECONDS="0")
    assert first.wait() == "COMPLETED", first.log
    used = int(json.loads((folder / "start-0-rank-0.json").read_text())["MASTER_PORT"])
    likely = [20000 + (used - 20000 + 31 + more) % 12768 for more in range(3)]  # of the next job
    holder = cluster.start_on("n1", sys.executable, "-c", LISTEN, *map(str, likely[:2]))
    try:
        assert holder.stdout.readline() == "listening\n"
        job = stand_in(cluster, folder, processes="1", TRAIN_SECONDS="0")
        assert job.wait() == "COMPLETED", job.log
    finally:
        holder.kill()
    assert "fault" not in job.log
    assert int(json.loads((folder / "start-0-rank-0.json").read_text())["MASTER_PORT"]) == likely[2]


THIEF = f"""#!/bin/bash
case "$*:${{SLURM_RESTART_COUNT:-0}}" in
  *--label*:0)
    "$PYTHON" -c '{LISTEN}' "$MASTER_PORT" >"$RUN_FOLDER/stolen" &
    until [ -s "$RUN_FOLDER/stolen" ]; do sleep 0.1; done
    ;;
esac
exec /usr/bin/srun "$@"
"""


@pytest.mark.exhaustive
def test_a_port_that_is_taken_after_it_was_chosen_is_another_one_in_the_next_start(cluster, folder):
    (folder / "bin").mkdir()
    (folder / "bin" / "srun").write_text(THIEF)
    (folder / "bin" / "srun").chmod(0o755)
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    job = stand_in(cluster, folder, processes="1", PATH=path, TRAIN_SECONDS="0")
    assert job.wait() == "COMPLETED", job.log
    assert "EADDRINUSE" in job.log and "start 1 in a row without a new checkpoint" in job.log
    assert starts(folder) == ["start-1-rank-0"]


def hardware_address(cluster: Cluster, node: str) -> str:
    output = cluster.start_on(node, "ip", "-o", "link", "show", "eth0").communicate()[0]
    return output.partition("link/ether ")[2].split()[0]


def test_a_node_that_was_away_for_a_moment_is_no_fault(cluster, folder):
    job = stand_in(cluster, folder, nodes=2, processes="1", MAX_STARTS="1", END_SECONDS="5")
    job.wait_until(lambda: len(starts(folder)) == 2)
    before = hardware_address(cluster, "n2")
    cluster.power("crash", "n2")
    cluster.power("boot", "n2")
    assert hardware_address(cluster, "n2") == before  # with another one it could not be reached for a while
    (folder / "FAULT").touch()  # the others notice
    job.wait_until(lambda: "requeued" in job.log or "giving up" in job.log)
    assert "died in this start: n2 (no fault of the run): requeued" in job.log
    job.signal()


@pytest.mark.drill("D8", injection="scancel", expected="saved, and stays cancelled")
def test_a_cancelled_job_stops_in_order_and_stays_cancelled(cluster, folder):
    job = stand_in(cluster, folder, nodes=2, processes="1")
    job.wait_until(lambda: len(starts(folder)) == 2)
    job.signal()
    assert job.wait() == "CANCELLED"
    job.wait_until(lambda: "ended by SLURM" in job.log)
    assert "and saved" in job.log and "requeued" not in job.log


def test_a_user_who_asks_the_run_to_stop_ends_the_job(cluster, folder):
    job = stand_in(cluster, folder, processes="1")
    job.wait_until(lambda: bool(starts(folder)))
    (folder / "STOP").touch()
    assert job.wait() == "FAILED"
    assert job.facts()["ExitCode"] == "75:0"
    assert "stopped by STOP, and saved; submit the job again to go on" in job.log


def test_a_job_that_may_not_be_requeued_says_so_when_it_ends(cluster, folder):
    """And of several tasks a node, as its user has asked for, one alone starts processes."""
    job = stand_in(cluster, folder, processes="1", options=["--no-requeue", "--ntasks-per-node=2"])
    job.wait_until(lambda: bool(starts(folder)))
    job.ask_to_stop()
    assert job.wait() == "FAILED", job.log
    assert job.facts()["ExitCode"] == "75:0" and starts(folder) == ["start-0-rank-0"]
    assert "SLURM does not requeue the job (" in job.log and "submit it again to go on" in job.log
    assert "requeued" not in job.log


def test_the_number_of_processes_must_be_known(cluster, folder):
    job = cluster.submit(folder, "tiny.yaml", options=["--nodes=1", "--gpus-per-node=0"], PYTHONPATH=STAND_IN)
    assert job.wait() == "FAILED"
    assert job.facts()["ExitCode"] == "2:0"
    assert "how many processes a node?" in job.log


def train(cluster: Cluster, folder: Path, *arguments: str, processes: str, **variables: str) -> Job:
    """A job of the real trainer on the CPUs of two nodes."""
    return cluster.submit(
        folder, "tiny.yaml", *arguments, options=["--nodes=2", "--gpus-per-node=0"],
        PROCESSES_PER_NODE=processes, **{"PREFLIGHT": "off", **variables},
    )  # fmt: skip


def test_mistakes_in_the_settings_are_told_once_and_not_tried_again(cluster, folder):
    make_project(folder)
    job = train(cluster, folder, "train.max_step=5", processes="2")
    assert job.wait() == "FAILED"
    assert job.facts()["ExitCode"] == "2:0"
    assert "train.max_steps" in job.log and "start 0" not in job.log


@pytest.mark.exhaustive  # tests/drills/test_world.py has it without a cluster
def test_a_world_of_another_size_than_told_is_refused(cluster, folder):
    make_project(folder)
    job = train(cluster, folder, "parallel.world_size=8", processes="1")
    assert job.wait() == "FAILED"
    assert job.log.count("llmkit: ") == 1  # rank 0 tells it for all
    assert "parallel.world_size 8 (command line), but the world that was joined has 2" in job.log
    assert not (folder / "runs").exists()


@pytest.mark.drill(
    "D7",
    injection="SLURM's signal before the time limit, to a job of 2 nodes x 2 processes",
    expected="saved at the next step but one at most, requeued, the same metrics in the end",
)
def test_a_requeued_run_ends_with_the_metrics_of_an_undisturbed_one(cluster, folder, measured):
    make_project(folder)
    settings = ["parallel.zero_stage=2", "train.max_steps=100", "checkpoint.every_steps=0"]
    straight = train(cluster, folder, *settings, "run.name=straight", processes="2", PREFLIGHT="on")
    job = train(cluster, folder, *settings, "run.name=requeued", processes="2")
    runs = folder / "runs"
    metrics = runs / "requeued" / "metrics.jsonl"
    job.wait_until(lambda: metrics.exists() and metrics.stat().st_size > 0)
    job.ask_to_stop()
    assert job.wait() == "COMPLETED", job.log
    assert straight.wait() == "COMPLETED", straight.log
    assert "\nsick:\n" in straight.log  # what llmkit doctor says of two good nodes

    assert job.facts()["Restarts"] == "1"
    assert "stopped: the batch script's stop file: time limit (SIGUSR1); saved until step" in job.log
    assert "FAILED" not in job.log and "exitcode" not in job.log  # a stop is no failure to the launcher
    assert events(runs / "requeued") == ["start", "save", "stop", "resume", "save", "done"]
    stop = json.loads((runs / "requeued" / "events.jsonl").read_text().splitlines()[2])
    assert stop["reason"] == "the batch script's stop file: time limit (SIGUSR1)"
    steps = [row["step"] for row in rows(runs / "requeued") if "loss" in row or "eval_loss" in row]
    assert steps == [*range(1, 101), 100]  # the last: evaluation
    resumed = json.loads((runs / "requeued" / "events.jsonl").read_text().splitlines()[3])
    measured("steps lost", stop["step"] - resumed["step"], "")
    assert timeless(runs / "requeued") == timeless(runs / "straight")  # the same layout: bit-equal
    assert (runs / "requeued" / "DONE").exists()


@pytest.mark.exhaustive
def test_job_numbers_go_on_when_the_cluster_is_started_again(cluster, folder):
    before = stand_in(cluster, folder, processes="1", TRAIN_SECONDS="0")
    assert before.wait() == "COMPLETED"
    cluster.down()
    assert cluster.up() is None
    after = stand_in(cluster, folder, processes="1", TRAIN_SECONDS="0")
    assert int(after.number) == int(before.number) + 1
    assert after.wait() == "COMPLETED"
