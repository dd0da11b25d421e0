from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmkit.data.sources import text_files
from llmkit.data.sources.byte_reader import ByteReader
from llmkit.data.sources.files import File
from llmkit.data.sources.formats import Format
from llmkit.data.sources.text_files import aligned_start, cut, read_records
from llmkit.errors import RunFault

CONTENT = st.text("ab|\n\u00e9\U0001f600", max_size=40).map(str.encode)
SEPARATORS = st.sampled_from(["|", "\n", "||", "\n\n", "|a|", "\u00e9", "a|b"]).map(str.encode)


def opened(path: Path, content: bytes) -> ByteReader:
    path.write_bytes(content)
    return ByteReader(File(str(path), len(content), ""))


def parts(content: bytes, separator: bytes) -> list[bytes]:
    found = content.split(separator)
    return found[:-1] if found[-1] == b"" else found  # nothing after the last separator is no part


SKIPPABLE = b"\x53\x2a\x4d\x18\x03\x00\x00\x00abc"
"""A frame of zstd that holds no data."""


def frame(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)


def check_units(file: ByteReader, form: Format, edges: list[int], expected: Sequence[bytes | None]) -> None:
    """Units with these edges hold each part once, in order, and go on from any of them."""
    found = []
    for start, end in pairwise(edges):
        unit = list(read_records(file, form, start, end))
        assert [number for number, _, _ in unit] == list(range(len(unit)))
        for number, hint, _ in unit:
            assert list(read_records(file, form, start, end, number, hint)) == unit[number:]
            assert list(read_records(file, form, start, end, number)) == unit[number:]
        found += [part for _, _, part in unit]
    assert found == expected


@settings(deadline=None)
@given(content=CONTENT, separator=SEPARATORS, chunk=st.integers(1, 12))
def test_parts_are_those_of_split_however_the_file_comes(
    content: bytes, separator: bytes, chunk: int
) -> None:
    chunks = [content[i : i + chunk] for i in range(0, len(content), chunk)]
    found = list(cut(chunks, separator))
    assert [part for _, part in found] == parts(content, separator)
    assert all(content[offset:].startswith(part) for offset, part in found)


@settings(deadline=None, max_examples=200)
@given(content=CONTENT, separator=SEPARATORS, chunk=st.integers(1, 12), limit=st.integers(0, 12))
def test_parts_beyond_the_limit_are_without_content(
    content: bytes, separator: bytes, chunk: int, limit: int
) -> None:
    chunks = [content[i : i + chunk] for i in range(0, len(content), chunk)]
    expected = list(cut(chunks, separator))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "MAX_RECORD_BYTES", limit)
        found = list(cut(chunks, separator))
    assert found == [
        (offset, part if part is not None and len(part) <= limit else None) for offset, part in expected
    ]


def test_of_what_is_beyond_the_limit_no_more_is_read_than_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "MAX_RECORD_BYTES", 1000)
    monkeypatch.setattr(text_files, "CHUNK_BYTES", 800)
    with opened(tmp_path / "file", b"ab\n" + b"c" * 100_000 + b"\nd") as file:
        ends, real = [0], file.read_at
        monkeypatch.setattr(
            file, "read_at", lambda start, count: ends.append(start + count) or real(start, count)
        )
        form = Format("lines", b"\n")
        assert list(read_records(file, form, 0, 3)) == [(0, 0, b"ab"), (1, 3, None)]
        assert list(read_records(file, form, 3, 3000)) == []
    assert max(ends) < 5000


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_what_is_beyond_the_limit_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str | None
) -> None:
    content = b"one\n" + b"a" * 20_000_000 + b"\nthree"
    packed = {None: bytes, "gzip": gzip.compress, "zstd": frame}[compression](content)
    form = Format("lines", b"\n", compression=compression)
    monkeypatch.setattr(text_files, "MAX_RECORD_BYTES", 1_000_000)
    with opened(tmp_path / "file", packed) as file:
        tracemalloc.start()
        found = list(read_records(file, form, 0, len(packed)))
        document = text_files.read_all(file, form)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert [part for _, _, part in found] == [b"one", None, b"three"]
        assert list(read_records(file, form, 0, len(packed), *found[2][:2])) == found[2:]
    assert document is None
    assert peak < 5_000_000


RUNS = st.lists(st.sampled_from(["|", "|a", "|a|", "\n\n\n", "b"]), max_size=30).map("".join).map(str.encode)


@settings(deadline=None, max_examples=200)
@given(
    content=RUNS.filter(bool),
    separator=SEPARATORS,
    cuts=st.sets(st.integers(1, 90)),
    chunk=st.integers(1, 7),
    limit=st.integers(0, 20),
)
def test_units_cut_within_runs_of_separators_hold_each_part_once(
    tmp_path_factory: pytest.TempPathFactory,
    content: bytes,
    separator: bytes,
    cuts: set[int],
    chunk: int,
    limit: int,
) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < len(content)), len(content)]
    with pytest.MonkeyPatch.context() as patch, opened(tmp_path_factory.mktemp("r") / "f", content) as file:
        patch.setattr(text_files, "CHUNK_BYTES", 8 * chunk)
        patch.setattr(text_files, "MAX_RECORD_BYTES", limit)
        expected = [part if len(part) <= limit else None for part in parts(content, separator)]
        check_units(file, Format("lines", separator), edges, expected)


@pytest.mark.parametrize(("separator", "run"), [(b"\n\n", b"\n"), (b"|a|", b"|a")])
def test_a_run_of_separators_is_walked_back_in_few_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: bytes, run: bytes
) -> None:
    content = b"text" + run * 500_000
    with opened(tmp_path / "file", content) as file:
        reads, real = [], file.read_at
        monkeypatch.setattr(file, "read_at", lambda start, count: reads.append(start) or real(start, count))
        assert aligned_start(file, len(content) - len(run), separator) == 4
    assert len(reads) < 20


@settings(deadline=None, max_examples=200)
@given(content=CONTENT.filter(bool), separator=SEPARATORS, cuts=st.sets(st.integers(1, 80)))
@example(content=b"a\n\n\n\n\nb\n\nc", separator=b"\n\n", cuts={2, 3, 4, 5, 6})
@example(content=b"a|a|a|b", separator=b"|a|", cuts={4, 5})
def test_units_cut_anywhere_hold_each_part_once(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, separator: bytes, cuts: set[int]
) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < len(content)), len(content)]
    with opened(tmp_path_factory.mktemp("lines") / "file", content) as file:
        check_units(file, Format("lines", separator), edges, parts(content, separator))


@settings(deadline=None, max_examples=100)
@given(pieces=st.lists(CONTENT, min_size=1, max_size=5), skippable=st.booleans(), limit=st.integers(0, 100))
@example(pieces=[b"a", b"", b"b", b"\n", b"c"], skippable=True, limit=9)
@example(pieces=[b"aa", b"bb\ncc", b"\n", b"d"], skippable=True, limit=1)
def test_a_zstd_file_of_several_frames_is_read_whole(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], skippable: bool, limit: int
) -> None:
    packed = [SKIPPABLE * skippable + frame(piece) for piece in pieces]
    content = b"".join(pieces)
    with opened(tmp_path_factory.mktemp("zst") / "file.zst", b"".join(packed)) as file:
        form = Format("lines", b"\n", compression="zstd")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(text_files, "MAX_RECORD_BYTES", limit)
            expected = [part if len(part) <= limit else None for part in parts(content, b"\n")]
            check_units(file, form, [0, file.file.size], expected)


def test_a_compressed_file_of_several_members_is_read_whole(tmp_path: Path) -> None:
    packed = gzip.compress(b"one\ntw") + gzip.compress(b"o\nthree")
    with opened(tmp_path / "f.gz", packed) as file:
        form = Format("lines", b"\n", compression="gzip")
        check_units(file, form, [0, len(packed)], [b"one", b"two", b"three"])
        assert text_files.read_all(file, form) == b"one\ntwo\nthree"


def test_lines_longer_than_a_chunk_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "CHUNK_BYTES", 64)
    content = b"\n".join(bytes([65 + i]) * (i * 500 + 1) for i in range(5))
    for packed, compression in ((content, None), (frame(content), "zstd")):
        with opened(tmp_path / "file", packed) as file:
            form = Format("lines", b"\n", compression=compression)
            check_units(file, form, [0, len(packed)], content.split(b"\n"))


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
@pytest.mark.parametrize("lost", [1, 3, 5])
def test_a_truncated_file_is_told(tmp_path: Path, compression: str, lost: int) -> None:
    content = b"".join(b"line %d\n" % i for i in range(1000))
    packed = frame(content) if compression == "zstd" else gzip.compress(content)
    with (
        opened(tmp_path / "file", packed[:-lost]) as file,
        pytest.raises(
            RunFault, match=r"file: is damaged or cut short \((OSError: Trunc|EOFError: Compressed file)"
        ),
    ):
        list(read_records(file, Format("lines", b"\n", compression=compression), 0, len(packed) - lost))


@pytest.mark.parametrize("end", [b"\x28\xb5\x2f", b"garbage", SKIPPABLE[:-1]])
def test_what_is_behind_the_last_zstd_frame_is_damage(tmp_path: Path, end: bytes) -> None:
    packed = frame(b"some text\n" * 100) + end
    with (
        opened(tmp_path / "f.zst", packed) as file,
        pytest.raises(RunFault, match=r"f.zst: is damaged or cut short"),
    ):
        list(read_records(file, Format("lines", b"\n", compression="zstd"), 0, len(packed)))
