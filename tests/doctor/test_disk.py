"""The folder of runs: full, read-only, slow, without locks, with another clock, and seen by other nodes."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmkit.doctor import disk
from llmkit.doctor.disk import (
    clear,
    clock_finding,
    disk_findings,
    nodes_seen,
    seen_finding,
    show_up,
    space_finding,
    speed_finding,
)
from llmkit.doctor.findings import Finding
from llmkit.doctor.scope import Scope


def checked(folder: Path, **more: Any) -> dict[str, Finding]:
    return {each.name: each for each in disk_findings(Scope(str(folder), **more))}


@contextmanager
def open_file(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    yield handle
    os.close(handle)


def test_it_writes_reads_locks_and_leaves_nothing(tmp_path: Path) -> None:
    found = checked(tmp_path / "runs" / "new")
    assert found["clock"].state == found["file locks"].state == "ok"
    assert set(found["disk speed"].numbers) == {"write", "read"}
    assert os.listdir(tmp_path / "runs" / "new") == []


def test_a_folder_that_cannot_be_used_fails_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (found,) = disk_findings(Scope(str(tmp_path / "file" / "runs")))
    assert found.state == "fail" and "file" in found.value and "run.dir" in found.advice


@pytest.mark.parametrize(
    ("free", "inodes", "state"),
    [
        (2**40, 10**6, "ok"),
        (2**30, 10**6, "warn"),
        (2**20, 10**6, "fail"),
        (2**40, 7, "warn"),
        (2**40, 0, "fail"),
    ],
)
def test_room_for_bytes_and_for_files(
    free: int, inodes: int, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free, total=2**41))
    monkeypatch.setattr(disk.os, "statvfs", lambda folder: SimpleNamespace(f_files=10**7, f_favail=inodes))
    assert space_finding("free", tmp_path).state == state


@pytest.mark.parametrize(
    ("number", "state"), [(errno.EWOULDBLOCK, "ok"), (errno.ENOLCK, "warn"), (errno.EOPNOTSUPP, "warn")]
)
def test_a_file_system_without_locks_is_remarked_on(
    number: int, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert checked(tmp_path)["file locks"].state == state
    monkeypatch.setattr(fcntl, "flock", lambda *arguments: None)
    assert checked(tmp_path)["file locks"].value == "they keep nobody out"


def test_a_clock_that_differs_from_the_file_systems_is_remarked_on() -> None:
    assert clock_finding(1000.0, 999.99, 1000.1).state == "ok"
    assert clock_finding(1000.0, 1000.05, 1000.1).state == "ok"
    assert clock_finding(4600.0, 1000.0, 4600.1).value == "3,600.0 s ahead of the file system's"
    assert clock_finding(1000.0, 4600.1, 1000.1).value == "3,600.0 s behind the file system's"


def test_a_slow_disk_is_remarked_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "SLOW", 1e15)
    with open_file(tmp_path / "file") as handle:
        assert speed_finding(handle, 2**22, 0.5).state == "warn"


def test_nodes_find_each_others_files_of_this_meeting_alone(tmp_path: Path) -> None:
    show_up(tmp_path, "old", "n1")
    show_up(tmp_path, "now", "n1")
    show_up(tmp_path, "now", "n2")
    show_up(tmp_path, "then", "n3")
    assert nodes_seen(tmp_path, "now") == ["n1", "n2"] and nodes_seen(tmp_path, "old") == []
    assert seen_finding(Scope(str(tmp_path), meeting="now")).numbers == {"n1": 1.0, "n2": 1.0}
    clear(tmp_path, "now", ["n1", "n2", "n3"])
    assert nodes_seen(tmp_path, "now") == [] and nodes_seen(tmp_path, "then") == ["n3"]
    assert nodes_seen(tmp_path / "absent", "now") == []
