"""A second run is kept out of a run folder, and told who has it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmkit.errors import UserError
from llmkit.file_lock import FileLock, NoLocksError
from llmkit.run_folder import RunFolder

REPOSITORY = Path(__file__).parents[1]


HOLDER = """
import sys
from pathlib import Path
from llmkit.run_folder import RunFolder
folder = RunFolder.open(Path(sys.argv[1]), "llmkit train demo.yaml")
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "demo"


@pytest.fixture
def other_run(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the folder open."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
        process.kill()


def test_a_second_run_is_told_who_has_the_folder(path: Path, other_run: subprocess.Popen[str]) -> None:
    with pytest.raises(UserError) as refused:
        RunFolder.open(path, "train")
    message = str(refused.value)
    assert str(path) in message
    assert f"process {other_run.pid} on {socket.gethostname()}, started 20" in message
    assert "(llmkit train demo.yaml)" in message
    assert "\n" not in message


def test_a_second_run_changes_nothing(path: Path, other_run: subprocess.Popen[str]) -> None:
    (path / "STOP").touch()
    before = (path / "run.lock").read_bytes()
    with pytest.raises(UserError):
        RunFolder.open(path, "train")
    assert (path / "STOP").exists()
    assert (path / "run.lock").read_bytes() == before


def test_the_lock_of_a_killed_run_is_no_obstacle(path: Path, other_run: subprocess.Popen[str]) -> None:
    other_run.send_signal(signal.SIGKILL)
    other_run.wait()
    with RunFolder.open(path, "train again"):
        owner = json.loads((path / "run.lock").read_text())
    assert owner["pid"] == os.getpid()
    assert owner["command"] == "train again"


def test_the_lock_is_let_go_on_close_and_on_an_error(path: Path) -> None:
    folder = RunFolder.open(path, "first")
    with pytest.raises(UserError, match="in use"):
        RunFolder.open(path, "second")
    folder.close()
    folder.close()
    with pytest.raises(ZeroDivisionError), RunFolder.open(path, "third"):
        raise ZeroDivisionError
    RunFolder.open(path, "fourth").close()


def test_a_forked_worker_that_outlives_the_run_does_not_keep_the_lock(path: Path) -> None:
    folder = RunFolder.open(path, "train")
    started, release = os.pipe(), os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(release[1])
        os.write(started[1], b"x")
        os.read(release[0], 1)  # until the parent closes its end
        os._exit(0)
    os.read(started[0], 1)
    folder.close()
    RunFolder.open(path, "train").close()
    os.close(release[1])
    os.waitpid(worker, 0)


def test_an_owner_that_left_no_note_is_just_another_process(path: Path) -> None:
    path.mkdir(parents=True)
    with (path / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="in use by another process"):
            RunFolder.open(path, "train")


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(NoLocksError, match=r"no file locks.*; go elsewhere"):
        FileLock(tmp_path / "lock", "sync", what="it", other="", elsewhere="go elsewhere")


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path, path: Path) -> None:
    path.mkdir(parents=True)
    (tmp_path / "precious").write_text("precious")
    (path / "run.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="symbolic links"):
        RunFolder.open(path, "train")
    assert (tmp_path / "precious").read_text() == "precious"
