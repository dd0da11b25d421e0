"""W&B mirrors metrics.jsonl, and whatever happens to it, the trainer does not notice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import KEY
from fake_wandb import FakeServer
from wandb_log import history

from llmkit.config.schema import Wandb
from llmkit.errors import UserError
from llmkit.monitor.metrics import MetricsFile
from llmkit.monitor.wandb_mirror import Mirror, Timeouts, descendants
from tests.limits import HANG

PATIENT = Timeouts(*[HANG] * 5)
"""Limits that are not reached, but for the one that a test replaces."""
ROOT = str(Path(__file__).parents[2])
Environment = dict[str, str]


class Run:
    """A run folder with a metrics file and a mirror, as the trainer has them."""

    def __init__(self, run_dir: Path, environment: Environment, timeouts: Timeouts = PATIENT) -> None:
        self.dir = run_dir
        self.metrics = MetricsFile(run_dir / "metrics.jsonl")
        self.mirror = Mirror.start(run_dir, Wandb(), {"train": {"max_steps": 10}}, timeouts, environment)

    def log(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            self.metrics.append({"step": step, "loss": 1.0 / step, "mfu": None, "mfu_peak": "unknown"})

    @property
    def pid(self) -> int:
        assert self.mirror._process is not None
        return self.mirror._process.pid

    def says(self) -> str:
        return (self.dir / "logs" / "wandb.log").read_text()

    def is_mirroring(self) -> bool:
        return "mirroring" in self.says()

    def steps_on_disk(self) -> list[int]:
        """Steps in the transaction logs of wandb, over all starts of the run."""
        logs = sorted(self.dir.glob("wandb/*run-*/*.wandb"), key=os.path.getctime)
        return [row["train/step"] for log in logs for row in history(log)]


def test_a_resumed_run_goes_on_in_the_same_charts_and_no_secret_is_written(
    tmp_path: Path, server: FakeServer, online: Callable[[str], Environment]
) -> None:
    run = Run(tmp_path / "runs" / "demo", online(server.url))
    assert run.mirror.message == f"W&B: online, project llmkit on {server.url}"
    run.log(1, 20)
    run.metrics.append({"step": 20, "eval_loss": 0.5, "eval_bits_per_byte": 0.7})
    assert run.mirror.finish(exit_code=75) is None, run.says()

    resumed = Run(run.dir, online(server.url))
    resumed.log(21, 30)
    assert resumed.mirror.finish() is None, resumed.says()

    assert list(server.histories) == [(run.dir / "wandb" / "run_id").read_text().strip()]
    (rows,) = server.histories.values()
    assert [row["train/step"] for row in rows] == [*range(1, 21), 20, *range(21, 31)]
    assert [row["restarts"] for row in rows] == [0] * 21 + [1] * 10
    assert rows[0]["train/loss"] == 1.0 and "train/mfu" not in rows[0] and "train/mfu_peak" not in rows[0]
    assert rows[20]["eval/loss"] == 0.5 and rows[20]["eval/bits_per_byte"] == 0.7
    assert list(server.exit_codes.values()) == [0]
    assert '"max_steps"' in "".join(server.configs)

    assert any(key.startswith("Basic ") for key in server.keys)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_offline_every_row_outlives_a_trainer_killed_with_minus_9(
    tmp_path: Path, environment: Environment, until: Callable[..., None]
) -> None:
    trainer = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("trainer.py")), str(tmp_path / "run"), "50"],
        env={**environment, "PYTHONPATH": ROOT},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert trainer.stdin is not None and trainer.stdout is not None
    mirror = int(trainer.stdout.readline())
    for job_signal in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        os.kill(mirror, job_signal)  # a batch system warns every process of the job
    trainer.kill()
    trainer.wait()

    log = tmp_path / "run" / "logs" / "wandb.log"
    until(lambda: "finished" in log.read_text(), log.read_text)
    trainer.stdin.close()
    trainer.stdout.close()
    (transaction_log,) = tmp_path.glob("run/wandb/offline-run-*/*.wandb")
    assert [row["train/step"] for row in history(transaction_log)] == list(range(1, 51))


def test_an_outage_in_mid_run_keeps_every_row_on_disk_and_says_how_to_upload(
    tmp_path: Path, server: FakeServer, online: Callable[[str], Environment], until: Callable[..., None]
) -> None:
    run = Run(tmp_path, online(server.url), PATIENT._replace(finish=1.5))
    until(run.is_mirroring, run.says)
    server.down.set()
    run.log(1, 40)
    message = run.mirror.finish()
    (folder,) = tmp_path.glob("wandb/run-*")
    assert message is not None and f"wandb sync --include-online {folder} " in message
    assert run.steps_on_disk() == list(range(1, 41))


@pytest.mark.parametrize("fault", ["refused_url", "silent_url"])
def test_without_a_server_the_run_is_kept_offline(
    tmp_path: Path, fault: str, online: Callable[[str], Environment], request: pytest.FixtureRequest
) -> None:
    run = Run(tmp_path, online(request.getfixturevalue(fault)), PATIENT._replace(probe=0.5))
    run.log(1, 20)
    message = run.mirror.finish()
    assert message is not None and "wandb sync" in message and "offline-run-" in message, run.says()
    assert run.steps_on_disk() == list(range(1, 21))


def test_a_server_that_refuses_the_run_leaves_it_offline_under_the_same_id(
    tmp_path: Path, server: FakeServer, online: Callable[[str], Environment], until: Callable[..., None]
) -> None:
    server.down.set()
    run = Run(tmp_path, online(server.url), PATIENT._replace(init=2.0))
    until(run.is_mirroring, run.says)
    run.log(1, 20)
    message = run.mirror.finish()
    assert message is not None and "offline-run-" in message
    run_id = (tmp_path / "wandb" / "run_id").read_text().strip()
    (transaction_log,) = tmp_path.glob(f"wandb/offline-run-*-{run_id}/*.wandb")
    assert [row["train/step"] for row in history(transaction_log)] == list(range(1, 21))


def test_a_frozen_mirror_is_killed_with_all_its_processes(
    tmp_path: Path, environment: Environment, until: Callable[..., None]
) -> None:
    run = Run(tmp_path, environment, PATIENT._replace(kill=0.5))
    until(run.is_mirroring, run.says)
    processes = [run.pid, *descendants(run.pid)]
    assert len(processes) > 1, "wandb-core is not among them"
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    message = run.mirror.finish()
    assert message is not None and "wandb sync" in message
    until(lambda: not any(is_running(process) for process in processes))


def test_a_mirror_whose_wandb_is_frozen_ends_by_itself(
    tmp_path: Path, environment: Environment, until: Callable[..., None]
) -> None:
    run = Run(tmp_path, environment, PATIENT._replace(abandon=0.5))
    until(run.is_mirroring, run.says)
    processes = [run.pid, *descendants(run.pid)]
    for process in processes[1:]:
        os.kill(process, signal.SIGSTOP)
    message = run.mirror.finish()
    assert message is not None and "wandb sync" in message
    assert "W&B did not finish in time" in run.says()
    until(lambda: not any(is_running(process) for process in processes))


def test_rows_that_a_killed_mirror_missed_are_sent_later(tmp_path: Path, environment: Environment) -> None:
    run = Run(tmp_path, environment)
    run.log(1, 3)
    os.kill(run.pid, signal.SIGKILL)
    run.log(4, 10)
    message = run.mirror.finish()
    assert message is not None and "metrics.jsonl has every row" in message

    by_hand = [sys.executable, "-m", "llmkit.monitor.wandb_sidecar", str(tmp_path)]
    assert subprocess.run(by_hand, input=b"0\n", env={**environment, "PYTHONPATH": ROOT}).returncode == 0
    assert run.steps_on_disk() == list(range(1, 11))

    assert run.metrics.cut_back(8) == 2
    resumed = Run(tmp_path, environment)
    resumed.log(9, 12)
    assert resumed.mirror.finish() is None, resumed.says()
    assert resumed.steps_on_disk() == [*range(1, 11), *range(9, 13)], "redone rows are sent again, no others"


def test_when_wandb_breaks_down_the_mirror_gives_up_and_the_trainer_logs_on(
    tmp_path: Path, environment: Environment, until: Callable[..., None]
) -> None:
    run = Run(tmp_path, environment)
    until(run.is_mirroring, run.says)
    for process in descendants(run.pid):
        os.kill(process, signal.SIGKILL)
    run.log(1, 10)
    until(lambda: "stopped mirroring" in run.says(), run.says)
    assert run.says().count("a row was not taken") == 3
    assert run.mirror.finish() is not None
    assert len(run.metrics.rows()) == 10


def test_disabled_means_no_process_and_no_folder(tmp_path: Path, environment: Environment) -> None:
    mirror = Mirror.start(tmp_path / "run", Wandb(mode="disabled"), {}, environment=environment)
    assert (mirror.message, mirror.finish()) == ("", None)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_costs_the_mirror_not_the_run(
    tmp_path: Path, environment: Environment
) -> None:
    (tmp_path / "wandb").write_text("in the way")
    mirror = Mirror.start(tmp_path, Wandb(), {}, environment=environment)
    assert mirror.message.startswith("W&B: off, its process could not be started")
    assert mirror.finish() is None


def test_a_wrong_mode_in_the_environment_is_the_users_to_mend(
    tmp_path: Path, environment: Environment
) -> None:
    with pytest.raises(UserError, match="WANDB_MODE=onlin: allowed are online, offline and disabled"):
        Mirror.start(tmp_path, Wandb(), {}, environment={**environment, "WANDB_MODE": "onlin"})


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False
