"""A build of an extension that was killed does not let the next one wait for ever."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmkit import build_locks
from llmkit.build_locks import OLD, clear_build_locks, extensions_folder
from llmkit.files import file_system

BUILDS = "import os, sys; os.open(sys.argv[1], os.O_CREAT | os.O_EXCL); print(flush=True); sys.stdin.read()"
"""What PyTorch's FileBaton does at the start of a build."""


def test_the_folder_is_pytorchs() -> None:
    assert extensions_folder({"XDG_CACHE_HOME": "/caches"}) == Path("/caches/torch_extensions")
    assert extensions_folder({}) == Path.home() / ".cache" / "torch_extensions"


def cleared(folder: Path) -> list[str]:
    notes = list[str]()
    clear_build_locks({"TORCH_EXTENSIONS_DIR": str(folder)}, notes.append)
    return notes


@pytest.mark.drill(
    "D43",
    injection="a process that builds an extension is killed",
    expected="the next start names its lock, and removes it where it is certainly left over",
)
@pytest.mark.parametrize("local", [True, False])
def test_the_lock_of_a_killed_build_is_removed_and_that_of_a_running_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: bool
) -> None:
    monkeypatch.setattr(build_locks, "LOCAL", {file_system(tmp_path)} if local else set())
    lock = tmp_path / "py311_cpu" / "mine" / "lock"
    lock.parent.mkdir(parents=True)
    assert cleared(tmp_path) == []
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", BUILDS, str(lock)], stdin=pipe, stdout=pipe) as build:
        assert build.stdout is not None
        build.stdout.readline()
        assert cleared(tmp_path) == [] and lock.exists()
        build.kill()
    (note,) = cleared(tmp_path)
    if local:
        assert note == f"note: {lock} was left by a build that was killed: it is removed"
    else:  # it may be that of another machine
        assert f"{lock} is the lock of a build on another machine" in note and lock.exists()
        made = lock.stat().st_mtime - OLD - 60.0
        os.utime(lock, (made, made))
        assert "it is removed" in cleared(tmp_path)[0]
    assert not lock.exists()


def test_a_folder_that_this_user_may_not_look_at_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "glob", closed)
    assert cleared(tmp_path) == []
