from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import xxhash
from pydantic import ValidationError

from llmkit.copies.outgoing import BLOCK, PART_BYTES, Outgoing, Stored, check, md5, stored
from llmkit.errors import RunFault
from tests.copies.conftest import content_of


@pytest.mark.parametrize("size", [0, 1, BLOCK, PART_BYTES, PART_BYTES + 1])
def test_parts_are_the_content(size: int, tmp_path: Path) -> None:
    content = content_of(size)
    (tmp_path / "a").write_bytes(content)
    for source in (content, tmp_path / "a"):
        sent = Outgoing(stored("a", content), source)
        parts = list(sent.parts())
        assert b"".join(parts) == content and len(parts) == sent.count
        assert all(len(part) == PART_BYTES for part in parts[:-1])


def test_a_file_is_known_by_its_blocks() -> None:
    content = content_of(BLOCK + 3)
    file = stored("a", content)
    assert file.xxh64 == [xxhash.xxh64(part).hexdigest() for part in (content[:BLOCK], content[BLOCK:])]
    assert file.digest != stored("a", content[:-1]).digest
    check(content[BLOCK:], file.xxh64, BLOCK, "a")
    with pytest.raises(RunFault, match=f"^a: bytes {BLOCK} to {BLOCK + 3} are not what was written$"):
        check(content[BLOCK:-1] + b"x", file.xxh64, BLOCK, "a")


def test_what_is_not_as_it_was_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a"
    file = stored("a", b"abc")
    for content, problem in ((b"ab", "it has less than 3 bytes"), (b"abx", "bytes 0 to 3 are not what was")):
        path.write_bytes(content)
        with pytest.raises(RunFault, match=problem):
            list(Outgoing(file, path).parts())
    path.unlink()
    with pytest.raises(RunFault, match="a: cannot be read at byte 0"):
        list(Outgoing(file, path).parts())
    path.symlink_to("/etc/hostname")
    with pytest.raises(RunFault, match="a: cannot be read at byte 0"):
        list(Outgoing(file, path).parts())


@pytest.mark.parametrize("name", ["../a", "a/../b", "/a", "a/b/c", ".a", "a/.b", "", "a\n", "a b"])
def test_names_lead_nowhere_else(name: str) -> None:
    with pytest.raises(ValidationError):
        Stored(name=name, size=0, xxh64=[])


def test_md5_is_that_of_the_content() -> None:
    assert md5(b"abc") == hashlib.md5(b"abc").digest()
