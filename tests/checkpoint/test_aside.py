"""Folders that appear when all is in them, or not at all."""

from __future__ import annotations

import pytest

from llmkit.checkpoint.aside import built_aside, require_room
from llmkit.errors import RunFault, UserError


def test_a_folder_appears_with_all_that_is_in_it(tmp_path):
    (tmp_path / "new/.tmp-out").mkdir(parents=True)
    (tmp_path / "new/.tmp-out/leftover").touch()
    with built_aside(tmp_path / "new/out") as folder:
        (folder / "file").write_text("text")
        assert not (tmp_path / "new/out").exists()
    assert [path.name for path in (tmp_path / "new").rglob("*")] == ["out", "file"]


def test_nothing_is_left_where_it_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), built_aside(tmp_path / "out"):
        _ = 1 / 0
    with pytest.raises(RunFault, match=r"cannot write .*out"), built_aside(tmp_path / "out") as folder:
        (folder / "no/such/folder").write_text("text")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"it needs 1000000.00 GB, and the disk of .* has"):
        require_room(tmp_path / "out", 10**15)
