"""The identity of a run in W&B: kept over starts and moves, new for a copy; no secret in what is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmkit.config.monitor_section import Wandb
from llmkit.monitor.wandb_mirror import Mirror
from llmkit.monitor.wandb_session import OF_A_RUN, Timeouts, read_session, wandb_environment


@pytest.fixture(autouse=True)
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.monitor.wandb_mirror.start_process", lambda *_: None)


def start(folder: Path, environment: dict[str, str], **config: Any) -> str:
    return Mirror.start(folder, Wandb(), config, environment=environment).message


def run_id(folder: Path) -> str:
    return (folder / "wandb" / "run_id").read_text().strip()


def test_the_id_of_the_environment_is_that_of_a_new_run_alone(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    assert "passed over" not in start(tmp_path, {**environment, "WANDB_RUN_ID": "mine"})
    assert run_id(tmp_path) == "mine"
    message = start(tmp_path, {**environment, "WANDB_RUN_ID": "other"})
    assert message.endswith("\nW&B: WANDB_RUN_ID=other is passed over: the run has the id mine")
    assert run_id(tmp_path) == "mine"


def test_starts_are_counted_and_what_is_new_begins_at_the_end_of_the_record(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    start(tmp_path, environment)
    assert read_session(tmp_path)["restarts"] == 0
    assert read_session(tmp_path)["first_news"] == {"m": 0, "e": 0}
    (tmp_path / "metrics.jsonl").write_text("12345\n")
    start(tmp_path, environment)
    assert read_session(tmp_path)["restarts"] == 1
    assert read_session(tmp_path)["first_news"] == {"m": 6, "e": 0}


def test_no_limit_outlives_the_next_and_the_end_of_a_run_waits_less_than_half_a_minute() -> None:
    limits = Timeouts()
    assert limits.finish < limits.abandon < limits.kill < 30


def test_a_copied_run_folder_is_a_wandb_run_of_its_own_and_a_moved_one_is_not(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    first, moved, copy = (tmp_path / name for name in ("first", "moved", "copy"))
    first.mkdir()
    start(first, environment)
    known = run_id(first)
    (first / "metrics.jsonl").write_text('{"step": 7}\n{"torn')
    first.rename(moved)
    start(first, environment)  # another run in the place where it was
    assert "copy" not in start(moved, environment)
    assert run_id(moved) == known and read_session(moved)["forked_from"] is None
    for name in OF_A_RUN:
        (moved / "wandb" / name).touch()

    shutil.copytree(moved, copy)
    message = start(copy, environment)
    assert not (copy / "wandb" / "journal").exists() and not (copy / "wandb" / "state.json").exists()
    assert run_id(copy) != known == run_id(moved)
    assert message.endswith(f"W&B: this folder is a copy of {moved}: it is a run of its own, {run_id(copy)}")
    assert f"upload later with: llmkit sync {copy}\n" in message
    assert read_session(copy)["forked_from"] == {"run_id": known, "step": 7}
    assert "copy of" not in start(copy, environment)
    assert read_session(copy)["forked_from"] == {"run_id": known, "step": 7}, "for good"
    assert "copy of" not in start(moved, environment)


def test_a_branch_is_forked_from_the_run_that_it_began_with(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    first, branch, other = (tmp_path / name for name in ("first", "branch", "other"))
    start(first, environment)
    known = run_id(first)
    for folder, origin in ((branch, first), (other, tmp_path / "without")):
        folder.mkdir()
        began = {"run": str(origin), "path": f"{origin}/checkpoints/step-00000005", "step": 5}
        (folder / "manifest.json").write_text(json.dumps({"branched_from": began}))
        start(folder, environment)
    assert run_id(branch) != known
    assert read_session(branch)["forked_from"] == {"run_id": known, "step": 5}
    assert read_session(other)["forked_from"] is None
    shutil.rmtree(first)
    start(branch, environment)
    assert read_session(branch)["forked_from"] == {"run_id": known, "step": 5}, "for good"


def test_a_copy_leaves_what_was_recorded_offline_to_the_original(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    start(tmp_path / "first", environment)
    part = Path("wandb", "offline-run-20260101_100000-x", "run-x.wandb")
    (tmp_path / "first" / part).parent.mkdir()
    (tmp_path / "first" / part).touch()
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    start(tmp_path / "copy", environment)
    synced = part.with_name("run-x.wandb.synced")
    assert (tmp_path / "copy" / synced).exists() and not (tmp_path / "first" / synced).exists()


def test_a_run_whose_id_is_lost_begins_anew(tmp_path: Path, environment: dict[str, str]) -> None:
    start(tmp_path, environment)
    known = run_id(tmp_path)
    (tmp_path / "wandb" / "journal").touch()
    (tmp_path / "wandb" / "run_id").write_bytes(b"\xff")
    start(tmp_path, environment)
    assert run_id(tmp_path) != known and not (tmp_path / "wandb" / "journal").exists()


def test_no_secret_is_in_what_is_written(tmp_path: Path, environment: dict[str, str]) -> None:
    key = "c0ffee0123456789" * 2 + "01234567"
    (tmp_path / "manifest.json").write_text(
        json.dumps({"note": f"key {key}", "host": "n1", "command": ["canary"]})
    )
    url = "https://user:canary@host/x?token=canary"
    names = {"WANDB_NOTES": f"see {url}", "WANDB_TAGS": key, "WANDB_NAME": "canary-of-the-hub"}
    server = {"WANDB_BASE_URL": "http://u:canary@localhost:1"}
    user = {**environment, **names, **server, "HF_TOKEN": "canary-of-the-hub"}
    message = start(tmp_path, user, data={"path": url, "x": "canary-of-the-hub"})
    text = (tmp_path / "wandb" / "session.json").read_text()
    assert "canary" not in text and key not in text and "canary" not in message
    sent = wandb_environment(read_session(tmp_path), user)
    assert sent["WANDB_BASE_URL"] == "http://localhost:1" and sent["WANDB_NAME"] == "... (not shown)"
    assert read_session(tmp_path)["settings"]["data"]["path"].startswith("https://host/x")
    assert read_session(tmp_path)["manifest"]["host"] == "n1"
