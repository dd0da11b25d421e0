"""Reads bytes of a remote file, an attempt at a time.

Web servers are asked through fsspec's own aiohttp session, and S3 through the client of s3fs (s3.py): only
the answer itself tells whether it is still the same file and what of it came before the connection broke.
All other stores are asked through fsspec's `cat_file`, in a thread that is left behind if it hangs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import urlsplit

from llmkit.data.sources import s3
from llmkit.data.sources.attempts import FailedError, Value, attempt, in_thread, told
from llmkit.data.sources.heads import Head, compare, head_of_info, head_of_part
from llmkit.data.sources.urls import shown
from llmkit.errors import UserError

_DRIVERS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
_KEYS_ELSEWHERE = frozenset({"s3", "s3a", "gs", "gcs"})
"""Schemes whose addresses have no place for a user: what stands there would be taken for the bucket."""


class Fetcher(Protocol):
    """Reads one file; both methods raise FailedError."""

    def head(self) -> Head:
        """What the store tells now."""

    def get(self, start: int, count: int, expected: Head) -> bytes:
        """Bytes from `start` on, fewer if the connection broke; raises ChangedError if it is another file."""


def open_filesystem(url: str, stall_seconds: float) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it.

    Raises UserError for what is no valid URL, and where the driver is missing.
    """
    import fsspec

    try:
        parts = urlsplit(url)
    except ValueError:  # whose text may hold a password
        raise UserError(f"{shown(url)}: is no valid URL: no host can be read in it") from None
    scheme = parts.scheme.lower()
    if scheme in _KEYS_ELSEWHERE and "@" in parts.netloc:
        raise UserError(
            f"{shown(url)}: keys belong in the environment or the cloud's own files, not in the address"
        )
    options = s3.options(stall_seconds) if scheme in s3.SCHEMES else {}
    try:
        if scheme in ("http", "https"):
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=stall_seconds, sock_read=stall_seconds)
            options["client_kwargs"] = {"timeout": timeout, "trust_env": True}  # heeds HTTPS_PROXY
        filesystem, path = fsspec.core.url_to_fs(url, **options)
        if scheme in s3.SCHEMES:
            filesystem.retries = 1  # all patience is that of the callers
    except ImportError as error:
        driver = _DRIVERS.get(scheme)
        remedy = f"pip install {driver}" if driver else str(error)
        raise UserError(f"{shown(url)}: {scheme}:// needs one more package: {remedy}") from error
    except ValueError as error:
        raise UserError(f"{shown(url)}: cannot be opened ({told(error)})") from error
    return filesystem, path


def fetcher(url: str, stall_seconds: float) -> Fetcher:
    """What reads a URL."""
    filesystem, path = open_filesystem(url, stall_seconds)
    scheme = urlsplit(url).scheme.lower()
    if scheme in ("http", "https"):
        return _WebFile(filesystem, path)
    if scheme in s3.SCHEMES:
        return s3.ObjectFile(filesystem, path)
    return _StoredFile(filesystem, path, stall_seconds)


class _WebFile:
    """A file of a web server."""

    def __init__(self, filesystem: Any, url: str) -> None:
        self._filesystem, self._url = filesystem, url

    def head(self) -> Head:
        # The very request that reading makes: tells whether the server serves parts of files at all.
        return self._sync(0, 1, None)[0]

    def get(self, start: int, count: int, expected: Head) -> bytes:
        return self._sync(start, count, expected)[1]

    def _sync(self, start: int, count: int, expected: Head | None) -> tuple[Head, bytes]:
        from fsspec.asyn import sync

        return attempt(lambda: sync(self._filesystem.loop, self._ask, start, count, expected))

    async def _ask(self, start: int, count: int, expected: Head | None) -> tuple[Head, bytes]:
        session = await self._filesystem.set_session()
        headers = {"Range": f"bytes={start}-{start + count - 1}", "Accept-Encoding": "identity"}
        async with session.get(self._filesystem.encode_url(self._url), headers=headers) as answer:
            head = head_of_part(answer.status, answer.reason, answer.headers, start)
            if expected is not None:
                compare(expected, head)
            if answer.status != 206:
                return head, b""
            received = bytearray()
            try:
                async for chunk in answer.content.iter_any():
                    received += chunk
                    if len(received) > count:  # not before: the end has to be seen for the next request
                        break
            except Exception:
                if not received:
                    raise
            return head, bytes(received[:count])


class _StoredFile:
    """A file of any other store that fsspec knows."""

    def __init__(self, filesystem: Any, path: str, stall_seconds: float) -> None:
        self._filesystem, self._path, self._limit = filesystem, path, stall_seconds
        self._is_compared = False
        # The hub's files are otherwise read 5 MiB further than asked for.
        self._options = {"cache_type": "none"} if "hf" in filesystem.protocol else {}

    def head(self) -> Head:
        return attempt(lambda: head_of_info(self._limited(lambda: self._filesystem.info(self._path))))

    def get(self, start: int, count: int, expected: Head) -> bytes:
        """See `Fetcher.get`. An answer has no tag: the file is compared at first and after a failure."""
        if not self._is_compared:
            self._forget()
            compare(expected, self.head())
        self._is_compared = False
        content = attempt(lambda: self._limited(lambda: self._read(start, start + count)))
        self._is_compared = len(content) == count
        if not self._is_compared:
            self._filesystem.invalidate_cache()
        return content

    def _forget(self) -> None:
        """Let the store be asked, not what is known from listing it."""
        if not self._options:  # the hub's addresses name a commit, whose files never change
            self._filesystem.invalidate_cache(self._path)

    def _read(self, start: int, end: int) -> bytes:
        # By name: file systems differ in the order of arguments.
        return self._filesystem.cat_file(self._path, start=start, end=end, **self._options)

    def _limited(self, function: Callable[[], Value]) -> Value:
        try:
            return in_thread(function).result(self._limit)
        except TimeoutError:
            raise FailedError(f"no answer in {self._limit:g} s", False) from None
