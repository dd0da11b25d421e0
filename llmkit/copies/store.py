"""Files beneath a URL: written, looked at, read back and deleted.

Names are all that is asked for: no store is listed, since a plain web server cannot be. Every method raises
RequestError, after some attempts where another one may do better, and UserError where the URL cannot be used
at all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol
from urllib.parse import urlsplit

from llmkit.copies.outgoing import BLOCK, Outgoing, Stored, check
from llmkit.data.sources.byte_reader import ByteReader
from llmkit.data.sources.files import File
from llmkit.data.sources.remote import S3, WEB, FileStat, RemoteFile, open_filesystem, remote_file
from llmkit.data.sources.retries import RequestError, RetryPolicy, Value, with_retries
from llmkit.data.sources.urls import redact_url
from llmkit.errors import RunFault

MAX_TEXT = 256 << 20
"""Bytes of a file that is read as a whole, at most."""


class NotAsSentError(RequestError):
    """A file in a store that is missing, or not what was sent there."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, False)


class Attempt:
    """Bytes of one attempt at sending a file. number: of those that the store has taken in it."""

    def __init__(self, sending: Sending, number: int) -> None:
        self._sending, self.number = sending, number

    def add(self, count: int) -> None:
        """Notes that more bytes were taken."""
        self.number += count
        self._sending.furthest = max(self._sending.furthest, self.number)


class Sending:
    """How far the sending of one file has come. furthest: bytes of the attempt that has come furthest; an
    attempt that begins anew is no progress before it comes further than that."""

    def __init__(self) -> None:
        self.furthest = 0

    def attempt(self, start: int = 0) -> Attempt:
        """Another attempt, which has `start` bytes behind it."""
        return Attempt(self, start)


class Traffic:
    """What is known of all that is sent. patience: with failures. stop: set where nothing more may be sent,
    as the copies are another start's now."""

    def __init__(self, patience: RetryPolicy | None = None) -> None:
        self.patience = patience or RetryPolicy()
        self.stop = threading.Event()
        self._lock, self._complete = threading.Lock(), 0
        self._begun: dict[tuple[str, str], Sending] = {}

    @property
    def progress(self) -> int:
        """Bytes that were sent and, where a store proves nothing, read back: of each file those of the
        attempt that has come furthest."""
        with self._lock:
            return self._complete + sum(sending.furthest for sending in self._begun.values())

    @contextmanager
    def sending(self, name: str, file: Stored) -> Iterator[Sending]:
        """The sending of a file, the same one again after it has failed."""
        key = (name, file.digest)
        with self._lock:
            sending = self._begun.setdefault(key, Sending())
        yield sending
        with self._lock:
            self._complete += self._begun.pop(key, Sending()).furthest

    def try_again(self, function: Callable[[], Value]) -> Value:
        """See `with_retries`; a stop ends it."""

        def once() -> Value:
            if self.stop.is_set():
                raise RequestError("it was given up", True)
            return function()

        return with_retries(once, self.patience, self.stop.wait)


class Driver(Protocol):
    """Writes and deletes one file of a kind of store."""

    def put(self, url: str, content: Outgoing, traffic: Traffic, sending: Sending) -> bool:
        """Writes a file; whether the store itself has shown that it has received what was sent.

        sending: is told of every byte that the store takes.
        """

    def delete(self, url: str, traffic: Traffic) -> None:
        """Deletes a file."""


class Store:
    """The files beneath a URL. url: without a slash at its end."""

    def __init__(self, url: str, traffic: Traffic | None = None) -> None:
        self.url, self.traffic = url.rstrip("/"), traffic or Traffic()
        self._driver = _driver(self.url, self.traffic.patience.stall_seconds)

    def __str__(self) -> str:
        return redact_url(self.url)

    def head(self, name: str) -> FileStat | None:
        """What the store tells of a file; None where there is none."""
        file = self._remote_file(name)
        try:
            return self.traffic.try_again(file.stat)
        except RequestError as error:
            if error.missing:
                return None
            raise

    def head_of(self, name: str, file: Stored) -> FileStat:
        """What the store tells of a file that was sent there. Raises NotAsSentError where it is missing or of
        another size."""
        head = self.head(name)
        if head is None or head.size != file.size:
            has = "is not there" if head is None else f"has {head.size} bytes instead of {file.size}"
            raise NotAsSentError(f"{redact_url(self._url(name))} {has}")
        return head

    def put(self, name: str, content: Outgoing, is_progress: bool = True) -> FileStat:
        """Writes a file, and makes sure that it is there as it should be.

        is_progress: whether it counts in `Traffic.progress`.
        """
        with self.traffic.sending(name, content.file) if is_progress else nullcontext(Sending()) as sending:
            proven = self._driver.put(self._url(name), content, self.traffic, sending)
            head = self.head(name)
            if head is None or head.size != content.file.size:
                has = "no such file" if head is None else f"{head.size} bytes"
                raise RequestError(
                    f"{name}: {content.file.size} bytes were sent, and the store has {has}", False
                )
            if not proven:
                reading = sending.attempt(content.file.size)
                for block in self.blocks(name, content.file, head):
                    reading.add(len(block))
        return head

    def blocks(
        self, name: str, file: Stored, head: FileStat | None = None, start: int = 0
    ) -> Iterator[bytes]:
        """The blocks of a file from byte `start` on, the beginning of one, each compared.

        head: what is known of the file. Raises NotAsSentError for another file than `file`.
        """
        url, head = self._url(name), head or self.head_of(name, file)
        with ByteReader(File(url, head.size, head.tag), self.traffic.patience) as opened:
            for at in range(start, file.size, BLOCK):
                block = _read_at(opened, at, BLOCK)
                try:
                    check(block, file.xxh64, at, redact_url(url))
                except RunFault as fault:
                    raise NotAsSentError(str(fault)) from fault
                yield block

    def text(self, name: str) -> bytes | None:
        """A small file; None where there is none. One that is replaced meanwhile is read again."""
        once = self.traffic.patience._replace(retries=0)
        file = self._remote_file(name)

        def read() -> bytes:
            head = file.stat()
            if head.size > MAX_TEXT:
                raise RequestError(
                    f"{redact_url(self._url(name))} has {head.size} bytes, more than it ever had", True
                )
            with ByteReader(File(self._url(name), head.size, head.tag), once) as opened:
                return _read_at(opened, 0, head.size)

        try:
            return self.traffic.try_again(read)
        except RequestError as error:
            if error.missing:
                return None
            raise

    def delete(self, name: str) -> None:
        """Deletes a file, if it is there."""
        try:
            self._driver.delete(self._url(name), self.traffic)
        except RequestError as error:
            if not error.missing:
                raise

    def _remote_file(self, name: str) -> RemoteFile:
        return remote_file(self._url(name), self.traffic.patience.stall_seconds)

    def _url(self, name: str) -> str:
        return f"{self.url}/{name}"


def _read_at(opened: ByteReader, start: int, count: int) -> bytes:
    try:
        return opened.read_at(start, count)
    except RunFault as fault:
        raise RequestError(str(fault), False) from fault


def _driver(url: str, stall_seconds: float) -> Driver:
    from llmkit.copies import drivers

    scheme = urlsplit(url).scheme.lower()
    filesystem, _ = open_filesystem(url, stall_seconds)
    kinds: dict[str, Callable[[Any, float], Driver]] = {
        **dict.fromkeys(WEB, drivers.WebDriver),
        **dict.fromkeys(S3, drivers.S3Driver),
    }
    return kinds.get(scheme, drivers.FileDriver)(filesystem, stall_seconds)
