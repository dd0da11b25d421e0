"""What is known of a remote file: by it a file that changed is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from llmkit.data.sources.attempts import MISSING, TRANSIENT, ChangedError, FailedError

_TAGS = ("ETag", "etag", "blob_id", "xet_hash", "md5Hash", "checksum")
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")
"""What stores call that by which a change of a file shows, the best first."""


class Head(NamedTuple):
    """What a store tells of a file. size: bytes. tag: ETag, checksum or time of the last change, else ""."""

    size: int
    tag: str


def head_of_part(status: int, reason: str | None, headers: Mapping[str, str], start: int) -> Head:
    """Size and tag from an answer to a request for the part of a file from `start` on; raises FailedError."""
    tag = headers.get("ETag") or headers.get("Last-Modified") or ""
    part, _, total = headers.get("Content-Range", "").partition("/")
    # 416: there is nothing at this place, the file is shorter.
    if total.isdecimal() and (status == 416 or (status == 206 and part.startswith(f"bytes {start}-"))):
        return Head(int(total), tag)
    if status in (200, 206):
        raise FailedError("the server does not serve parts of files (byte ranges); download the file", True)
    raise FailedError(f"HTTP {status} {reason or ''}".strip(), status not in TRANSIENT, status in MISSING)


def head_of_info(info: Mapping[str, Any]) -> Head:
    """Size and tag from what fsspec's `info` tells."""
    size = info.get("size")
    if size is None:
        raise FailedError("the store does not tell the file's size", True)
    return Head(int(size), next((str(info[key]) for key in _TAGS + _TIMES if info.get(key)), ""))


def compare(expected: Head, now: Head) -> None:
    """Raise ChangedError unless a file is still what it was."""
    if now.size != expected.size:
        raise ChangedError(f"it had {expected.size} bytes and has {now.size}")
    if expected.tag and now.tag and now.tag != expected.tag:
        raise ChangedError(f"its tag was {expected.tag} and is {now.tag}")
