from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.data.building import cache
from llmkit.data.building.cache import build_once
from llmkit.errors import RunFault, UserError


def silent(line: str) -> None:
    pass


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(tmp: Path) -> None:
    (tmp / "whole").mkdir()
    (tmp / "whole" / "file").write_text("content")


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "x"
    build_once(folder, fill, silent)
    assert (folder / "file").read_text() == "content"
    build_once(folder, lambda tmp: 1 / 0, silent)
    assert names(tmp_path / "cache") == [".x.lock", "x"]


def test_a_fault_leaves_the_tmp_to_the_next_one_but_no_folder(tmp_path: Path) -> None:
    def half(tmp: Path) -> None:
        (tmp / "part").write_text("half")
        (tmp / "whole").mkdir()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        build_once(tmp_path / "x", half, silent)
    assert names(tmp_path) == [".building-x", ".x.lock"]

    def rest(tmp: Path) -> None:
        assert names(tmp) == ["part"]
        fill(tmp)

    build_once(tmp_path / "x", rest, silent)
    assert names(tmp_path) == [".x.lock", "x"]


def test_a_folder_that_another_process_made_while_this_one_waited_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []

    def held(file: object, how: int) -> None:
        if how & cache.fcntl.LOCK_NB:
            raise BlockingIOError
        (tmp_path / "x").mkdir()

    monkeypatch.setattr(cache.fcntl, "flock", held)
    build_once(tmp_path / "x", lambda tmp: 1 / 0, lines.append)
    assert lines == [f"data: another process builds {tmp_path / 'x'}, waiting for it"]
    assert names(tmp_path) == [".x.lock", "x"]


def test_a_mistake_of_the_user_leaves_nothing(tmp_path: Path) -> None:
    def refuse(tmp: Path) -> None:
        raise UserError("no text")

    with pytest.raises(UserError, match="no text"):
        build_once(tmp_path / "x", refuse, silent)
    assert names(tmp_path) == [".x.lock"]


def test_a_full_disk_is_a_fault_of_the_run(tmp_path: Path) -> None:
    def full(tmp: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(RunFault, match=r"building-x: cannot be written .No space left on device."):
        build_once(tmp_path / "x", full, silent)


def test_a_folder_appears_by_one_rename_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.rename", fail)
    with pytest.raises(RunFault, match="Input/output error"):
        build_once(tmp_path / "x", fill, silent)
    assert not (tmp_path / "x").exists()


def test_without_locks_the_first_to_end_wins_and_the_other_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(cache.fcntl, "flock", no_locks)

    def second(tmp: Path) -> None:
        build_once(tmp_path / "x", fill, silent)  # another process, meanwhile
        (tmp / "whole").mkdir()

    build_once(tmp_path / "x", second, silent)
    assert (tmp_path / "x" / "file").exists()
    assert names(tmp_path) == [".x.lock", "x"]


def test_a_cache_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data.cache_dir: .*file cannot be made a folder"):
        build_once(tmp_path / "file" / "x", fill, silent)
