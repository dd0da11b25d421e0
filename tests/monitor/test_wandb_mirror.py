"""W&B mirrors metrics.jsonl, and whatever happens to it, the trainer does not notice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import KEY
from fake_wandb import FakeServer

from llmkit.config.monitor_section import Wandb
from llmkit.errors import UserError
from llmkit.monitor.events import EventLog
from llmkit.monitor.jsonlines import JsonLines
from llmkit.monitor.metrics import MetricsFile
from llmkit.monitor.wandb_file import history
from llmkit.monitor.wandb_mirror import Mirror
from llmkit.monitor.wandb_session import Timeouts
from llmkit.monitor.wandb_sync import sync_command
from llmkit.proc import descendants
from tests.limits import HANG

PATIENT = Timeouts(*[HANG] * 6)
"""Limits that are not reached, but for the one that a test replaces."""
SECRET_URL = "https://user:canary@host/x?token=canary-in-the-query"
CONFIG = {"train": {"max_steps": 10}, "data": {"sources": [{"path": SECRET_URL}], "cache": KEY}}
ROOT = str(Path(__file__).parents[2])
LONG = partial(pytest.param, marks=pytest.mark.exhaustive)
Environment = dict[str, str]
Measured = Callable[[str, float | str, str], None]


class Run:
    """A run folder with a record and a mirror, as the trainer has them."""

    def __init__(
        self, run_dir: Path, environment: Environment, timeouts: Timeouts = PATIENT, **settings: Any
    ) -> None:
        self.dir = run_dir
        self.metrics = MetricsFile(run_dir / "metrics.jsonl")
        self.events = EventLog(run_dir / "events.jsonl")
        self.mirror = Mirror.start(run_dir, Wandb(**settings), CONFIG, timeouts, environment)

    def log(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            row = {"step": step, "loss": 1.0 / step, "mfu": None, "mfu_peak": "unknown", "time": time.time()}
            self.metrics.append(row)

    def finish(self, exit_code: int = 0) -> str | None:
        self.mirror.exit_code = exit_code
        return self.mirror.finish()

    @property
    def pid(self) -> int:
        assert self.mirror._process is not None
        return self.mirror._process.pid

    @property
    def id(self) -> str:
        return (self.dir / "wandb" / "run_id").read_text().strip()

    def says(self) -> str:
        return (self.dir / "logs" / "wandb.log").read_text()

    def is_mirroring(self) -> bool:
        return "mirroring" in self.says()

    def steps_on_disk(self) -> list[int]:
        """Steps in the transaction logs of wandb, over all starts of the run."""
        logs = sorted(self.dir.glob("wandb/*run-*/*.wandb"), key=os.path.getctime)
        return steps(row for log in logs for row in history(log))


def steps(rows: Iterable[dict[str, Any]]) -> list[int]:
    """Of the rows of metrics.jsonl among all lines of a W&B run."""
    return [row["train/step"] for row in rows if "train/loss" in row]


def test_a_resumed_run_goes_on_on_the_same_page(
    tmp_path: Path, server: FakeServer, online: Callable[[str], Environment]
) -> None:
    user = {**online(server.url), "HF_TOKEN": "canary-of-the-environment"}
    run = Run(tmp_path / "runs" / "demo", user, tags=["a", "b"], group="g", job_type="train")
    assert run.mirror.message == f"W&B: online, project llmkit on {server.url}"
    run.events.record("start", step=0)
    run.log(1, 20)
    run.metrics.append({"step": 20, "eval_loss": 0.5, "eval_bits_per_byte": 0.7})
    run.events.record("stop", step=20, reason=f"{SECRET_URL}, {KEY}, canary-of-the-environment")
    assert run.finish(exit_code=75) is None, run.says()
    assert server.exit_codes == {run.id: 75}

    resumed = Run(run.dir, user)
    resumed.events.record("resume", step=20)
    media = [
        {"step": 20, "kind": "table", "name": "samples", "columns": ["prompt", "text"], "rows": [["a", "b"]]},
        {"step": 20, "kind": "nothing that there is", "name": "x"},
        {"step": 21, "kind": "histogram", "name": "gradients/head", "edges": [0, 1, 2], "counts": [1, 2]},
    ]
    for item in media:
        JsonLines(run.dir / "media.jsonl").append(item)
    resumed.log(21, 30)
    assert resumed.finish() is None, resumed.says()

    assert list(server.histories) == [run.id]
    rows = server.histories[run.id]
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    assert steps(rows) == list(range(1, 31))
    assert rows[0]["train/loss"] == 1.0 and "speed/mfu" not in rows[0] and "speed/mfu_peak" not in rows[0]
    assert rows[20]["eval/loss"] == 0.5 and rows[20]["eval/bits_per_byte"] == 0.7
    names = {name for row in rows for name in row}
    assert {"samples/samples", "layers/gradients/head", "faults/events"} <= names
    assert server.summaries[run.id]["best/eval_loss"] == 0.5
    assert server.exit_codes == {run.id: 0}
    assert server.config(run.id)["train"] == {"max_steps": 10}
    upsert = server.upserts[0]
    assert (upsert["tags"], upsert["groupName"], upsert["jobType"]) == (["a", "b"], "g", "train")
    assert upsert["displayName"] == "demo"
    assert [alert["title"] for alert in server.alerts] == ["stopped early"]
    nothing_secret(tmp_path, server)

    shutil.copytree(run.dir, tmp_path / "copy")
    copy = Run(tmp_path / "copy", user)
    copy.log(31, 32)
    assert copy.finish() is None, copy.says()
    assert steps(server.histories[copy.id]) == list(range(1, 33)), "with its whole history"
    assert steps(server.histories[run.id]) == list(range(1, 31))
    assert server.config(copy.id)["forked_from"] == {"run_id": run.id, "step": 30}
    assert "forked_from" not in server.config(run.id)


def nothing_secret(folder: Path, server: FakeServer) -> None:
    """Neither in what W&B has written nor in what it was sent."""
    assert any(key.startswith("Basic ") for key in server.keys)
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "events.jsonl"]
    for secret in (KEY, "user:canary", "canary-in-the-query", "canary-of-the-environment"):
        assert [path for path in files if secret.encode() in path.read_bytes()] == []
        assert [body for body in server.bodies if secret.encode() in body] == []


@pytest.mark.drill(
    "D32",
    injection="kill -9 of the trainer that has just logged 50 rows; SIGTERM, USR1, INT and HUP to the mirror",
    expected="metrics.jsonl and W&B's transaction log have all rows",
)
def test_offline_every_row_outlives_a_trainer_killed_with_minus_9(
    tmp_path: Path, environment: Environment, until: Callable[..., None], measured: Measured
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
    on_disk = [row["step"] for row in MetricsFile(tmp_path / "run" / "metrics.jsonl").rows()]
    sent = steps(history(transaction_log))
    measured("rows missing", 50 - len(set(on_disk) & set(sent)), "of 50")
    assert sent == on_disk == list(range(1, 51))


@pytest.mark.drill(
    "D30",
    injection="in mid-run every request is answered with 503, 401 or 429, or not at all",
    expected="all rows are on disk, the end waits for its limit at most, `llmkit sync` sends the rest",
)
@pytest.mark.parametrize("status", [503, LONG(401), LONG(429), LONG(None)])
def test_an_outage_in_mid_run_loses_nothing_and_says_how_to_upload(
    tmp_path: Path, status: int | None, server: FakeServer, online: Callable[[str], Environment],
    until: Callable[..., None], capsys: pytest.CaptureFixture[str], measured: Measured,
) -> None:  # fmt: skip
    environment = online(server.url)
    run = Run(tmp_path, environment, PATIENT._replace(finish=1.5))
    run.log(1, 5)
    until(lambda: len(server.histories.get(run.id, [])) == 5, run.says)
    server.failing = status
    if status is None:
        server.answers.clear()
    run.log(6, 40)
    begun = time.perf_counter()
    message = run.finish()
    measured("the end took", time.perf_counter() - begun, "s, limit 1.5 s for W&B")
    measured("rows lost", 40 - len(run.steps_on_disk()), "of 40")
    assert message is not None and f"llmkit sync {tmp_path} " in message
    assert run.steps_on_disk() == list(range(1, 41))
    assert steps(server.histories[run.id]) == list(range(1, 6))

    server.failing = None
    server.answers.set()
    assert sync_command([tmp_path], environment) == 0
    assert "sent 35 rows, 0 items" in capsys.readouterr().out
    assert steps(server.histories[run.id]) == list(range(1, 41))
    assert sync_command([tmp_path], environment) == 0
    assert "nothing is missing" in capsys.readouterr().out


@pytest.mark.drill(
    "D30",
    injection="at the start the server refuses connections, takes them and is silent, or has no address",
    expected="the run is mirrored offline and can be sent later",
)
@pytest.mark.parametrize("fault", ["refused_url", LONG("silent_url"), LONG("unknown_url")])
def test_without_a_server_the_run_is_kept_offline(
    tmp_path: Path, fault: str, online: Callable[[str], Environment], request: pytest.FixtureRequest,
    measured: Measured,
) -> None:  # fmt: skip
    run = Run(tmp_path, online(request.getfixturevalue(fault)), PATIENT._replace(probe=0.5))
    run.log(1, 20)
    message = run.finish()
    assert message is not None and "llmkit sync" in message, run.says()
    measured("rows lost", 20 - len(run.steps_on_disk()), "of 20")
    assert run.steps_on_disk() == list(range(1, 21))


@pytest.mark.drill(
    "D30",
    injection="at the start the server answers with 503, 401 or 429",
    expected="the run is mirrored offline under the same id",
)
@pytest.mark.parametrize("status", [503, LONG(401), LONG(429)])
def test_a_server_that_refuses_the_run_leaves_it_offline_under_the_same_id(
    tmp_path: Path, status: int, server: FakeServer, online: Callable[[str], Environment],
    until: Callable[..., None],
) -> None:  # fmt: skip
    server.failing = status
    run = Run(tmp_path, online(server.url), PATIENT._replace(init=2.0))
    until(run.is_mirroring, run.says)
    run.log(1, 20)
    message = run.finish()
    assert message is not None and "llmkit sync" in message
    run_id = (tmp_path / "wandb" / "run_id").read_text().strip()
    (transaction_log,) = tmp_path.glob(f"wandb/offline-run-*-{run_id}/*.wandb")
    assert steps(history(transaction_log)) == list(range(1, 21))


@pytest.mark.drill(
    "D31",
    injection="SIGSTOP of the mirror and of wandb-core",
    expected="they are killed at the end, the run's files have all",
)
def test_a_frozen_mirror_is_killed_with_all_its_processes(
    tmp_path: Path, environment: Environment, until: Callable[..., None], measured: Measured
) -> None:
    run = Run(tmp_path, environment, PATIENT._replace(kill=0.5))
    until(run.is_mirroring, run.says)
    processes = [run.pid, *descendants(run.pid)]
    assert len(processes) > 1, "wandb-core is not among them"
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    begun = time.perf_counter()
    message = run.finish()
    measured("the end took", time.perf_counter() - begun, "s, limit 0.5 s")
    assert message is not None and "llmkit sync" in message
    until(lambda: not any(is_running(process) for process in processes))


@pytest.mark.drill(
    "D31",
    injection="SIGSTOP of wandb-core",
    expected="the mirror gives it up and kills it",
)
def test_a_mirror_whose_wandb_is_frozen_ends_by_itself(
    tmp_path: Path, environment: Environment, until: Callable[..., None]
) -> None:
    run = Run(tmp_path, environment, PATIENT._replace(abandon=0.5))
    until(run.is_mirroring, run.says)
    processes = [run.pid, *descendants(run.pid)]
    for process in processes[1:]:
        os.kill(process, signal.SIGSTOP)
    message = run.finish()
    assert message is not None and "llmkit sync" in message
    assert "W&B did not finish in time" in run.says()
    until(lambda: not any(is_running(process) for process in processes))


@pytest.mark.drill(
    "D31",
    injection="kill -9 of the mirror and of wandb-core in mid-run",
    expected="the next start sends each row once",
)
def test_rows_that_a_killed_mirror_missed_are_sent_by_the_next_one(
    tmp_path: Path, environment: Environment, until: Callable[..., None], server: FakeServer,
    online: Callable[[str], Environment], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = Run(tmp_path, environment)
    run.log(1, 3)
    until(lambda: run.steps_on_disk() == [1, 2, 3], run.says)
    for process in [run.pid, *descendants(run.pid)]:
        os.kill(process, signal.SIGKILL)
    run.log(4, 10)
    message = run.finish()
    assert message is not None and "the run's files have it all" in message

    assert run.metrics.cut_back(8) == 2
    resumed = Run(tmp_path, environment)
    resumed.log(9, 12)
    assert resumed.finish() is None, resumed.says()
    assert resumed.steps_on_disk() == list(range(1, 13)), "each row once"

    assert run.metrics.cut_back(10) == 2
    again = Run(tmp_path, environment)
    again.log(11, 13)
    assert again.finish() is None, again.says()
    everything = [*range(1, 13), 11, 12, 13]
    assert again.steps_on_disk() == everything, "redone rows once more, no others"

    user = online(server.url)
    wandb_sync = [sys.executable, "-m", "wandb", "sync", str(tmp_path / "wandb")]
    subprocess.run(wandb_sync, env=user, cwd=tmp_path, check=True, stderr=subprocess.DEVNULL)
    assert steps(server.histories[run.id]) == everything, "three starts, one after the other"
    assert sync_command([tmp_path], user) == 0
    assert "sent 0 rows" in capsys.readouterr().out
    assert steps(server.histories[run.id]) == everything


@pytest.mark.drill(
    "D31",
    injection="kill -9 of wandb-core in mid-run",
    expected="it is started anew in the same run; no row is missing",
)
def test_when_wandb_breaks_down_it_is_started_anew(
    tmp_path: Path, server: FakeServer, online: Callable[[str], Environment], until: Callable[..., None]
) -> None:
    run = Run(tmp_path, online(server.url), PATIENT._replace(again=0.05))
    run.events.record("loss_spike", step=1)
    until(lambda: len(server.alerts) == 1, run.says)
    for process in descendants(run.pid):
        os.kill(process, signal.SIGKILL)
    run.log(1, 10)
    until(lambda: run.says().count("mirroring online") == 2, run.says)
    assert run.says().count("a row was not taken") == 3
    run.log(11, 12)
    assert run.finish() is None, run.says()
    assert steps(server.histories[run.id]) == list(range(1, 13))
    assert [alert["title"] for alert in server.alerts] == ["spike of loss or gradient"]


def test_when_the_server_comes_back_the_run_goes_online(
    tmp_path: Path, server: FakeServer, online: Callable[[str], Environment], until: Callable[..., None]
) -> None:
    server.failing = 503
    run = Run(tmp_path, online(server.url), PATIENT._replace(init=0.5, again=0.2))
    until(run.is_mirroring, run.says)
    run.log(1, 10)
    until(lambda: run.steps_on_disk() == list(range(1, 11)), run.says)
    server.failing = None
    until(lambda: steps(server.histories.get(run.id, [])) == list(range(1, 11)), run.says)
    run.log(11, 12)
    assert run.finish() is None, run.says()
    assert steps(server.histories[run.id]) == list(range(1, 13))
    assert all(
        file.with_name(f"{file.name}.synced").exists() for file in run.dir.glob("wandb/offline-*/*.wandb")
    )


def test_the_mirror_of_a_start_that_has_lost_the_run_ends_by_itself(
    tmp_path: Path, environment: Environment, until: Callable[..., None]
) -> None:
    """Its trainer may be stopped, so that it ends nothing."""
    lost = Run(tmp_path, environment)
    until(lost.is_mirroring, lost.says)
    assert lost.mirror._process is not None
    run = Run(tmp_path, environment)
    assert lost.mirror._process.wait(HANG) == 3
    assert "a later start of this run has taken over" in run.says()
    run.log(1, 3)
    until(lambda: run.steps_on_disk() == [1, 2, 3], run.says)
    assert run.finish() is None, run.says()


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
