from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3fs import S3FileSystem

from llmkit.config.schema import Source
from llmkit.data.sources import byte_reader, retries
from llmkit.data.sources.byte_reader import ByteReader
from llmkit.data.sources.files import File, list_files
from llmkit.data.sources.retries import RetryPolicy
from llmkit.errors import RunFault, UserError
from tests.data.sources.conftest import make_reader, read_all
from tests.data.sources.s3_server import SECRET, S3Server, s3_is, tag
from tests.data.sources.servers import FLOOD_BYTES

CONTENT = random.Random(0).randbytes(3_000_000)
SLOW_DOWN = (503, "SlowDown")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The store that s3:// means; one for all tests, since making a client of it takes long."""
    server = S3Server()
    with s3_is(server, tmp_path_factory.mktemp("s3") / "none"):
        yield server


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, server: S3Server) -> S3Server:
    """The store with nothing but an empty bucket named "bucket", and no trouble."""
    monkeypatch.setattr(byte_reader, "RETRIES", RetryPolicy(retries=2, first_delay=0.001, stall_seconds=30.0))
    monkeypatch.setattr(retries.time, "sleep", lambda seconds: None)
    for client in S3FileSystem._cache.values():
        client.invalidate_cache()
    server.reset()
    server.buckets["bucket"] = {}
    return server


@pytest.fixture
def stored(s3: S3Server) -> File:
    s3.buckets["bucket"]["a.bin"] = CONTENT
    return File("s3://bucket/a.bin", len(CONTENT), tag(CONTENT))


def found(path: str, kind: Any = "jsonl") -> list[str]:
    return [file.path.removeprefix("s3://bucket/") for file in list_files(Source(type=kind, path=path), "p")]


class TestListing:
    @pytest.fixture(autouse=True)
    def tree(self, s3: S3Server) -> None:
        names = (
            "dir/b.jsonl",
            "dir/a.jsonl",
            "dir/sub/c.jsonl.zst",
            "dir/.hidden/d.jsonl",
            "dir/e.txt",
            "f.jsonl",
        )
        s3.buckets["bucket"] = {name: name.encode() for name in names}

    @pytest.mark.parametrize("page", [1, 2, 1000])
    def test_a_folder_stands_for_the_files_under_it(self, s3: S3Server, page: int) -> None:
        s3.page = page
        expected = ["dir/a.jsonl", "dir/b.jsonl", "dir/sub/c.jsonl.zst"]
        assert found("s3://bucket/dir") == found("s3://bucket/dir/") == found("s3a://bucket/dir") == expected
        assert found("s3://bucket") == [*expected, "f.jsonl"]

    def test_a_pattern_stands_for_the_files_that_it_matches(self) -> None:
        assert found("s3://bucket/dir/*.jsonl") == ["dir/a.jsonl", "dir/b.jsonl"]
        assert found("s3://bucket/**/*.jsonl") == ["dir/a.jsonl", "dir/b.jsonl", "f.jsonl"]
        assert found("s3://bucket/dir/*.txt", "text") == ["dir/e.txt"]

    def test_a_file_is_known_by_its_size_and_tag(self) -> None:
        for path in ("s3://bucket/dir/a.jsonl", "s3://bucket/dir/a*"):
            expected = File("s3://bucket/dir/a.jsonl", len("dir/a.jsonl"), tag(b"dir/a.jsonl"))
            assert list_files(Source(type="jsonl", path=path), "p") == [expected]

    def test_the_mark_of_a_folder_is_no_file(self, s3: S3Server) -> None:
        s3.buckets["bucket"] |= {"dir/": b"", "dir/sub/": b""}
        expected = ["dir/a.jsonl", "dir/b.jsonl", "dir/e.txt", "dir/sub/c.jsonl.zst"]
        assert found("s3://bucket/dir", "text") == found("s3://bucket/dir/**", "text") == expected
        assert found("s3://bucket/dir/*", "text") == expected

    @pytest.mark.parametrize(
        "path", ["gone/*.jsonl", "bucket/gone", "bucket/gone.jsonl", "gone/a.jsonl", "gone"]
    )
    def test_what_is_not_there_is_told(self, path: str) -> None:
        with pytest.raises(UserError, match=rf"p.path: s3://{path.replace('*', '.')} holds no \*.jsonl or "):
            found(f"s3://{path}")

    @pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
    @pytest.mark.parametrize("path", ["dir", "dir/*.jsonl", "dir/a.jsonl"])
    def test_a_key_that_is_refused_is_told_at_once(self, s3: S3Server, code: str, path: str) -> None:
        s3.trouble = lambda *request: (403, code)
        with pytest.raises(
            UserError, match=rf"p.path: s3://bucket/{path.replace('*', '.')} cannot be listed"
        ) as failure:
            found(f"s3://bucket/{path}")
        assert "PermissionError" in str(failure.value) and "dummy" not in str(failure.value)
        assert len(s3.requests) == 1

    def test_a_busy_store_is_asked_again(self, s3: S3Server) -> None:
        s3.trouble = lambda *request: SLOW_DOWN if len(s3.requests) < 3 else None
        assert found("s3://bucket/f.jsonl") == ["f.jsonl"]
        s3.trouble = lambda *request: SLOW_DOWN
        with pytest.raises(UserError, match=r"p.path: s3://bucket/\*.jsonl cannot be listed \(OSError"):
            found("s3://bucket/*.jsonl")

    @pytest.fixture
    def no_keys(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        S3FileSystem.clear_instance_cache()
        yield
        S3FileSystem.clear_instance_cache()

    def test_without_keys_the_reason_is_told(
        self, monkeypatch: pytest.MonkeyPatch, s3: S3Server, no_keys: None
    ) -> None:
        pauses: list[float] = []
        monkeypatch.setattr(retries.time, "sleep", pauses.append)
        with pytest.raises(UserError, match=r"cannot be listed \(NoCredentialsError: Unable to locate cred"):
            found("s3://bucket/dir")
        assert not s3.requests and not pauses

    def test_keys_in_an_address_are_refused_and_not_shown(self) -> None:
        with pytest.raises(UserError, match=r"s3://bucket/a: keys belong in the environment") as failure:
            found("s3://dummy-key:dummy-secret@bucket/a")
        assert "dummy" not in str(failure.value)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_records_are_those_of_the_local_files(tmp_path: Path, s3: S3Server, kind: Any) -> None:
    for number in range(2):
        texts = [f"document {number} {i} \u00e9 " * (i % 5 + 1) for i in range(300)]
        path = tmp_path / f"{number}.{kind}"
        if kind == "parquet":
            pq.write_table(pa.table({"text": texts}), path, row_group_size=40)
        else:
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        s3.buckets["bucket"][f"dir/{path.name}"] = path.read_bytes()
    local = make_reader(Source(type=kind, path=f"{tmp_path}/*.{kind}"), split_bytes=4000)
    expected = read_all(local)
    assert len(expected) == 600
    # Trouble at every second part: broken, stalled and turned away in turn, each after a few bytes or none.
    s3.keep = 700
    s3.trouble = lambda method, number, start: (None, "drop", None, SLOW_DOWN, None, (500, "InternalError"))[
        number % 6
    ]
    elsewhere = make_reader(Source(type=kind, path=f"s3://bucket/dir/*.{kind}"), split_bytes=4000)
    assert read_all(elsewhere) == expected
    assert len(s3.ranges) > 6


def test_a_part_goes_on_where_the_connection_broke(s3: S3Server, stored: File) -> None:
    s3.keep = 700_000
    s3.trouble = lambda method, number, start: "drop" if number in (1, 2) else None
    with ByteReader(stored) as file:
        assert file.read_at(0, 2_000_000) == CONTENT[:2_000_000]
    starts = [start for start, _ in s3.ranges]
    assert starts[:2] == [0, 700_000]
    assert starts == sorted(set(starts))


@pytest.mark.parametrize(("keep", "goes_on_at"), [(0, 0), (1000, 1000)])
def test_a_stalled_connection_is_given_up(s3: S3Server, stored: File, keep: int, goes_on_at: int) -> None:
    s3.keep = keep
    s3.trouble = lambda method, number, start: "stall" if number == 1 else None
    with ByteReader(stored, RetryPolicy(2, 0.001, 0.3)) as file:
        assert file.read_at(0, 10) == CONTENT[:10]
    assert s3.ranges[1][0] == goes_on_at
    assert not s3.outwaited


def test_no_more_is_taken_than_was_asked_for(s3: S3Server, stored: File) -> None:
    s3.trouble = lambda method, number, start: "flood"
    with ByteReader(stored) as file:
        assert len(file.read_at(0, 10)) == 10
    assert s3.taken_of_flood() < FLOOD_BYTES // 2


@pytest.mark.parametrize("trouble", [SLOW_DOWN, (500, "InternalError"), (400, "RequestTimeout"), "drop"])
def test_a_store_that_stays_broken_is_told_with_the_place(s3: S3Server, stored: File, trouble: Any) -> None:
    s3.trouble = lambda method, number, start: trouble if start >= 1000 else None
    with ByteReader(stored, RetryPolicy(2, 0.001, 30.0)) as file:
        file.read_at(0, 10)
        asked = len(s3.ranges)
        with pytest.raises(
            RunFault, match=r"^s3://bucket/a.bin: cannot be read from byte 1000000 on after 3 attempts \("
        ) as failure:
            file.read_at(1_000_000, 10)
    assert "dummy" not in str(failure.value) and s3.url not in str(failure.value)
    assert len(s3.ranges) == asked + 3  # nobody below tries again in its own way


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (404, "NoSuchKey")])
def test_what_no_patience_mends_is_told_at_once(s3: S3Server, stored: File, status: int, code: str) -> None:
    s3.trouble = lambda *request: (status, code)
    with (
        ByteReader(stored) as file,
        pytest.raises(RunFault, match=r"from byte 5 on \(\w+Error: as") as failure,
    ):
        file.read_at(5, 10)
    assert SECRET not in str(failure.value)
    assert len(s3.requests) == 1


@pytest.mark.parametrize(
    "changed", [CONTENT[::-1], CONTENT + b"more", CONTENT[:2_000_000], CONTENT[:500_000]]
)
def test_an_object_that_changes_is_told(s3: S3Server, changed: bytes) -> None:
    s3.buckets["bucket"]["a.bin"] = CONTENT
    (listed,) = list_files(Source(type="text", path="s3://bucket/*.bin"), "p")
    with ByteReader(listed) as file:
        file.read_at(0, 10)
        s3.buckets["bucket"]["a.bin"] = changed
        with pytest.raises(RunFault, match=r"^s3://bucket/a.bin: the file changed while the job runs \(it"):
            file.read_at(1_000_000, 10)
    # Nor does a new reader trust what the listing had told.
    with ByteReader(listed) as file, pytest.raises(RunFault, match="the file changed while the job runs"):
        file.read_at(0, 10)
