from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llmkit.config.schema import Source
from llmkit.data.sources import remote
from llmkit.data.sources.listing import list_files
from llmkit.data.sources.reader import Candidate, SourceReader
from llmkit.data.sources.records import Policy
from llmkit.data.sources.units import cut_into_units

Reading = Callable[..., list[Candidate]]


def make_reader(source: Source, errors: Policy = "skip", unit_bytes: int = 1 << 20) -> SourceReader:
    files = list_files(source, "data.sources[0]")
    units = cut_into_units(source, files, unit_bytes, "data.sources[0]")
    return SourceReader(source, "toy", "data.sources[0]", errors, files, units)


def read_all(reader: SourceReader) -> list[Candidate]:
    return [candidate for unit in range(len(reader.units)) for candidate in reader.read(unit)]


@pytest.fixture
def reader_of() -> Callable[..., SourceReader]:
    """Lists, cuts and opens a source."""
    return make_reader


@pytest.fixture
def records_of() -> Callable[..., list[Any]]:
    """The records, and what is left out, of all units of a source."""
    return lambda *args, **kwargs: [c.record for c in read_all(make_reader(*args, **kwargs))]


class WebServer:
    """A web server of files in memory that misbehaves on command.

    trouble: called with the number of the request for a part of a file and its range; returns what to do
    instead of answering: "drop" (after `keep` bytes), "stall", an HTTP status, or None.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.tag = '"one"'
        self.serves_ranges = True
        self.keep = 0
        self.trouble: Callable[[int, int, int], str | int | None] = lambda number, start, end: None
        self.ranges: list[tuple[int, int]] = []
        self.released = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # head and body are two packets

            def do_GET(self) -> None:
                server.answer(self)

            def do_HEAD(self) -> None:
                server.answer(self)

            def log_message(self, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: Any) -> None:
                """Clients that give up are part of the tests."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        content = self.files.get(handler.path.partition("?")[0])
        if content is None:
            return self._status(handler, 404)
        wanted = handler.headers.get("Range")
        if wanted is None or not self.serves_ranges:
            return self._send(handler, 200, content, content, "")
        first, last = wanted.removeprefix("bytes=").split("-")
        start, end = int(first), min(int(last) + 1, len(content))
        if start >= len(content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(content)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return None
        self.ranges.append((start, end))
        trouble = self.trouble(len(self.ranges), start, end)
        if isinstance(trouble, int):
            return self._status(handler, trouble)
        sent = content[start:end] if trouble is None else content[start : min(end, start + self.keep)]
        self._send(handler, 206, content[start:end], sent, f"bytes {start}-{end - 1}/{len(content)}")
        if trouble == "stall":
            self.released.wait(20)
        if trouble:
            handler.close_connection = True
        return None

    def _send(
        self, handler: BaseHTTPRequestHandler, status: int, content: bytes, sent: bytes, place: str
    ) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.send_header("ETag", self.tag)
        if place:
            handler.send_header("Content-Range", place)
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(sent)
            handler.wfile.flush()

    def _status(self, handler: BaseHTTPRequestHandler, status: int) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(remote, "PATIENCE", remote.Patience(retries=2, first_delay=0.001, stall_seconds=5.0))
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
