"""`llmkit sync`: what is missing, once; refused where it cannot be."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fake_wandb import FakeServer

from llmkit.cli import main
from llmkit.errors import RunFault, UserError
from llmkit.monitor import wandb_catch_up, wandb_sync
from llmkit.monitor.wandb_catch_up import exit_code_of
from llmkit.monitor.wandb_sync import sync_command
from llmkit.ownership.owner import Owner
from llmkit.ownership.take import take
from llmkit.run_folder import LOCK

Environment = dict[str, str]
CONFIG = """
data: {sources: [{type: stdlib}], sequence_length: 64}
train: {max_steps: 9}
monitor: {wandb: {mode: disabled, project: p}}
"""


def record(folder: Path, steps: int, *events: str) -> None:
    """The files of a run that was trained without W&B."""
    folder.mkdir(exist_ok=True)
    rows = [json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(rows))
    (folder / "events.jsonl").write_text("".join(json.dumps({"event": event}) + "\n" for event in events))
    (folder / "config.yaml").write_text(CONFIG)


def test_a_run_without_wandb_is_sent_as_a_whole(
    tmp_path: Path, server: FakeServer, online: Callable[[str], Environment],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    record(tmp_path / "run", 5, "start", "done")
    with pytest.raises(UserError, match="holds no run"):  # which stops none of the others
        sync_command([tmp_path / "none", tmp_path / "run", tmp_path / "neither"], online(server.url))
    run_id = (tmp_path / "run" / "wandb" / "run_id").read_text().strip()
    page = f"run {run_id} in project p on {server.url}"
    said = capsys.readouterr()
    assert said.out == f"{tmp_path}/run: sent 5 rows, 0 items of media.jsonl, the events to {page}\n"
    assert said.err.startswith(f"llmkit: sync: {tmp_path}/none holds no run")
    assert [row["train/step"] for row in server.histories[run_id]] == [1, 2, 3, 4, 5, 0]
    assert server.exit_codes == {run_id: 0}
    assert server.config(run_id)["data"]["sequence_length"] == 64
    assert server.alerts == []


def test_a_server_that_is_not_there_is_told(
    tmp_path: Path, refused_url: str, online: Callable[[str], Environment]
) -> None:
    record(tmp_path, 5)
    with pytest.raises(RunFault, match=f"ConnectionError: {refused_url} does not answer; call it again"):
        sync_command([tmp_path], online(refused_url))


def test_what_is_no_run_and_a_missing_key_are_refused(
    tmp_path: Path, environment: Environment, online: Callable[[str], Environment]
) -> None:
    with pytest.raises(UserError, match="no API key of Weights & Biases is found"):
        sync_command([tmp_path], environment)
    with pytest.raises(UserError, match=r"holds no run: there is no metrics\.jsonl in it"):
        sync_command([tmp_path], online("http://localhost:1"))


def test_a_run_that_is_training_is_refused(tmp_path: Path, online: Callable[[str], Environment]) -> None:
    record(tmp_path, 1)
    owner = Owner.of_this_process("llmkit train", {})
    claim = take(tmp_path, owner, lock_name=LOCK, take_over=False, ask=print, note=print)
    with pytest.raises(UserError, match=r"under way \(process .*llmkit train"):
        sync_command([tmp_path], online("http://localhost:1"))
    claim.release()


def test_a_run_on_another_host_that_still_shows_signs_of_life_is_refused(
    tmp_path: Path, online: Callable[[str], Environment]
) -> None:
    """Where locks do not reach other hosts, its counter tells."""
    record(tmp_path, 1)
    away = replace(Owner.of_this_process("llmkit train", {}), host="n7", machine="another boot")
    claim = take(tmp_path, away, lock_name=LOCK, take_over=False, ask=print, note=print)
    assert claim._lock is not None
    claim._lock.release()
    with pytest.raises(UserError, match=r"under way \(process \d+ on n7"):
        sync_command([tmp_path], online("http://localhost:1"))
    claim.release()


def test_a_copy_that_was_trained_on_without_wandb_is_sent_as_a_run_of_its_own(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, copy = tmp_path / "first", tmp_path / "copy"
    record(first, 5, "start", "done")
    session = wandb_sync._session(first, environment)
    shutil.copytree(first, copy)
    assert wandb_sync._session(copy, environment)["run_id"] == session["run_id"], "it has nothing of its own"
    record(copy, 7, "start", "done")
    forked = wandb_sync._session(copy, environment)
    assert forked["run_id"] != session["run_id"]
    assert forked["forked_from"] == {"run_id": session["run_id"], "step": 5}
    assert wandb_sync._session(copy, environment)["run_id"] == forked["run_id"]
    for damage in ("[]", '{"settings": {}}', "{"):
        (first / "wandb" / "session.json").write_text(damage)
        assert wandb_sync._session(first, environment)["run_id"] == session["run_id"]


def test_the_mirror_of_a_trainer_that_was_killed_is_waited_for(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tmp_path, 5, "start", "done")
    wandb_sync._session(tmp_path, environment)
    monkeypatch.setattr(wandb_catch_up, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(wandb_catch_up, "open_run", lambda *_, **__: 1 / 0)
    with open(tmp_path / "wandb" / "lock", "ab") as mirror:
        fcntl.flock(mirror, fcntl.LOCK_EX)
        said = wandb_catch_up.catch_up(tmp_path)["said"]
    assert said == ["TimeoutError: the mirror of its last start still holds the run"]
    assert wandb_catch_up.catch_up(tmp_path)["said"] == ["ZeroDivisionError: division by zero"]


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sync", str(tmp_path)]) == 2
    assert "no API key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("events", "code"),
    [
        (["start", "done"], 0),
        (["start", "stop"], 75),
        (["start", "fault"], 1),
        (["start", "save"], 1),
        (["start", "done", "refused"], 0),
        (["start", "stop", "resume"], 1),
        ([], 1),
    ],
)
def test_the_end_of_a_run_is_that_of_its_last_event(tmp_path: Path, events: list[str], code: int) -> None:
    record(tmp_path, 1, *events)
    assert exit_code_of(tmp_path) == code
