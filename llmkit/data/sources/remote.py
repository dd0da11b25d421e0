"""A remote file: its size and ETag, and byte ranges of it, one request at a time.

Web servers are asked through fsspec's aiohttp session and S3 through s3fs's client, so that the answer itself
shows whether it is still the file that was listed, and so that what came before a connection broke is kept.
All other stores are asked by fsspec's `cat_file`, in a thread that is abandoned if it hangs.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from llmkit.data.sources.retries import (
    MISSING,
    TRANSIENT,
    RequestError,
    Value,
    http_answer,
    in_thread,
    one_line,
    seconds_of,
)
from llmkit.data.sources.urls import redact_url
from llmkit.errors import UserError

WEB, S3 = ("http", "https"), ("s3", "s3a")
"""Schemes of web servers, and of S3 and stores that speak its language."""
_DRIVERS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
_CHUNK_BYTES = 64 << 10
_ETAGS = ("ETag", "etag", "blob_id", "xet_hash", "md5Hash", "checksum")
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")
"""What stores call that by which a change of a file shows, the best first."""


UNKNOWN = -1
"""Size of a file of which a server tells none beside a range."""


class FileStat(NamedTuple):
    """What a store says of a file.

    size: bytes, or UNKNOWN. tag: ETag, checksum or time of the last change, else "".
    """

    size: int
    tag: str


class ChangedError(RequestError):
    """The file is not the one that was listed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, final=True)


def stat_of_info(info: Mapping[str, Any]) -> FileStat:
    """Size and tag by fsspec's `info`; raises RequestError where the store does not tell the size."""
    size = info.get("size")
    if size is None:
        raise RequestError("the store does not tell the file's size", final=True)
    return FileStat(int(size), next((str(info[key]) for key in _ETAGS + _TIMES if info.get(key)), ""))


def stat_of_answer(status: int, reason: str | None, headers: Mapping[str, str], start: int) -> FileStat:
    """Size and tag by an answer to a request for a range from `start` on.

    Raises RequestError where it is no such range, unless it says that the file is empty.

    >>> stat_of_answer(206, "OK", {"ETag": '"a1"', "Content-Range": "bytes 100-199/5000"}, 100)
    FileStat(size=5000, tag='"a1"')
    """
    tag = headers.get("ETag") or headers.get("Last-Modified") or ""
    sent, _, total = headers.get("Content-Range", "").partition("/")
    is_range = status == 206 and sent.startswith(f"bytes {start}-")
    # 416: the file ends before the range.
    if total.isdecimal() and (status == 416 or is_range):
        return FileStat(int(total), tag)
    if is_range and total == "*":
        return FileStat(UNKNOWN, tag)
    if status == 200 and headers.get("Content-Length") == "0":  # of an empty file there is no range
        return FileStat(0, tag)
    if status in (200, 206):
        raise RequestError("the server does not serve parts of files (byte ranges); download the file", True)
    raise _refusal(status, reason, headers)


def _refusal(status: int, reason: str | None, headers: Mapping[str, str]) -> RequestError:
    failure, wait = f"HTTP {status} {reason or ''}".strip(), seconds_of(headers.get("Retry-After"))
    return RequestError(failure, status not in TRANSIENT, status in MISSING, wait)


def check_unchanged(expected: FileStat, now: FileStat) -> None:
    """Raises ChangedError unless a file is still what it was."""
    if now.size not in (expected.size, UNKNOWN):
        raise ChangedError(f"it had {expected.size} bytes and has {now.size}")
    if expected.tag and now.tag and now.tag != expected.tag:
        raise ChangedError(f"its tag was {expected.tag} and is {now.tag}")


def open_filesystem(url: str, stall_seconds: float) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it.

    Raises UserError for what is no valid URL, and where the driver is missing.
    """
    import fsspec

    try:
        parts = urlsplit(url)
    except ValueError:  # whose text may hold a password
        raise UserError(f"{redact_url(url)}: is no valid URL: no host can be read in it") from None
    scheme, options = parts.scheme.lower(), dict[str, Any]()
    if scheme in (*S3, "gs", "gcs") and "@" in parts.netloc:  # which would be taken for the bucket
        raise UserError(
            f"{redact_url(url)}: keys belong in the environment or the cloud's own files, not in the address"
        )
    try:
        if scheme in S3:
            limits = {"connect_timeout": stall_seconds, "read_timeout": stall_seconds}
            options["config_kwargs"] = {**limits, "retries": {"total_max_attempts": 1}}
        if scheme in WEB:
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=stall_seconds, sock_read=stall_seconds)
            options["client_kwargs"] = {"timeout": timeout, "trust_env": True}  # heeds HTTPS_PROXY
        filesystem, path = fsspec.core.url_to_fs(url, **options)
        if scheme in S3:
            filesystem.retries = 1  # only `with_retries` makes a request again
    except ImportError as error:
        driver = _DRIVERS.get(scheme)
        remedy = f"pip install {driver}" if driver else str(error)
        raise UserError(f"{redact_url(url)}: {scheme}:// needs one more package: {remedy}") from error
    except ValueError as error:
        raise UserError(f"{redact_url(url)}: cannot be opened ({one_line(error)})") from error
    return filesystem, path


def remote_file(url: str, stall_seconds: float) -> RemoteFile:
    """A file by its URL; see `open_filesystem`."""
    filesystem, path = open_filesystem(url, stall_seconds)
    scheme = urlsplit(url).scheme.lower()
    kind = _WebFile if scheme in WEB else _S3Object if scheme in S3 else RemoteFile
    return kind(filesystem, path, stall_seconds)


class RemoteFile:
    """A file that fsspec reads. Its methods raise what the store's library raises: see `with_retries`."""

    def __init__(self, filesystem: Any, path: str, stall_seconds: float) -> None:
        self._filesystem, self._path, self._limit = filesystem, path, stall_seconds
        self._is_checked = False
        # The hub's files are otherwise read 5 MiB further than asked for.
        self._options = {"cache_type": "none"} if "hf" in filesystem.protocol else {}

    def stat(self) -> FileStat:
        """What the store says now, or has said when the file was listed."""
        return stat_of_info(self._limited(lambda: self._filesystem.info(self._path)))

    def read(self, start: int, count: int, expected: FileStat) -> bytes:
        """Bytes from `start` on, fewer if the connection broke; raises ChangedError for another file."""
        # An answer has no tag: the file is compared before the first range, and after a failure.
        if not self._is_checked:
            if not self._options:  # the hub's addresses name a commit, whose files never change
                self._filesystem.invalidate_cache(self._path)
            check_unchanged(expected, self.stat())
        self._is_checked = False
        # By name: file systems differ in the order of arguments.
        read, end = self._filesystem.cat_file, start + count
        content = self._limited(lambda: read(self._path, start=start, end=end, **self._options))
        self._is_checked = len(content) == count
        if not self._is_checked:
            self._filesystem.invalidate_cache()
        return content

    def _limited(self, request: Callable[[], Value]) -> Value:
        try:
            return in_thread(request).result(self._limit)
        except TimeoutError:
            raise RequestError(f"no answer in {self._limit:g} s", final=False) from None

    def _await(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a coroutine returns, in the event loop of the store's library."""
        from fsspec.asyn import sync

        return sync(self._filesystem.loop, function, *arguments)


class _WebFile(RemoteFile):
    """A file of a web server."""

    def stat(self) -> FileStat:
        # The request that reading makes: shows whether the server serves ranges at all.
        found: FileStat = self._await(self._request, 0, 1, None)[0]
        return found if found.size != UNKNOWN else FileStat(self._await(self._length), found.tag)

    def read(self, start: int, count: int, expected: FileStat) -> bytes:
        return self._await(self._request, start, count, expected)[1]

    async def _request(self, start: int, count: int, expected: FileStat | None) -> tuple[FileStat, bytes]:
        session = await self._filesystem.set_session()
        headers = {"Range": _range(start, count), "Accept-Encoding": "identity"}
        async with session.get(self._filesystem.encode_url(self._path), headers=headers) as answer:
            stat = stat_of_answer(answer.status, answer.reason, answer.headers, start)
            if expected is not None:
                check_unchanged(expected, stat)
            return stat, await _received(answer.content.iter_any(), count) if answer.status == 206 else b""


    async def _length(self) -> int:
        session = await self._filesystem.set_session()
        url, headers = self._filesystem.encode_url(self._path), {"Accept-Encoding": "identity"}
        async with session.head(url, headers=headers, allow_redirects=True) as answer:
            if answer.status in (403, 405, 501):  # parts of it were read, so it is HEAD that is refused
                failure = f"the server does not tell the file's size (HTTP {answer.status} to HEAD)"
                raise RequestError(f"{failure}; download the file", final=True)
            if answer.status != 200:
                raise _refusal(answer.status, answer.reason, answer.headers)
            length = answer.headers.get("Content-Length", "")
            if not length.isdecimal():
                raise RequestError("the server does not tell the file's size; download the file", True)
            return int(length)


class _S3Object(RemoteFile):
    """An object of S3. `cat_file` of s3fs would begin a broken range again, and does not tell the ETag."""

    def read(self, start: int, count: int, expected: FileStat) -> bytes:
        bucket, key, _ = self._filesystem.split_path(self._path)
        where = {"Bucket": bucket, "Key": key, "Range": _range(start, count)}
        try:
            answer = self._filesystem.call_s3("get_object", **where)
        except OSError as error:
            if http_answer(error)[0] == 416:
                what = f"it had {expected.size} bytes and ends before byte {start}"
                raise ChangedError(what) from error
            raise
        return self._await(self._content, answer, start, count, expected)

    async def _content(self, answer: Any, start: int, count: int, expected: FileStat) -> bytes:
        headers = {"ETag": answer.get("ETag", ""), "Content-Range": answer.get("ContentRange", "")}
        try:
            status = answer["ResponseMetadata"]["HTTPStatusCode"]
            check_unchanged(expected, stat_of_answer(status, "", headers, start))
            return await _received(answer["Body"].iter_chunks(_CHUNK_BYTES), count)
        finally:
            answer["Body"].close()  # what is left of the answer is not waited for


def _range(start: int, count: int) -> str:
    return f"bytes={start}-{start + count - 1}"


async def _received(chunks: AsyncIterable[bytes], count: int) -> bytes:
    """At most `count` bytes; where the connection breaks, those that came before, if any did."""
    received = bytearray()
    try:
        async for chunk in chunks:
            received += chunk
            if len(received) > count:  # not before: a connection is used again once the end was seen
                break
    except Exception:
        if not received:
            raise
    return bytes(received[:count])
