from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.config.schema import Source
from llmkit.data.sources import byte_reader
from llmkit.data.sources.byte_reader import ArrowSource, ByteReader
from llmkit.data.sources.files import File, list_files
from llmkit.data.sources.retries import RetryPolicy
from llmkit.errors import RunFault, UserError
from tests.data.sources.servers import FLOOD_BYTES
from tests.limits import HANG

CONTENT = random.Random(0).randbytes(3_000_000)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_reader, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(byte_reader, "FIRST_BYTES", 100)
    monkeypatch.setattr(byte_reader, "SMALLEST_BYTES", 50)


@pytest.fixture
def served(web: Any) -> File:
    web.files["/a.bin"] = CONTENT
    return File(f"{web.url}/a.bin", len(CONTENT), web.tag)


@given(places=st.lists(st.tuples(st.integers(0, 5200), st.integers(0, 4000)), max_size=8))
@settings(max_examples=50, deadline=None)
def test_any_part_is_read_at_any_place(tmp_path_factory: pytest.TempPathFactory, places: list[Any]) -> None:
    content = CONTENT[:5000]
    path = tmp_path_factory.mktemp("local") / "a.bin"
    path.write_bytes(content)
    fsspec.filesystem("memory").pipe("/a.bin", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(byte_reader, "BLOCK_BYTES", 1000)
        patch.setattr(byte_reader, "FIRST_BYTES", 100)
        for name in (str(path), "memory:///a.bin"):
            with ByteReader(File(name, 5000, "")) as file:
                for start, count in places:
                    assert file.read_at(start, count) == content[start : start + count]


def test_a_part_goes_on_where_the_connection_broke(web: Any, served: File) -> None:
    web.keep = 700_000
    web.trouble = lambda number, start, end: "drop" if number in (1, 2) else None
    with ByteReader(served) as file:
        assert file.read_at(0, 2_000_000) == CONTENT[:2_000_000]
    starts = [start for start, _ in web.ranges]
    assert starts[:2] == [0, 700_000]
    assert starts == sorted(set(starts))


def test_a_connection_that_always_breaks_early_still_gets_on(web: Any, served: File) -> None:
    web.keep = 100_000
    web.trouble = lambda number, start, end: "drop" if end - start > web.keep else None
    with ByteReader(served) as file:
        assert file.read_at(5, 900_000) == CONTENT[5:900_005]


def test_any_number_of_broken_connections_is_borne_while_something_comes(web: Any, served: File) -> None:
    web.keep = 10_000
    web.trouble = lambda number, start, end: "drop"
    with ByteReader(served) as file:
        assert file.read_at(5, 200_000) == CONTENT[5:200_005]


def test_after_failures_less_is_asked_for(web: Any, served: File) -> None:
    web.trouble = lambda number, start, end: 503 if end - start > 100_000 else None
    with ByteReader(served) as file:
        assert file.read_at(5, 900_000) == CONTENT[5:900_005]


def test_a_server_that_is_busy_for_a_while_is_asked_again(web: Any, served: File) -> None:
    web.trouble = lambda number, start, end: (503, 429, None)[min(number, 3) - 1]
    with ByteReader(served) as file:
        assert file.read_at(10, 10) == CONTENT[10:20]


def test_a_server_that_stays_busy_is_told_with_the_place(web: Any, served: File) -> None:
    web.trouble = lambda number, start, end: 503 if start >= 1000 else None
    with ByteReader(served._replace(path=served.path + "?key=secret"), RetryPolicy(2, 0.001, 5.0)) as file:
        file.read_at(0, 10)
        message = (
            r"http://127.0.0.1:\d+/a.bin: cannot be read from byte 1000000 on after 3 attempts \(HTTP 503"
        )
        with pytest.raises(RunFault, match=message):
            file.read_at(1_000_000, 10)


def test_what_no_patience_mends_is_told_at_once(web: Any, served: File) -> None:
    web.trouble = lambda number, start, end: 403
    with ByteReader(served) as file, pytest.raises(RunFault, match=r"from byte 0 on \(HTTP 403"):
        file.read_at(0, 10)
    assert len(web.ranges) == 1


@pytest.mark.parametrize(("keep", "goes_on_at"), [(0, 0), (1000, 1000)])
def test_a_stalled_connection_is_given_up(web: Any, served: File, keep: int, goes_on_at: int) -> None:
    web.keep = keep
    web.trouble = lambda number, start, end: "stall" if number == 1 else None
    with ByteReader(served, RetryPolicy(8, 0.001, 0.5)) as file:
        assert file.read_at(0, 10) == CONTENT[:10]
    assert web.ranges[1][0] == goes_on_at


def test_no_more_is_taken_than_was_asked_for(web: Any, served: File) -> None:
    web.trouble = lambda number, start, end: "flood"
    assert list_files(Source(type="text", path=served.path), "p")[0].size == len(CONTENT)
    assert web.taken_of_flood() < FLOOD_BYTES // 2


@pytest.mark.parametrize("change", ["tag", "size"])
def test_a_file_that_changes_elsewhere_is_told(web: Any, served: File, change: str) -> None:
    with ByteReader(served) as file:
        file.read_at(0, 10)
        if change == "tag":
            web.tag = '"two"'
        else:
            web.files["/a.bin"] = CONTENT[:-1]
        with pytest.raises(RunFault, match=r"a.bin: the file changed while the job runs \(it"):
            file.read_at(1_000_000, 10)


def test_a_server_that_stops_serving_parts_is_told(web: Any, served: File) -> None:
    web.serves_ranges = False
    with ByteReader(served) as file, pytest.raises(RunFault, match=r"does not serve parts of files"):
        file.read_at(0, 10)


def test_reading_on_reads_ahead(web: Any, served: File, small_blocks: None) -> None:
    with ByteReader(served, until=2500) as file:
        assert file.read_at(0, 100) == CONTENT[:100]
        assert web.ranges == [(0, 100)]
        assert file.read_at(100, 50) == CONTENT[100:150]
        assert file.read_at(150, 2350) == CONTENT[150:2500]
        assert web.ranges == [(0, 100), (100, 1100), (1100, 2100), (2100, 2500)]


def test_a_large_part_is_fetched_in_blocks(web: Any, served: File, small_blocks: None) -> None:
    with ByteReader(served, until=0) as file:
        assert file.read_at(10, 2500) == CONTENT[10:2510]
    assert web.ranges == [(10, 1010), (1010, 2010), (2010, 2510)]


def test_what_fails_ahead_is_told_when_it_is_needed(web: Any, served: File, small_blocks: None) -> None:
    web.trouble = lambda number, start, end: 404 if start >= 1100 else None
    with ByteReader(served) as file:
        file.read_at(0, 100)
        assert file.read_at(100, 1000) == CONTENT[100:1100]
        with pytest.raises(RunFault, match=r"a.bin: cannot be read from byte 1100 on \(HTTP 404"):
            file.read_at(1100, 1)


class TestAnyOtherStore:
    """Of another store than a web server."""

    def listed(self) -> File:
        fsspec.filesystem("memory").pipe("/store/a.bin", CONTENT[:5000])
        (file,) = list_files(Source(type="text", path="memory://store/a.bin"), "p")
        return file

    def test_a_file_that_changes_is_told(self) -> None:
        file = self.listed()
        fsspec.filesystem("memory").pipe("/store/a.bin", CONTENT[:4000])
        with (
            ByteReader(file) as opened,
            pytest.raises(RunFault, match=r"changed .*had 5000 bytes and has 4000"),
        ):
            opened.read_at(0, 10)

    def test_what_listing_told_of_a_file_is_asked_anew(self, monkeypatch: pytest.MonkeyPatch) -> None:
        file, store = self.listed(), fsspec.filesystem("memory")
        real, kept = store.info, {"/store/a.bin": store.info("/store/a.bin")}
        monkeypatch.setattr(type(store), "info", staticmethod(lambda path: kept.get(path) or real(path)))
        monkeypatch.setattr(type(store), "invalidate_cache", staticmethod(lambda path: kept.pop(path)))
        store.pipe("/store/a.bin", CONTENT[:4000])
        with ByteReader(file) as opened, pytest.raises(RunFault, match="had 5000 bytes and has 4000"):
            opened.read_at(0, 10)

    def test_a_file_that_is_gone_is_told(self) -> None:
        file = self.listed()
        fsspec.filesystem("memory").rm("/store/a.bin")
        with ByteReader(file) as opened, pytest.raises(RunFault, match=r"from byte 7 on \(FileNotFoundError"):
            opened.read_at(7, 10)

    def test_a_failure_is_tried_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real, calls = fsspec.filesystem("memory").cat_file, []

        def failing(path: str, *, start: int, end: int) -> bytes:
            calls.append((start, end))
            if len(calls) == 1:
                raise OSError("the line is cut")
            return real(path, start=start, end=end)

        file = self.listed()
        monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", staticmethod(failing))
        with ByteReader(file, RetryPolicy(1, 0.001, 5.0)) as opened:
            assert opened.read_at(7, 10) == CONTENT[7:17]
        assert len(calls) == 2

    def test_a_read_that_hangs_is_left_behind(self, monkeypatch: pytest.MonkeyPatch, web: Any) -> None:
        def hanging(path: str, *, start: int, end: int) -> bytes:
            web.released.wait(HANG)
            return b""

        file = self.listed()
        monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", staticmethod(hanging))
        with (
            ByteReader(file, RetryPolicy(1, 0.001, 0.05)) as opened,
            pytest.raises(RunFault, match=r"after 2 attempts \(no answer in 0.05 s\)"),
        ):
            opened.read_at(0, 10)


@pytest.mark.parametrize("change", [b"other!", b"short", b"longer than before"])
def test_a_local_file_that_changes_is_told(write: Callable[[str, bytes], str], change: bytes) -> None:
    path = write("a", b"before")
    (listed,) = list_files(Source(type="text", path=path), "p")
    with ByteReader(listed) as file:
        assert file.read_at(0, 3) == b"bef"
        write("a", change)
        os.utime(path, ns=(1, 1))
        with pytest.raises(RunFault, match=r"/a: the file changed while the job runs"):
            file.read_at(0, 3)


def test_a_local_file_that_is_gone_is_told(tmp_path: Any) -> None:
    with pytest.raises(RunFault, match=r"gone: cannot be read \(No such file"):
        ByteReader(File(str(tmp_path / "gone"), 5, ""))


def test_parts_of_a_file_are_one_file_object(write: Callable[[str, bytes], str]) -> None:
    path = write("a", b"0123456789")
    with ByteReader(File(path, 10, "")) as file:
        raw = ArrowSource(file, [(0, 3), (5, 5), (6, 9)])
        assert (raw.size(), raw.read(1), raw.read(4), raw.read(), raw.read()) == (6, b"0", b"1267", b"8", b"")
        assert (raw.seek(-2, 2), raw.read(9), raw.tell()) == (4, b"78", 6)


def test_what_a_file_object_raises_is_what_the_reader_of_it_sees(web: Any, served: File) -> None:
    web.trouble = lambda number, start, end: 404
    with ByteReader(served) as file:
        raw = ArrowSource(file)
        with pytest.raises(RunFault, match=r"HTTP 404"), raw.translated_errors():
            try:
                raw.read(5)
            except RunFault:
                raise OSError("what Arrow made of it") from None
        with pytest.raises(UserError), ArrowSource(file).translated_errors():
            raise UserError("goes through")
