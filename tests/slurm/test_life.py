"""One job through everything that can end a start of it, submitted by `llmkit submit`, on a real cluster."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.program import make_project, rows, timeless
from tests.slurm.cluster import Cluster, Job

LLMKIT = (sys.executable, "-m", "llmkit")
SAVE_EVERY = 5
SETTINGS = (
    "train.max_steps=160", f"checkpoint.every_steps={SAVE_EVERY}", "checkpoint.keep_last=2",
    "train.max_nonfinite_steps=1", "monitor.wandb.mode=offline",
)  # fmt: skip
PLUGIN = '''
import time
from pathlib import Path

import llmkit

SLOW, POISON = Path("slow"), Path("poison")


@llmkit.register("hook", "life")
class Life(llmkit.Hook):
    """Waits after each step as long as the test asks for; and damages the weights of one rank once."""

    def after_step(self, t, result):
        if SLOW.exists():
            time.sleep(float(SLOW.read_text()))
        if t.mesh.rank == 1 and POISON.exists():
            POISON.unlink()
            next(t.engine.model.parameters()).data.fill_(float("nan"))
'''


class Life:
    """A job of two nodes that trains a run whose last step is far away while there is a file `slow`."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder, self.run = cluster, folder, folder / "runs" / "life"
        self.slow(2.0)  # the time limit is far away
        output = submit(cluster, folder, "life", "--time", "4", "--sbatch-option=--signal=B:USR1@60")
        number = re.search(r"^job (\d+): ", output, re.MULTILINE)
        assert number, output
        self.job = Job(cluster, number[1], folder)

    def slow(self, seconds: float) -> None:
        (self.folder / "slower").write_text(str(seconds))
        (self.folder / "slower").replace(self.folder / "slow")

    @property
    def step(self) -> int:
        """The last step that is on record."""
        metrics = self.run / "metrics.jsonl"
        return rows(self.run)[-1]["step"] if metrics.exists() and metrics.stat().st_size else 0

    @property
    def events(self) -> list[dict[str, Any]]:
        path = self.run / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def begins(self) -> list[int]:
        """The step that each start began with."""
        return [event.get("step", 0) for event in self.events if event["event"] in ("start", "resume")]

    def ends(self) -> list[int]:
        """The step that each start reached that has said so."""
        return [event.get("step", 0) for event in self.events if event["event"] in ("stop", "fault")]

    def through(self, disturb: Callable[[], object]) -> int:
        """Disturbs a start that has trained and saved, and waits for the next; how many steps are lost."""
        begins, ends = self.begins(), self.ends()
        self.job.wait_until(lambda: self.step >= begins[-1] + SAVE_EVERY + 3)
        seen = self.step
        disturb()
        self.job.wait_until(lambda: len(self.begins()) > len(begins))
        reached = max([seen, *self.ends()[len(ends) :]])
        return reached - self.begins()[-1]

    def nodes(self) -> list[str]:
        nodes = self.job.facts()["NodeList"]
        return self.cluster.run("scontrol", "show", "hostnames", nodes).split()

    def lose(self, number: int) -> None:
        """Takes the power of a node of the job away, until the job has gone on without it."""
        node = self.nodes()[number]
        self.cluster.power("crash", node)
        restarts = self.job.facts()["Restarts"]
        self.job.wait_until(lambda: self.job.facts()["Restarts"] != restarts)
        self.cluster.power("boot", node)


def submit(cluster: Cluster, folder: Path, name: str, *options: str) -> str:
    return cluster.run(
        *LLMKIT, "submit", "tiny.yaml", f"run.name={name}", *SETTINGS, "--nodes", "2",
        "--processes-per-node", "1", *options, folder=folder,
    )  # fmt: skip


@pytest.mark.drill(
    "D7", injection="a job's time limit, on 2 nodes", expected="0 steps lost, the same losses in the end"
)
@pytest.mark.drill(
    "D8",
    injection="preemption, scontrol requeue, NaN on a rank, a node and the batch script's host without power",
    expected="0 steps lost by a stop, at most the save interval by a crash; the same losses in the end",
)
@pytest.mark.exhaustive
def test_a_life_of_everything_ends_with_the_losses_of_an_undisturbed_one(
    cluster: Cluster, folder: Path, measured: Callable[[str, float | str, str], None]
) -> None:
    make_project(folder)
    with (folder / "tiny.yaml").open("a") as file:
        file.write("plugins: [life]\nhooks:\n  - type: life\n")
    (folder / "life.py").write_text(PLUGIN)
    submit(cluster, folder, "straight", "--follow")
    life = Life(cluster, folder)
    life.job.wait_until(lambda: bool(life.events))

    def preempt() -> None:
        cluster.run("srun", "--partition=urgent", "--nodes=4", "--immediate=60", "sleep", "1")

    lost = {"time limit": life.through(lambda: None)}
    life.slow(0.5)
    lost["preemption"] = life.through(preempt)
    assert set(lost.values()) == {0}
    # Here KillWait, of 30 s, is all the time there is: a busy machine may need more for a step and a save.
    lost["scontrol requeue"] = life.through(lambda: cluster.run("scontrol", "requeue", life.job.number))
    lost["NaN on rank 1"] = life.through((folder / "poison").touch)
    lost["node"] = life.through(lambda: life.lose(1))
    lost["host of the batch script"] = life.through(lambda: life.lose(0))
    shown = json.loads(cluster.run(*LLMKIT, "jobs", "--json", folder=folder))
    (line,) = (each for each in shown if each["job"]["number"] == life.job.number)
    assert line["state"] == "running" and line["run"]["step"] > 0
    (folder / "slow").unlink()
    assert life.job.wait() == "COMPLETED", life.job.log
    for what, steps in lost.items():
        measured(f"steps lost, {what}", steps, "")
    assert all(0 <= steps <= SAVE_EVERY + 1 for steps in lost.values()), lost
    assert life.job.facts()["Restarts"] == str(len(lost))
    straight = folder / "runs" / "straight"
    assert timeless(life.run) == timeless(straight)  # the same layout: bit-equal
    assert (life.run / "DONE").exists()
    assert life.events[-1]["event"] == "done"
    stopped = [event["reason"] for event in life.events if event["event"] == "stop"]
    assert [reason.rpartition(": ")[2] for reason in stopped[:2]] == [
        "time limit (SIGUSR1)", "preemption, requeue or cancellation (SIGTERM)",
    ]  # fmt: skip
    records = {path.name.rpartition("-")[2] for path in (life.run / "wandb").rglob("offline-run-*")}
    assert records == {(life.run / "wandb" / "run_id").read_text().strip()}
