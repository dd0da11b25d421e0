"""A file of JSON lines that grows, is cut back, is replaced, or goes away."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llmkit.monitor.metrics import MetricsFile
from llmkit.watch import follow
from llmkit.watch.follow import FollowedFile


def lines(*steps: int) -> bytes:
    return b"".join(json.dumps({"step": step}).encode() + b"\n" for step in steps)


def steps(file: FollowedFile) -> tuple[list[int], bool]:
    news = file.read()
    return [row["step"] for row in news.rows], news.anew


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_each_row_comes_once_and_a_torn_one_when_it_is_whole(path: Path) -> None:
    file = FollowedFile(path)
    assert steps(file) == ([], False)
    path.write_bytes(lines(1, 2) + b'{"st')
    assert steps(file) == ([1, 2], False)
    assert steps(file) == ([], False)
    with path.open("ab") as more:
        more.write(b'ep": 3}\nno row\n' + lines(4))
    assert steps(file) == ([3, 4], False)


def test_a_record_that_is_cut_back_by_a_resume_is_read_anew(path: Path) -> None:
    metrics, file = MetricsFile(path), FollowedFile(path)
    for step in (1, 2, 3):
        metrics.append({"step": step})
    assert steps(file)[0] == [1, 2, 3]
    metrics.cut_back(1)
    for step in (2, 3, 4, 5):
        metrics.append({"step": step, "again": True})  # longer than before when it is read next
    metrics.close()
    assert steps(file) == ([1, 2, 3, 4, 5], True)
    assert steps(file) == ([], False)


def test_a_file_that_becomes_shorter_in_place_is_read_anew(path: Path) -> None:
    file = FollowedFile(path)
    path.write_bytes(lines(1, 2, 3))
    assert steps(file)[0] == [1, 2, 3]
    os.truncate(path, len(lines(1)))
    assert steps(file) == ([1], True)
    os.truncate(path, 0)
    assert steps(file) == ([], True)
    assert steps(file) == ([], False)


def test_a_file_that_goes_away_and_comes_back_is_another_one(path: Path) -> None:
    file = FollowedFile(path)
    path.write_bytes(lines(1, 2))
    assert steps(file)[0] == [1, 2]
    path.unlink()
    assert steps(file) == ([], True)
    path.write_bytes(lines(1))
    assert steps(file) == ([1], False)


def test_a_disk_that_fails_at_the_moment_brings_no_news(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = FollowedFile(path)
    path.write_bytes(lines(1))
    assert steps(file)[0] == [1]
    with monkeypatch.context() as patch:
        patch.setattr(follow.os, "pread", lambda *_: (_ for _ in ()).throw(OSError(116, "stale handle")))
        assert steps(file) == ([], False)
    with path.open("ab") as more:
        more.write(lines(2))
    assert steps(file) == ([2], False)


def test_lines_that_are_longer_than_a_block_are_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "BLOCK", 5)
    path.write_bytes(lines(1, 22, 333))
    assert steps(FollowedFile(path)) == ([1, 22, 333], False)
