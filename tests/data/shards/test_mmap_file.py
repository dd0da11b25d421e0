from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmkit.data.shards.format import BLOCK_BYTES
from llmkit.data.shards.mmap_file import MappedFile
from llmkit.data.shards.reader import ShardReader
from llmkit.data.shards.writer import ShardWriter
from llmkit.errors import RunFault, UserError


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder with a shard of two blocks and a few tokens, and target bits."""
    writer = ShardWriter(tmp_path, "toy", "tok", 60_000, 0)
    tokens = np.arange(BLOCK_BYTES, dtype=np.int64) % 50_000
    writer.add(tokens, 0, tokens % 3 > 0)
    writer.finish()
    return tmp_path


READS: list[Callable[[ShardReader], object]] = [
    lambda reader: reader.rows(np.array([0, 5]), 1000),
    lambda reader: reader.read(7, 9),
    lambda reader: reader.verify(),
]


def change_bytes(path: Path) -> None:
    """Writes over a byte in place, with a new date."""
    was = path.stat()
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xee")
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns + 1))


@pytest.mark.parametrize("read", READS)
def test_a_file_that_is_cut_between_two_reads_is_named(
    shards: Path, read: Callable[[ShardReader], object]
) -> None:
    reader = ShardReader(shards)
    read(reader)
    path = shards / "toy-00000.bin"
    size = path.stat().st_size
    os.truncate(path, 5000)
    wanted = rf"toy-00000.bin: changed while it is being read, it has 5000 bytes now and had {size} bytes"
    with pytest.raises(RunFault, match=wanted):
        read(reader)


def test_a_file_that_may_not_be_seen_any_more_is_a_matter_for_its_owner(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ShardReader(shards, remedy="delete it")
    stat = os.stat

    def denied(path: object, **options: object) -> os.stat_result:
        if str(path).endswith(".bin"):
            raise PermissionError(13, "Permission denied")
        return stat(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", denied)
    with pytest.raises(
        RunFault, match=r"toy-00000.bin: went away .*Permission denied.; ask .* for read access"
    ):
        reader.read(0, 1)


def test_target_bits_that_are_cut_are_named(shards: Path) -> None:
    reader = ShardReader(shards)
    reader.targets(np.array([0]), 1000)
    os.truncate(shards / "toy-00000.mask", 10)
    with pytest.raises(RunFault, match=r"toy-00000.mask: changed while it is being read"):
        reader.targets(np.array([0]), 1000)
    with pytest.raises(RunFault, match=r"toy-00000.mask: changed while it is being read"):
        reader.read_targets(0, 9)


def test_a_block_is_checked_once(tmp_path: Path) -> None:
    path, seen = tmp_path / "file", list[tuple[int, int]]()
    size = 2 * BLOCK_BYTES + 3
    path.write_bytes(bytes(size))
    file = MappedFile(
        path, size, "index", "mend it", lambda block, content: seen.append((block, len(content)))
    )
    for first, end in [(0, 5), (BLOCK_BYTES - 1, BLOCK_BYTES), (BLOCK_BYTES - 1, BLOCK_BYTES + 1), (0, size)]:
        assert file.has_unverified()
        file.verify(np.array([first]), np.array([end]))
    assert seen == [(0, BLOCK_BYTES), (1, BLOCK_BYTES), (2, 3)]
    assert not file.has_unverified()


def test_a_file_that_is_replaced_by_another_is_named(shards: Path) -> None:
    reader = ShardReader(shards)
    path = shards / "toy-00000.bin"
    was = path.stat()
    shutil.copy(path, shards / "other")
    os.utime(shards / "other", ns=(was.st_atime_ns, was.st_mtime_ns + 1))
    os.replace(shards / "other", path)
    with pytest.raises(RunFault, match=r"toy-00000.bin: changed while it is being read, it is another file"):
        reader.rows(np.array([0]), 1000)


def test_a_file_that_is_removed_is_named(shards: Path) -> None:
    reader = ShardReader(shards)
    (shards / "toy-00000.bin").unlink()
    with pytest.raises(RunFault, match=r"toy-00000.bin: went away while it is being read \(No such file"):
        reader.rows(np.array([0]), 1000)


def test_a_new_date_alone_is_no_fault_and_content_written_over_is(shards: Path) -> None:
    reader = ShardReader(shards)
    before = reader.rows(np.array([0]), 1000)
    path = shards / "toy-00000.bin"
    was = path.stat()
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns + 1))
    assert reader.rows(np.array([0]), 1000).tolist() == before.tolist()
    change_bytes(path)
    with pytest.raises(UserError, match=r"toy-00000.bin: block 0 .* does not match its checksum"):
        reader.rows(np.array([0]), 1000)


def test_a_block_that_is_gone_by_the_time_it_is_checked_is_an_error_and_not_the_end_of_the_process(
    shards: Path,
) -> None:
    code = """
import os, sys
from pathlib import Path
import numpy as np
from llmkit.data.shards.mmap_file import MappedFile
from llmkit.data.shards.reader import ShardReader
from llmkit.errors import RunFault
has_unverified = MappedFile.has_unverified
def cut_afterwards(self):
    result = has_unverified(self)
    os.truncate(self.path, 5000)
    return result
MappedFile.has_unverified = cut_afterwards
try:
    ShardReader(Path(sys.argv[1])).rows(np.array([4000]), 1000)
except RunFault as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(shards)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "toy-00000.bin: ends at byte" in done.stdout
