"""`llmkit submit` and `llmkit jobs` on a real SLURM cluster, which slurm/local-cluster.sh starts here."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from llmkit.cluster.request import wrong_arguments
from llmkit.cluster.script import MARK, render
from tests.cluster.test_script import hostile_texts
from tests.program import make_project, rows
from tests.slurm.cluster import FOLDER, Cluster, Job

LLMKIT = (sys.executable, "-m", "llmkit")
SMALL_JOB = (
    "--processes-per-node",
    "1",
    "--share-nodes",
    "--mem",
    "1G",
    "--cpus-per-task",
    "2",
    "--time",
    "10",
)
SETTINGS = ("train.max_steps=3", "checkpoint.every_steps=0")


def jobs(cluster: Cluster, folder: Path) -> dict[str, dict[str, Any]]:
    """What `llmkit jobs` tells of each job."""
    told = json.loads(cluster.run(*LLMKIT, "jobs", "--json", folder=folder))
    return {line["job"]["number"]: line for line in told}


def number_of(output: str) -> str:
    """That of the job that was submitted."""
    found = re.search(r"^job (\d+): ", output, re.MULTILINE)
    assert found, output
    return found[1]


def test_a_job_is_submitted_followed_and_shown(cluster: Cluster, folder: Path) -> None:
    make_project(folder)
    output = cluster.run(
        *LLMKIT, "submit", "tiny.yaml", *SETTINGS, "--nodes", "2", *SMALL_JOB, "--follow",
        folder=folder, HF_TOKEN="hf_canarycanarycanary", NCCL_DEBUG="a,b=c", SLURM_CPU_BIND="quiet",
        PREFLIGHT="off",
    )  # fmt: skip
    number = number_of(output)
    assert "2 nodes x 1 process" in output and f"{folder}/slurm-{number}.out" in output
    assert "step 3/3" in output and "done" in output  # the log
    line = jobs(cluster, folder)[number]
    assert (line["state"], line["run"]["step"], line["run"]["layout"]) == ("done", 3, "2")
    assert line["what"] == "finished after step 3"
    shown = cluster.run(*LLMKIT, "jobs", folder=folder)
    assert re.search(rf"^{number} +done +runs/tiny +3/3 .* finished after step 3$", shown, re.MULTILINE), (
        shown
    )


@pytest.mark.drill(
    "D42",
    injection="keys in the environment that a job is submitted from",
    expected="not in what SLURM's controller keeps of the job",
)
def test_the_controller_keeps_no_secret(cluster: Cluster, folder: Path) -> None:
    make_project(folder)
    output = cluster.run(
        *LLMKIT, "submit", "tiny.yaml", *SMALL_JOB, "--sbatch-option=--hold", "--pass-env", "MINE",
        folder=folder, HF_TOKEN="hf_canarycanarycanary", NCCL_DEBUG="a,b=c", SLURM_CPU_BIND="canary",
        MINE="1,$(touch x)",
    )  # fmt: skip
    number = number_of(output)
    (kept,) = (FOLDER / "cluster/state").glob(f"hash.*/job.{number}")
    files = {path.name: path.read_bytes() for path in kept.iterdir()}
    assert b"canary" not in b"".join(files.values())
    assert (
        b"\0NCCL_DEBUG=a,b=c\0" in files["environment"] and b"\0MINE=1,$(touch x)\0" in files["environment"]
    )
    line = jobs(cluster, folder)[number]
    assert line["state"] == "waiting" and line["what"].startswith("held; free it by scontrol release")
    cluster.run("scancel", number)


def test_tasks_of_a_sweep_run_and_a_job_waits_for_them(cluster: Cluster, folder: Path) -> None:
    make_project(folder)
    varied = ("--array", "run.seed=1,2", "%2")
    submit = (*LLMKIT, "submit", "tiny.yaml", *SETTINGS, *SMALL_JOB)
    number = number_of(cluster.run(*submit, *varied, folder=folder, PREFLIGHT="off"))
    after = ("run.name=after", "--dependency", f"afterok:{number}")
    last = number_of(cluster.run(*submit, *after, folder=folder))
    line = jobs(cluster, folder)[last]
    assert line["state"] == "waiting" and line["what"].startswith(f"waits for afterok:{number}")
    cluster.run("scancel", last)
    for task in ("0", "1"):
        assert Job(cluster, f"{number}_{task}", folder).wait() == "COMPLETED"
    shown = jobs(cluster, folder)
    for task, name in ((f"{number}_0", "tiny-seed_1"), (f"{number}_1", "tiny-seed_2")):
        assert (shown[task]["state"], shown[task]["run"]["name"]) == ("done", f"runs/{name}")
        assert shown[task]["job"]["run"] == str(folder / "runs" / name)
    losses = [[row["loss"] for row in rows(folder / "runs" / f"tiny-seed_{seed}")[:3]] for seed in (1, 2)]
    assert losses[0] != losses[1]


def test_what_slurm_refuses_is_not_submitted(cluster: Cluster, folder: Path) -> None:
    make_project(folder)
    for given, what in (
        (["--gpus-per-node", "1", "--partition", "nowhere"], "invalid partition specified: nowhere"),
        (["--gpus-per-node", "9"], "Requested node configuration is not available"),
    ):
        done = cluster.ask(*LLMKIT, "submit", "tiny.yaml", *given, folder=folder)
        assert done.returncode == 2 and done.stdout == ""
        assert "SLURM refuses this job, nothing was submitted" in done.stderr and what in done.stderr
    assert cluster.run("squeue", "--noheader") == ""


EMPTY_JOB = f"#!/bin/sh\n#SBATCH --hold\n{MARK}\n\ntrue\n"


@pytest.mark.drill(
    "D36",
    injection="40 generated texts in an #SBATCH field of a real job",
    expected="SLURM reads them as they are; nothing is executed",
)
def test_hostile_texts_are_what_sbatch_reads(cluster: Cluster, folder: Path) -> None:
    texts = ["/runs/hetjob-1", 'a "PackJob" #b', *hostile_texts(150)]
    texts = [text for text in texts if not list(wrong_arguments([text]))][:40]
    script = folder / "job.sbatch"
    for text in texts:
        script.write_text(render(EMPTY_JOB, {"comment": f"llmkit x{text}x", "job-name": "canary"}))
        cluster.run("sbatch", "--parsable", str(script), folder=folder)
    kept = cluster.run("squeue", "--noheader", "--sort=i", "--format=%j:%k").splitlines()
    cluster.run("scancel", "--name=canary")
    assert kept == [f"canary:llmkit x{text}x" for text in texts]
    assert [path.name for path in folder.iterdir()] == ["job.sbatch"]
