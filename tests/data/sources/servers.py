"""Servers of this machine that misbehave on command."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.limits import HANG

FLOOD_BYTES = 64 << 20


class LocalServer:
    """Answers requests in threads of its own, until `close`; what it answers is up to `answer`."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self._flood_is_over = threading.Event()
        self._flooded = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # head and body are two packets

            def do_GET(self) -> None:
                server.answer(self)

            def do_HEAD(self) -> None:
                server.answer(self)

            do_PUT = do_POST = do_DELETE = do_GET

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
        raise NotImplementedError

    def flood(self, handler: BaseHTTPRequestHandler) -> None:
        """Write FLOOD_BYTES, or as much as the client takes."""
        try:
            while self._flooded < FLOOD_BYTES:
                self._flooded += handler.wfile.write(bytes(1 << 20))
        except OSError:
            pass
        finally:
            self._flood_is_over.set()
            handler.close_connection = True

    def taken_of_flood(self) -> int:
        """Bytes of a flood that a client took, when it is over."""
        assert self._flood_is_over.wait(HANG)
        return self._flooded

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


class WebServer(LocalServer):
    """A web server of files in memory that misbehaves on command.

    trouble: called with the number of the request for a part of a file and its range; returns what to do
    instead of answering: "drop" (after `keep` bytes), "stall", "flood" (more than was asked for), an HTTP
    status, or None.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.tag = '"one"'
        self.serves_ranges = True
        self.tells_size = True  # beside a range
        self.serves_heads = True
        self.keep = 0
        self.trouble: Callable[[int, int, int], str | int | None] = lambda number, start, end: None
        self.ranges: list[tuple[int, int]] = []
        super().__init__()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        content = self.files.get(handler.path.partition("?")[0])
        if content is None:
            return self._status(handler, 404)
        if handler.command == "HEAD" and not self.serves_heads:
            return self._status(handler, 405)
        wanted = handler.headers.get("Range")
        if wanted is None or not self.serves_ranges:
            return self._send(handler, 200, content, content, "")
        first, last = wanted.removeprefix("bytes=").split("-")
        start, end = int(first), min(int(last) + 1, len(content))
        size = len(content) if self.tells_size else "*"
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
        if trouble == "flood":
            self._send(handler, 206, bytes(FLOOD_BYTES), b"", f"bytes {start}-{end - 1}/{size}")
            return self.flood(handler)
        sent = content[start:end] if trouble is None else content[start : min(end, start + self.keep)]
        self._send(handler, 206, content[start:end], sent, f"bytes {start}-{end - 1}/{size}")
        if trouble == "stall":
            self.released.wait(HANG)
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
