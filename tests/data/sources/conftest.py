from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmkit.config.schema import Source
from llmkit.data.sources import byte_reader
from llmkit.data.sources.files import list_files
from llmkit.data.sources.reader import RawRecord, SourceReader
from llmkit.data.sources.records import Policy
from llmkit.data.sources.retries import RetryPolicy
from llmkit.data.sources.splits import split_files
from tests.data.sources.servers import WebServer
from tests.limits import HANG

Reading = Callable[..., list[RawRecord]]


def make_reader(source: Source, errors: Policy = "skip", split_bytes: int = 1 << 20) -> SourceReader:
    files = list_files(source, "data.sources.0")
    splits = split_files(source, files, split_bytes, "data.sources.0")
    return SourceReader(source, "toy", "data.sources.0", errors, files, splits)


def read_all(reader: SourceReader) -> list[RawRecord]:
    return [raw for split in range(len(reader.splits)) for raw in reader.read(split)]


@pytest.fixture
def reader_of() -> Callable[..., SourceReader]:
    """Lists, cuts and opens a source."""
    return make_reader


@pytest.fixture
def records_of() -> Callable[..., list[Any]]:
    """The records, and what is left out, of all splits of a source."""
    return lambda *args, **kwargs: [c.record for c in read_all(make_reader(*args, **kwargs))]


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(byte_reader, "RETRIES", RetryPolicy(2, first_delay=0.001, stall_seconds=HANG))
    server = WebServer()
    yield server
    server.close()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes], str]:
    """Writes a file and returns its path."""

    def write(name: str, content: bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return str(path)

    return write
