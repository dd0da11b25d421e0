from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from llmkit.copies.held import forget, held
from tests.copies.conftest import write_files


def test_files_stay_readable_where_the_checkpoint_is_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "step-00000001"
    write_files(folder, {"a": b"abc", "b": b"def"})
    with held(folder, ["a", "b"]) as source:
        shutil.rmtree(folder)
        assert (source / "a").read_bytes() == b"abc" and (source / "b").read_bytes() == b"def"
    assert list(tmp_path.iterdir()) == []


def test_without_hard_links_the_checkpoint_itself_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*arguments: object, **options: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    folder = tmp_path / "step-00000001"
    write_files(folder, {"a": b"abc"})
    monkeypatch.setattr(os, "link", no_links)
    with held(folder, ["a"]) as source:
        assert source == folder
    assert list(tmp_path.iterdir()) == [folder]


def test_a_deleted_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), held(tmp_path / "step-00000001", ["a"]):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_copy_has_left_is_removed(tmp_path: Path) -> None:
    write_files(tmp_path / ".copying-step-00000001", {"a": b"abc"})
    write_files(tmp_path / "step-00000002", {"a": b"abc"})
    forget(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    forget(tmp_path / "none")
    write_files(tmp_path / ".copying-step-00000001", {"a": b"abc"})
    with held(tmp_path / "step-00000002", ["a"]) as source:
        assert {path.name for path in tmp_path.iterdir()} == {"step-00000002", source.name}
