"""A store that speaks as much of S3's language as listing and reading need, and misbehaves on command."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest
from s3fs import S3FileSystem

from tests.data.sources.servers import FLOOD_BYTES, LocalServer
from tests.limits import HANG

SECRET = "dummy-secret-of-the-tests"


class S3Server(LocalServer):
    """Buckets in memory, addressed by path; signatures are not checked.

    buckets: content by key by bucket. trouble: called with the request's method, its number among those for
    parts of objects (0 for any other) and its first byte; returns what to do instead of answering: "drop" or
    "stall" (after `keep` bytes), "flood" (more than was asked for), a status with an error's code, or None.
    ranges: [start, end) of the parts that were asked for. page: keys in an answer to a listing. outwaited: a
    client bore a stall to its end.
    """

    def __init__(self) -> None:
        self.reset()
        super().__init__()

    def reset(self) -> None:
        """Forget all objects, requests and commands."""
        self.buckets: dict[str, dict[str, bytes]] = {}
        self.trouble: Callable[[str, int, int], str | tuple[int, str] | None] = lambda *request: None
        self.keep = 0
        self.outwaited = False
        self.page = 1000
        self.ranges: list[tuple[int, int]] = []
        self.requests: list[str] = []

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        address = urlsplit(handler.path)
        bucket, _, key = unquote(address.path).lstrip("/").partition("/")
        self.requests.append(f"{handler.command} {unquote(handler.path)}")
        wanted = handler.headers.get("Range")
        start, end = map(int, wanted.removeprefix("bytes=").split("-")) if wanted else (0, 0)
        if wanted:
            self.ranges.append((start, end + 1))
        trouble = self.trouble(handler.command, len(self.ranges) if wanted else 0, start)
        if isinstance(trouble, tuple):
            self._error(handler, *trouble)
        elif bucket not in self.buckets:
            self._error(handler, 404, "NoSuchBucket")
        elif not key:
            listed = b"" if handler.command == "HEAD" else self._list(bucket, parse_qs(address.query))
            self._send(handler, 200, listed, {"Content-Type": "application/xml"})
        elif key not in self.buckets[bucket]:
            self._error(handler, 404, "NoSuchKey")
        else:
            self._object(handler, self.buckets[bucket][key], (start, end + 1) if wanted else None, trouble)

    def _object(
        self,
        handler: BaseHTTPRequestHandler,
        content: bytes,
        part: tuple[int, int] | None,
        trouble: str | None,
    ) -> None:
        headers = {"ETag": tag(content), "Last-Modified": "Sat, 01 Aug 2026 12:00:00 GMT"}
        if part is None:
            return self._send(handler, 200, content, headers)
        start, end = part[0], min(part[1], len(content))
        if start >= len(content):
            return self._error(handler, 416, "InvalidRange")
        if trouble == "flood":
            headers["Content-Length"] = str(FLOOD_BYTES)
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        self._send(handler, 206, content[start:end], headers, self.keep if trouble else None)
        if trouble == "flood":
            return self.flood(handler)
        if trouble == "stall":
            self.outwaited = not self.released.wait(HANG)
        handler.close_connection = trouble is not None
        return None

    def _list(self, bucket: str, query: dict[str, list[str]]) -> bytes:
        """What ListObjectsV2 answers."""
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        after = query.get("continuation-token", [""])[0]
        entries: dict[str, str] = {}  # the XML of each key, or common beginning of keys, in order
        for key, content in sorted(self.buckets[bucket].items()):
            rest = key.removeprefix(prefix)
            if not key.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                folder = prefix + rest.partition(delimiter)[0] + delimiter
                entries[folder] = f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"
            else:
                entries[key] = (
                    f"<Contents><Key>{escape(key)}</Key><Size>{len(content)}</Size>"
                    f"<ETag>{escape(tag(content))}</ETag><StorageClass>STANDARD</StorageClass>"
                    "<LastModified>2026-08-01T12:00:00.000Z</LastModified></Contents>"
                )
        names = [name for name in entries if name > after]
        page = names[: min(self.page, int(query.get("max-keys", ["1000"])[0]))]
        is_cut = len(page) < len(names)
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if is_cut else ""
        return (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount>"
            f"<IsTruncated>{str(is_cut).lower()}</IsTruncated>{token}"
            f"{''.join(entries[name] for name in page)}</ListBucketResult>"
        ).encode()

    def _error(self, handler: BaseHTTPRequestHandler, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>as the test wants it</Message></Error>".encode()
        self._send(handler, status, body, {"Content-Type": "application/xml"})

    def _send(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        content: bytes,
        headers: dict[str, str],
        keep: int | None = None,
    ) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(content[:keep])
            handler.wfile.flush()


def tag(content: bytes) -> str:
    """The ETag of an object."""
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


@contextmanager
def s3_is(server: S3Server, nowhere: Path) -> Iterator[None]:
    """In here s3:// means this server, which is closed behind it; no proxy is between, no key is that of the
    user. nowhere: a path at which nothing is. For many tests, since making a client takes long."""
    settings = {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "dummy-key-of-the-tests",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(nowhere),
        "AWS_SHARED_CREDENTIALS_FILE": str(nowhere),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("AWS_") or name.lower().endswith("_proxy"):
                patch.delenv(name)
        for name, value in settings.items():
            patch.setenv(name, value)
        yield
    S3FileSystem.clear_instance_cache()
    server.close()
