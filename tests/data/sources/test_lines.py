from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmkit.data.sources import lines
from llmkit.data.sources.formats import Format
from llmkit.data.sources.lines import parts_of, safe_start, split
from llmkit.data.sources.listing import File
from llmkit.data.sources.remote import RandomFile
from llmkit.data.sources.zstd_frames import frame_ends
from llmkit.errors import RunFault, UserError

CONTENT = st.text("ab|\n\u00e9\U0001f600", max_size=40).map(str.encode)
SEPARATORS = st.sampled_from(["|", "\n", "||", "\n\n", "|a|", "\u00e9", "a|b"]).map(str.encode)


def opened(path: Path, content: bytes) -> RandomFile:
    path.write_bytes(content)
    return RandomFile(File(str(path), len(content), ""))


def parts(content: bytes, separator: bytes) -> list[bytes]:
    found = content.split(separator)
    return found[:-1] if found[-1] == b"" else found  # nothing after the last separator is no part


def frame(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)


def check_units(file: RandomFile, form: Format, edges: list[int], expected: Sequence[bytes | None]) -> None:
    """Units with these edges hold each part once, in order, and go on from any of them."""
    found = []
    for start, end in pairwise(edges):
        unit = list(parts_of(file, form, start, end))
        assert [number for number, _, _ in unit] == list(range(len(unit)))
        for number, hint, _ in unit:
            assert list(parts_of(file, form, start, end, number, hint)) == unit[number:]
            assert list(parts_of(file, form, start, end, number)) == unit[number:]
        found += [part for _, _, part in unit]
    assert found == expected


@settings(deadline=None)
@given(content=CONTENT, separator=SEPARATORS, chunk=st.integers(1, 12))
def test_parts_are_those_of_split_however_the_file_comes(
    content: bytes, separator: bytes, chunk: int
) -> None:
    chunks = [content[i : i + chunk] for i in range(0, len(content), chunk)]
    found = list(split(chunks, separator))
    assert [part for _, part in found] == parts(content, separator)
    assert all(content[offset:].startswith(part) for offset, part in found)


@settings(deadline=None, max_examples=200)
@given(content=CONTENT, separator=SEPARATORS, chunk=st.integers(1, 12), limit=st.integers(0, 12))
def test_parts_beyond_the_limit_are_without_content(
    content: bytes, separator: bytes, chunk: int, limit: int
) -> None:
    chunks = [content[i : i + chunk] for i in range(0, len(content), chunk)]
    expected = list(split(chunks, separator))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "MAX_RECORD_BYTES", limit)
        found = list(split(chunks, separator))
    assert found == [
        (offset, part if part is not None and len(part) <= limit else None) for offset, part in expected
    ]


def test_of_what_is_beyond_the_limit_no_more_is_read_than_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_RECORD_BYTES", 1000)
    monkeypatch.setattr(lines, "CHUNK_BYTES", 800)
    with opened(tmp_path / "file", b"ab\n" + b"c" * 100_000 + b"\nd") as file:
        ends, real = [0], file.read_at
        monkeypatch.setattr(
            file, "read_at", lambda start, count: ends.append(start + count) or real(start, count)
        )
        form = Format("lines", b"\n")
        assert list(parts_of(file, form, 0, 3)) == [(0, 0, b"ab"), (1, 3, None)]
        assert list(parts_of(file, form, 3, 3000)) == []
    assert max(ends) < 5000


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_what_is_beyond_the_limit_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str | None
) -> None:
    content = b"one\n" + b"a" * 20_000_000 + b"\nthree"
    packed = {None: bytes, "gzip": gzip.compress, "zstd": frame}[compression](content)
    form = Format("lines", b"\n", compression=compression)
    monkeypatch.setattr(lines, "MAX_RECORD_BYTES", 1_000_000)
    with opened(tmp_path / "file", packed) as file:
        tracemalloc.start()
        found = list(parts_of(file, form, 0, len(packed)))
        document = lines.whole(file, form)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert [part for _, _, part in found] == [b"one", None, b"three"]
        assert list(parts_of(file, form, 0, len(packed), *found[2][:2])) == found[2:]
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
        patch.setattr(lines, "CHUNK_BYTES", 8 * chunk)
        patch.setattr(lines, "MAX_RECORD_BYTES", limit)
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
        assert safe_start(file, len(content) - len(run), separator) == 4
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


@settings(deadline=None, max_examples=150)
@given(
    pieces=st.lists(CONTENT, min_size=1, max_size=5),
    keep=st.sets(st.integers(1, 4)),
    skippable=st.booleans(),
    limit=st.integers(0, 100),
)
@example(pieces=[b"a\n", b"b\n"], keep={1}, skippable=False, limit=9)
@example(pieces=[b"a", b"", b"b", b"\n", b"c"], keep={1, 2, 3, 4}, skippable=True, limit=9)
@example(pieces=[b"aa", b"bb\ncc", b"\n", b"d"], keep={1, 2, 3}, skippable=True, limit=1)
def test_zstd_frames_may_be_cut_anywhere(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], keep: set[int], skippable: bool, limit: int
) -> None:
    packed = [frame(piece) for piece in pieces]
    if skippable:
        packed = [b"\x53\x2a\x4d\x18\x03\x00\x00\x00abc" + one for one in packed]
    content = b"".join(pieces)
    with opened(tmp_path_factory.mktemp("zst") / "file.zst", b"".join(packed)) as file:
        ends = frame_ends(file)
        assert ends == [len(b"".join(packed[: i + 1])) for i in range(len(packed))]
        edges = [0, *(end for i, end in enumerate(ends[:-1], 1) if i in keep), ends[-1]]
        form = Format("lines", b"\n", compression="zstd")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lines, "MAX_RECORD_BYTES", limit)
            expected = [part if len(part) <= limit else None for part in parts(content, b"\n")]
            check_units(file, form, edges, expected)


def test_a_compressed_file_of_several_members_is_read_whole(tmp_path: Path) -> None:
    packed = gzip.compress(b"one\ntw") + gzip.compress(b"o\nthree")
    with opened(tmp_path / "f.gz", packed) as file:
        form = Format("lines", b"\n", compression="gzip")
        check_units(file, form, [0, len(packed)], [b"one", b"two", b"three"])
        assert lines.whole(file, form) == b"one\ntwo\nthree"


def test_lines_longer_than_a_chunk_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "CHUNK_BYTES", 64)
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
        list(parts_of(file, Format("lines", b"\n", compression=compression), 0, len(packed) - lost))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda packed: packed[:-1], "it ends within a zstd frame"),
        (lambda packed: packed + packed[:3], "it ends within a zstd frame"),
        (lambda packed: packed + b"garbage", "there is no zstd frame"),
        (lambda packed: b"\x50\x2a\x4d\x18\xff\x00\x00\x00abc", "it ends within a zstd frame"),
    ],
)
def test_damaged_frames_are_told_when_they_are_looked_for(
    tmp_path: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    packed = change(frame(b"some text\n" * 100))
    with (
        opened(tmp_path / "f.zst", packed) as file,
        pytest.raises(UserError, match=f"f.zst: is damaged.*{message}"),
    ):
        frame_ends(file)


@pytest.mark.parametrize("is_long", [False, True])
@pytest.mark.parametrize("has_checksum", [False, True])
@pytest.mark.parametrize("has_window", [False, True])
def test_frames_of_all_kinds_are_walked_over(
    tmp_path: Path, is_long: bool, has_checksum: bool, has_window: bool
) -> None:
    """Frames made by hand: a block as it is, a run of one byte, an empty last block."""
    content = b"0123456789" + b"x" * (500 if is_long else 7)
    blocks = [(0, 10, b"0123456789"), (1, len(content) - 10, b"x"), (0, 0, b"")]
    body = b"".join(
        (is_last | kind << 1 | size << 3).to_bytes(3, "little") + stored
        for is_last, (kind, size, stored) in zip((0, 0, 1), blocks, strict=True)
    )
    flags = (1 if is_long else 0) << 6 | (not has_window) << 5 | has_checksum << 2
    size = (len(content) - 256).to_bytes(2, "little") if is_long else bytes([len(content)] * (not has_window))
    head = b"\x28\xb5\x2f\xfd" + bytes([flags]) + b"\x58" * has_window + size
    checksum = (xxhash.xxh64_intdigest(content) & 0xFFFFFFFF).to_bytes(4, "little") * has_checksum
    made = head + body + checksum
    with opened(tmp_path / "f.zst", made * 2) as file:
        assert frame_ends(file) == [len(made), 2 * len(made)]
        assert lines.whole(file, Format("lines", b"\n", compression="zstd")) == content * 2


def test_frames_of_many_blocks_are_walked_over(tmp_path: Path) -> None:
    random = b"".join((i * 2654435761 % 2**32).to_bytes(4, "little") for i in range(100_000))
    packed = [frame(random), frame(b"a" * 500_000), frame(b"")]  # raw or packed blocks, runs, nothing
    with opened(tmp_path / "f.zst", b"".join(packed)) as file:
        assert frame_ends(file) == [len(b"".join(packed[: i + 1])) for i in range(3)]
