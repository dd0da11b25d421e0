"""How a start becomes the owner of a run folder, and when it has to leave the run to another one."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmkit.errors import RunFault, UserError
from llmkit.file_lock import FileLock
from llmkit.ownership import claim, take
from llmkit.ownership.claim import Ownership, folder_of, newest_generation
from llmkit.ownership.owner import Owner
from llmkit.stopping import Listener, Stopped
from tests.limits import HANG

ME = Owner.of_this_process("llmkit train here.yaml", {})
AWAY = replace(ME, host="n7", machine="another boot", command="llmkit train there.yaml")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "RENEW_SECONDS", 0.02)
    monkeypatch.setattr(take, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(take, "LEASE_SECONDS", 0.5)


def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)


def start(
    path: Path, owner: Owner = ME, take_over: bool = False, ask: Callable[[str], None] = lambda who: None,
    notes: list[str] | None = None,
) -> Ownership:  # fmt: skip
    note = (notes if notes is not None else []).append
    return take.take(path, owner, lock_name="run.lock", take_over=take_over, ask=ask, note=note)


def test_every_start_gets_the_next_generation_and_removes_those_before(tmp_path: Path) -> None:
    for generation in (1, 2, 3):
        ownership = start(tmp_path)
        assert ownership.generation == generation
        assert [path.name for path in (tmp_path / "generations").iterdir()] == [f"{generation:08d}"]
        ownership.release()


@pytest.mark.parametrize("locks", [True, False])
@pytest.mark.parametrize("owner", [ME, AWAY])
def test_a_second_start_is_told_who_has_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Owner, locks: bool
) -> None:
    """On one machine by the table of processes, of another one by its counter."""
    if not locks:
        no_locks(monkeypatch)
    first = start(tmp_path, owner)
    with pytest.raises(UserError) as refused:
        start(tmp_path)
    host = ME.host if locks else owner.host  # the lock is that of this process
    assert f"is in use by process {ME.pid} on {host}, started" in str(refused.value)
    assert f"({owner.command})" in str(refused.value) and "--take-over" in str(refused.value)
    first.require_current()
    first.release()
    start(tmp_path).release()


def test_a_lock_that_holds_for_one_machine_only_proves_nothing(tmp_path: Path) -> None:
    first = start(tmp_path, AWAY)
    assert first._lock is not None
    first._lock.release()  # as seen from another machine of an NFS mount with local_lock=all
    with pytest.raises(UserError, match=r"in use by process .* on n7"):
        start(tmp_path)
    first.release()


def test_an_owner_elsewhere_whose_counter_stands_still_is_dead(tmp_path: Path) -> None:
    first, notes = start(tmp_path, AWAY), list[str]()
    first._released.set()  # as if it were killed, or stopped
    first._thread.join()
    assert first._lock is not None
    first._lock.release()
    second = start(tmp_path, notes=notes)
    assert second.generation == 2
    assert len(notes) == 1 and "on n7, started" in notes[0] and "waiting up to 0.5 s" in notes[0]
    with pytest.raises(RunFault, match="taken over by generation 2"):
        first.require_current()
    second.release()


def test_a_dead_owner_of_this_machine_is_no_obstacle(tmp_path: Path) -> None:
    first, notes = start(tmp_path), list[str]()
    first._released.set()
    first._thread.join()
    assert first._lock is not None
    first._lock.release()
    owner = json.loads((folder_of(tmp_path, 1) / "owner.json").read_text())
    (folder_of(tmp_path, 1) / "owner.json").write_text(json.dumps({**owner, "born": "1"}))
    assert start(tmp_path, notes=notes).generation == 2
    assert notes == []


def test_a_later_start_of_the_same_job_does_not_wait(tmp_path: Path) -> None:
    """SLURM has given up the node of the first, whose processes may still run, and hold the lock."""
    first = start(tmp_path, replace(AWAY, job="5"))
    second = start(tmp_path, replace(ME, job="5", restart=1))
    assert second.generation == 2 and second.before == ""
    with pytest.raises(RunFault, match="taken over by generation 2"):
        first.require_current()
    with pytest.raises(UserError, match=r"in use by process .* in SLURM job 5"):
        start(tmp_path, replace(ME, job="6"))  # though it is the first that holds the lock
    second.release()
    third = start(tmp_path, replace(ME, job="6"))
    assert third.generation == 3
    for each in (first, third):
        each.release()


def test_a_start_that_asks_for_the_run_gets_it_when_its_owner_has_stopped(tmp_path: Path) -> None:
    first, asked, notes = start(tmp_path, AWAY), list[str](), list[str]()

    def ask(who: str) -> None:
        asked.append(who)
        threading.Timer(0.1, first.release).start()

    second = start(tmp_path, ME, True, ask, notes)
    assert second.generation == 2 and not second.forced
    assert "there.yaml" in second.before and "here.yaml" in asked[0] and len(asked) == 1
    assert notes[0].startswith("asked process") and "120 s" in notes[0]
    second.release()


def test_an_owner_that_does_not_stop_in_time_loses_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(take, "TAKE_OVER_SECONDS", 0.3)
    first = start(tmp_path, AWAY)
    second = start(tmp_path, ME, True)
    assert second.generation == 2 and second.forced
    with pytest.raises(RunFault, match="taken over by generation 2"):
        first.require_current()
    first.release()
    second.require_current()
    second.release()


def test_a_run_of_a_version_without_generations_is_not_taken_by_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(take, "TAKE_OVER_SECONDS", 0.1)
    owner = {"host": "n1", "pid": 9, "started": "then", "command": "llmkit train old.yaml"}
    with (tmp_path / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(json.dumps(owner))
        lock.flush()
        for take_over in (False, True):
            with pytest.raises(UserError, match=r"process 9 on n1, started then \(llmkit train old.yaml\)"):
                start(tmp_path, ME, take_over)
    assert newest_generation(tmp_path) == 0


def test_of_starts_at_the_same_moment_one_gets_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_locks(monkeypatch)
    got, refused, ready = list[Ownership](), list[UserError](), threading.Barrier(8)

    def contend(number: int) -> None:
        ready.wait()
        try:
            got.append(start(tmp_path, replace(AWAY, host=f"n{number}")))
        except UserError as error:
            refused.append(error)

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and len(refused) == 7
    assert all(f"on {got[0]._owner.host}," in str(error) for error in refused)
    got[0].require_current()
    got[0].release()


def test_a_generation_that_somebody_else_has_made_is_not_made_again(tmp_path: Path) -> None:
    first = start(tmp_path, AWAY)
    assert take._make(tmp_path, 1, ME) is None
    assert [path.name for path in (tmp_path / "generations").iterdir()] == ["00000001"]
    first.require_current()
    first.release()


def test_a_copy_of_a_folder_that_is_in_use_is_another_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    first = start(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    second = start(tmp_path / "copy")  # the counter in the copy stands still
    assert second.generation == 2
    first.require_current()
    first.release()
    second.release()


def test_a_generation_whose_owner_cannot_be_read_is_watched(tmp_path: Path) -> None:
    first = start(tmp_path, AWAY)
    (folder_of(tmp_path, 1) / "owner.json").write_text("{")
    with pytest.raises(UserError, match="in use by another process"):
        first._lock.release()  # type: ignore[union-attr]
        start(tmp_path)
    first.release()


def test_a_start_that_waits_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(take, "LEASE_SECONDS", HANG)
    first = start(tmp_path, AWAY)
    first._released.set()
    first._thread.join()
    first._lock.release()  # type: ignore[union-attr]
    with Listener({}) as listener:
        listener.listen()
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(Stopped, match="SIGTERM"):
            start(tmp_path)
    assert newest_generation(tmp_path) == 1
    FileLock(tmp_path / "run.lock", "another", what="", other="", elsewhere="").release()
