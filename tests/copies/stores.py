"""Stores of this machine that take files, and misbehave on command."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from llmkit.copies import catalogue
from llmkit.copies.store import Store
from tests.data.sources.s3_server import S3Server, tag
from tests.data.sources.servers import WebServer
from tests.limits import HANG

Trouble = Callable[[str, int, str], str | int | None]
"""Called with a request's method, its number among those that write, and its path; returns what to do instead
of obeying: "stall" (takes nothing more), "drop", "lose" (says yes and keeps nothing), "flip" (keeps another
bit), an HTTP status, or None."""


def copied_steps(url: str) -> list[int]:
    """The steps of the complete copies beneath a URL, ascending."""
    found = catalogue.read(Store(url))
    return [] if found is None else [each.step for each in found.complete]


def body_of(handler: BaseHTTPRequestHandler) -> bytes:
    """What a request brings."""
    if handler.headers.get("Transfer-Encoding") == "chunked":
        body = b""
        while size := int(handler.rfile.readline(), 16):
            body += handler.rfile.read(size)
            handler.rfile.readline()
        handler.rfile.readline()
        return body
    return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))


class Writing:
    """What both servers do with requests that write: counts them, and makes trouble."""

    def begin(self) -> None:
        self.writes: list[str] = []
        self.write_trouble: Trouble = lambda method, number, path: None

    def troubled(
        self, handler: BaseHTTPRequestHandler, release: Callable[[float], object]
    ) -> str | int | None:
        path = unquote(handler.path)
        self.writes.append(f"{handler.command} {path}")
        trouble = self.write_trouble(handler.command, len(self.writes), path)
        if trouble == "stall":
            release(HANG)
        if trouble in ("stall", "drop"):
            handler.close_connection = True
        return trouble


class PutServer(WebServer, Writing):
    """A web server that takes files by PUT, and deletes them."""

    def __init__(self) -> None:
        self.begin()
        super().__init__()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        if handler.command in ("GET", "HEAD"):
            return super().answer(handler)
        trouble = self.troubled(handler, self.released.wait)
        if trouble in ("stall", "drop"):
            return None
        body = body_of(handler)
        if isinstance(trouble, int):
            return self._status(handler, trouble)
        if handler.command == "DELETE":
            return self._status(handler, 204 if self.files.pop(handler.path, None) is not None else 404)
        if trouble == "flip":
            body = bytes([body[0] ^ 1]) + body[1:]
        if trouble != "lose":
            self.files[handler.path] = body
        return self._status(handler, 201)


class S3Store(S3Server, Writing):
    """S3 that takes objects, whole and in parts; it checks their MD5. uploads: parts by number by id."""

    def reset(self) -> None:
        super().reset()
        self.begin()
        self.uploads: dict[str, dict[int, bytes]] = {}

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        if handler.command in ("GET", "HEAD"):
            return super().answer(handler)
        address = urlsplit(handler.path)
        bucket, _, key = unquote(address.path).lstrip("/").partition("/")
        query = parse_qs(address.query, keep_blank_values=True)
        trouble = self.troubled(handler, self.released.wait)
        if trouble in ("stall", "drop"):
            return None
        body = body_of(handler)
        if isinstance(trouble, int):
            return self._error(handler, trouble, "SlowDown" if trouble == 503 else "AccessDenied")
        if bucket not in self.buckets:
            return self._error(handler, 404, "NoSuchBucket")
        given = handler.headers.get("Content-MD5")
        assert "aws-chunked" not in handler.headers.get("Content-Encoding", ""), "some stores cannot read it"
        if trouble == "flip":
            body = bytes([body[0] ^ 1]) + body[1:]
        if given is not None and given != base64.b64encode(hashlib.md5(body).digest()).decode():
            return self._error(handler, 400, "BadDigest")
        return self._obey(handler, self.buckets[bucket], key, query, body)

    def _obey(
        self, handler: BaseHTTPRequestHandler, objects: dict[str, bytes], key: str,
        query: dict[str, list[str]], body: bytes,
    ) -> None:  # fmt: skip
        upload = query.get("uploadId", [""])[0]
        if handler.command == "DELETE":
            if upload:
                self.uploads.pop(upload, None)
            else:
                objects.pop(key, None)
            return self._send(handler, 204, b"", {})
        if "uploads" in query:
            upload = f"upload-{len(self.writes)}"
            self.uploads[upload] = {}
            return self._answer(handler, "InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>")
        if handler.command == "POST":
            parts = self.uploads.pop(upload)
            objects[key] = b"".join(parts[number] for number in sorted(parts))
            digest = hashlib.md5(b"".join(hashlib.md5(parts[number]).digest() for number in sorted(parts)))
            etag = f'"{digest.hexdigest()}-{len(parts)}"'
            return self._answer(handler, "CompleteMultipartUploadResult", f"<ETag>{etag}</ETag>")
        if upload:
            self.uploads[upload][int(query["partNumber"][0])] = body
        else:
            objects[key] = body
        return self._send(handler, 200, b"", {"ETag": tag(body)})

    def _answer(self, handler: BaseHTTPRequestHandler, kind: str, inside: str) -> None:
        text = f"<{kind}>{inside}</{kind}>"
        handler.send_response(200)
        handler.send_header("Content-Type", "application/xml")
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text.encode())
