"""One attempt at reading bytes of a file elsewhere, and what is known of that file.

Web servers are asked through fsspec's own aiohttp session, and S3 through the client of s3fs (s3.py): only
the answer itself tells whether it is still the same file and what of it came before the connection broke.
All other stores are asked through fsspec's `cat_file`, in a thread that is left behind if it hangs.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

from llmkit.errors import UserError

Value = TypeVar("Value")

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_DRIVERS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
_TAGS = ("ETag", "etag", "blob_id", "xet_hash", "md5Hash", "checksum")
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")
"""What stores call that by which a change of a file shows, the best first."""
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_FINAL = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError"}
)
"""Errors of botocore, by name since it may not be installed."""
_KEYS_ELSEWHERE = frozenset({"s3", "s3a", "gs", "gcs"})
"""Schemes whose addresses have no place for a user: what stands there would be taken for the bucket."""


class Head(NamedTuple):
    """What a store tells of a file. size: bytes. tag: ETag, checksum or time of the last change, else ""."""

    size: int
    tag: str


class FailedError(Exception):
    """An attempt that failed. final: another one would fail as well."""

    def __init__(self, reason: str, final: bool) -> None:
        super().__init__(reason)
        self.final = final


class ChangedError(Exception):
    """The file is not the one that was listed."""


class Fetcher(Protocol):
    """Reads one file; both methods raise FailedError."""

    def head(self) -> Head:
        """What the store tells now."""

    def get(self, start: int, count: int, expected: Head) -> bytes:
        """Bytes from `start` on, fewer if the connection broke; raises ChangedError if it is another file."""


def is_url(path: str) -> bool:
    """Whether a path names a file elsewhere."""
    return _URL.match(path) is not None


def shown(path: str) -> str:
    """A path as messages may have it: of a URL without user, password and query, which may be secrets."""
    if "::" in path:  # fsspec's way to write a file in an archive elsewhere
        return "::".join(map(shown, path.split("::")))
    if not is_url(path):
        return path
    parts = urlsplit(path)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def open_filesystem(url: str, stall_seconds: float) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it; raises UserError where its driver is missing."""
    import fsspec

    from llmkit.data.sources import s3

    scheme = urlsplit(url).scheme.lower()
    if scheme in _KEYS_ELSEWHERE and "@" in urlsplit(url).netloc:
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
        raise UserError(f"{shown(url)}: reading {scheme}:// needs one more package: {remedy}") from error
    except ValueError as error:
        raise UserError(f"{shown(url)}: cannot be opened ({told(error)})") from error
    return filesystem, path


def fetcher(url: str, stall_seconds: float) -> Fetcher:
    """What reads a URL."""
    from llmkit.data.sources import s3

    filesystem, path = open_filesystem(url, stall_seconds)
    scheme = urlsplit(url).scheme.lower()
    if scheme in ("http", "https"):
        return _WebFile(filesystem, path)
    if scheme in s3.SCHEMES:
        return s3.ObjectFile(filesystem, path)
    return _StoredFile(filesystem, path, stall_seconds)


def attempt(function: Callable[[], Value]) -> Value:
    """What `function` returns; any error of a store or network becomes a FailedError."""
    try:
        return function()
    except (FailedError, ChangedError, UserError):
        raise
    except Exception as error:
        status = status_of(error)
        final = isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError)
        final = final or any(type(one).__name__ in _FINAL for one in _chain(error))
        # S3 calls it 400 where it waited too long for a request.
        final = final or (
            400 <= status < 600 and status not in _TRANSIENT and not isinstance(error, TimeoutError)
        )
        raise FailedError(told(error), final) from error


def status_of(error: BaseException) -> int:
    """HTTP's status in an error of any library, or 0."""
    for one in _chain(error):
        answer = getattr(one, "response", None)
        if isinstance(answer, Mapping):  # of botocore; in requests and httpx it is an object
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:  # aiohttp has the status itself
            status = getattr(one, "status", None) or getattr(answer, "status_code", None)
        if isinstance(status, int) and status:
            return status
    return 0


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was made of."""
    while error is not None:
        yield error
        error = error.__cause__


def in_thread(function: Callable[[], Value]) -> Future[Value]:
    """Runs in a thread that no one has to wait for, not even the end of the program."""
    future: Future[Value] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="llmkit-fetch").start()
    return future


def told(error: BaseException) -> str:
    """An error in one line, without secrets in URLs."""
    text = " ".join(str(error).split())
    text = re.sub(_URL.pattern + r"\S+", lambda match: shown(match[0]), text)
    name = type(error).__name__
    return f"{name}: {text:.300}" if text else name


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
            except Exception:
                if not received:
                    raise
            return head, bytes(received[:count])


def head_of_part(status: int, reason: str | None, headers: Mapping[str, str], start: int) -> Head:
    """Size and tag from an answer to a request for the part of a file from `start` on; raises FailedError."""
    tag = headers.get("ETag") or headers.get("Last-Modified") or ""
    part, _, total = headers.get("Content-Range", "").partition("/")
    # 416: there is nothing at this place, the file is shorter.
    if total.isdecimal() and (status == 416 or (status == 206 and part.startswith(f"bytes {start}-"))):
        return Head(int(total), tag)
    if status in (200, 206):
        raise FailedError("the server does not serve parts of files (byte ranges); download the file", True)
    raise FailedError(f"HTTP {status} {reason or ''}".strip(), status not in _TRANSIENT)


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
