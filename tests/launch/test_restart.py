"""Several machines without a batch system: a rank dies, the launchers start all ranks again in place.

Two launchers on this host stand for two machines.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.limits import HANG
from tests.program import environment, events, make_project, recorded, rows
from tests.ranks import free_ports

ROOT = Path(__file__).parents[2]
TRAIN = [
    "-m", "llmkit", "train", "tiny.yaml", "parallel.world_size=2", "train.max_steps=1000000",
    "checkpoint.every_steps=5", "run.deterministic=false",
]  # fmt: skip
LAUNCHERS = ("static", "c10d", "accelerate")


def command(launcher: str, machine: int, port: int) -> list[str]:
    """What a user types on a machine."""
    if launcher == "accelerate":
        file = str(ROOT / "launch" / "multinode.yaml")
        return [
            sys.executable, "-m", "accelerate.commands.launch", "--config_file", file, "--num_processes", "2",
            "--machine_rank", str(machine), "--main_process_ip", "127.0.0.1",
            "--main_process_port", str(port), "--max_restarts", "3", *TRAIN,
        ]  # fmt: skip
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--max-restarts=3"]
    if launcher == "c10d":
        meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=tiny"]
    else:
        meeting = [f"--node-rank={machine}", "--master-addr=127.0.0.1", f"--master-port={port}"]
    return [*torchrun, *meeting, *TRAIN]


class Machines:
    """Two launchers of one run; whatever is left of them at the end is killed."""

    def __init__(self, folder: Path, launcher: str) -> None:
        self.folder = folder / "runs" / "tiny"
        self._logs = [folder / f"machine-{number}.log" for number in range(2)]
        (port,) = free_ports(1)
        self.launchers = []
        for number, log in enumerate(self._logs):
            with log.open("wb") as output:
                process = subprocess.Popen(
                    command(launcher, number, port), cwd=folder, stdout=output, stderr=output,
                    env={**environment(), "CUDA_VISIBLE_DEVICES": ""}, start_new_session=True,
                )  # fmt: skip
            self.launchers.append(process)

    def __enter__(self) -> Machines:
        return self

    def __exit__(self, *_: object) -> None:
        for launcher in self.launchers:
            if launcher.poll() is None:
                os.killpg(launcher.pid, signal.SIGKILL)
                launcher.wait(HANG)

    def rank(self, wanted: int) -> int:
        """The number of the process that has this rank."""
        for launcher in self.launchers:
            for child in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
                if f"RANK={wanted}\0" in Path(f"/proc/{child}/environ").read_text():
                    return int(child)
        raise AssertionError(f"no rank {wanted}")

    def wait(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + HANG
        while not condition():
            running = any(launcher.poll() is None for launcher in self.launchers)
            assert running and time.monotonic() < end, "\n".join(log.read_text() for log in self._logs)
            time.sleep(0.05)

    def saved(self) -> int:
        """The newest step that the events tell to be saved; 0 = none."""
        file = self.folder / "events.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return max((event["step"] for event in map(json.loads, lines) if event["event"] == "save"), default=0)

    def codes(self) -> list[int]:
        return [launcher.wait(HANG) for launcher in self.launchers]


FIRST, *OTHERS = [(launcher, victim) for launcher in LAUNCHERS for victim in (1, 0)]


@pytest.mark.drill(
    "D1",
    injection="kill -9 of a rank, of two launchers that may restart their ranks three times",
    expected="the run goes on by itself; at most the save interval is lost (5 steps)",
)
@pytest.mark.parametrize(
    ("launcher", "victim"), [FIRST, *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in OTHERS)]
)
def test_a_killed_rank_costs_a_restart_in_place_and_a_stop_ends_all(tmp_path, measured, launcher, victim):
    make_project(tmp_path)
    with Machines(tmp_path, launcher) as machines:
        machines.wait(lambda: machines.saved() > 0)
        os.kill(machines.rank(victim), signal.SIGKILL)
        machines.wait(lambda: "resume" in events(machines.folder))
        resumed = recorded("resume", machines.folder)[0]["step"]
        machines.wait(lambda: machines.saved() > resumed)
        (machines.folder / "STOP").touch()
        # Not 75: the launchers would take it for a failure, and start the ranks again.
        assert machines.codes() == [0, 0]
    told = events(machines.folder)
    assert [event for event in told if event != "save"] == ["start", "fault", "resume", "stop"]
    last = recorded("stop", machines.folder)[0]["step"]
    assert [row["step"] for row in rows(machines.folder)] == list(range(1, last + 1))
    fault = recorded("fault", machines.folder)[0]
    assert fault["saved_step"] == resumed and fault["lost_steps"] <= 5
    measured("steps lost", fault["lost_steps"], "of at most 5")
