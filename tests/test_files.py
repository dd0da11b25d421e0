from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmkit.errors import UserError
from llmkit.files import (
    NoAccessError,
    file_system,
    may_exist,
    open_regular,
    owner_of,
    read_json,
    write_atomic,
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"a":' * 100_000, "is not valid JSON"),
        (b"[]", "is not a JSON object"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"a.json: {message}, the file is damaged; write it again"):
        read_json(path, "write it again")


def test_a_missing_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.json: cannot be read \(No such file.*; write it again"):
        read_json(tmp_path / "a.json", "write it again")


def denied(*_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_a_file_that_may_not_be_read_is_a_matter_for_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").write_text("{}")
    monkeypatch.setattr(Path, "read_bytes", denied)
    owner = re.escape(f"{tmp_path.owner()}, the owner of {tmp_path / 'a.json'},")
    wanted = rf"a.json: cannot be read \(Permission denied\); ask {owner} for read access to it$"
    with pytest.raises(NoAccessError, match=wanted):
        read_json(tmp_path / "a.json", "delete it")


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match="it is no regular file"):
            open_regular(path)
    (tmp_path / "file").write_text("content")
    with open_regular(tmp_path / "file") as file:
        assert file.read() == b"content"


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with write_atomic(path) as file:
        file.write(b"content")
    assert os.read(reader, 100) == b"content" and path.is_fifo()
    os.close(reader)


def test_a_symbolic_link_gives_way_and_what_it_names_stays(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    for name, target in (("link", "precious"), ("dangling", "nowhere")):
        (tmp_path / name).symlink_to(tmp_path / target)
        with write_atomic(tmp_path / name) as file:
            file.write(b"content")
        assert (tmp_path / name).read_text() == "content" and not (tmp_path / name).is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "link", "precious"]
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_link_in_the_place_of_the_partial_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    for target in ("precious", "nowhere"):
        (tmp_path / "file.part").symlink_to(tmp_path / target)
        with write_atomic(tmp_path / "file") as file:
            file.write(b"content")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "precious"]
    assert (tmp_path / "precious").read_text() == "precious"


def test_standard_output_stays_what_it_is_where_it_is_a_file(tmp_path: Path) -> None:
    code = "from pathlib import Path; from llmkit.files import write_atomic\n"
    code += "with write_atomic(Path('/dev/stdout')) as file: file.write(b'content')"
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, cwd=Path(__file__).parents[1], check=True)
    assert (tmp_path / "out").read_text() == "content"
    assert Path("/dev/stdout").is_symlink() and not Path("/dev/stdout.part").exists()


def test_the_owner_of_what_is_not_seen_is_that_of_the_folder_around_it(tmp_path: Path) -> None:
    assert owner_of(tmp_path / "gone" / "a") == f"{tmp_path.owner()}, the owner of {tmp_path},"


def test_what_may_not_be_looked_at_may_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert may_exist(tmp_path) and not may_exist(tmp_path / "gone") and not may_exist("a\0b")
    monkeypatch.setattr("os.stat", denied)
    assert may_exist(tmp_path / "gone")


def test_a_check_keeps_a_file_from_its_name(tmp_path: Path) -> None:
    def refuse() -> None:
        assert (tmp_path / "file.part").read_bytes() == b"new"
        raise ZeroDivisionError

    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), write_atomic(tmp_path / "file", refuse) as file:
        file.write(b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]


def test_the_kind_of_file_system_is_that_of_the_innermost_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"/dev/a / ext4 rw 0 0\nserver:/b {tmp_path} nfs4 rw 0 0\nnone {tmp_path}/other tmpfs rw 0 0\n"
    )
    assert file_system(tmp_path / "runs", mounts) == "nfs4"
    assert file_system(Path("/"), mounts) == "ext4"
    assert file_system(Path("/"), tmp_path / "absent") == ""
    assert file_system(Path("/proc/self/status")) == "proc"
