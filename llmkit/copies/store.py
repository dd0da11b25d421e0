"""Files beneath a URL: written, looked at, read back and deleted.

Names are all that is asked for: no store is listed, since a plain web server cannot be. Every method raises
FailedError, after some attempts where another one may do better, and UserError where the URL cannot be used
at all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from llmkit.copies.outgoing import BLOCK, Outgoing, Stored, check
from llmkit.data.sources import fetch, s3
from llmkit.data.sources.attempts import FailedError, Value, patiently
from llmkit.data.sources.heads import Head
from llmkit.data.sources.listing import File
from llmkit.data.sources.remote import Patience, RandomFile
from llmkit.data.sources.urls import shown
from llmkit.errors import RunFault

MAX_TEXT = 256 << 20
"""Bytes of a file that is read as a whole, at most."""


class NotAsSentError(FailedError):
    """A file in a store that is missing, or not what was sent there."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, False)


@dataclass
class Traffic:
    """What is known of all that is sent. patience: with failures. sent: bytes until now. stop: set where
    nobody waits for it any more."""

    patience: Patience = field(default_factory=Patience)
    sent: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def try_again(self, function: Callable[[], Value]) -> Value:
        """See `patiently`; a stop ends it."""

        def once() -> Value:
            if self.stop.is_set():
                raise FailedError("it was given up", True)
            return function()

        return patiently(once, self.patience.retries + 1, self.patience.first_delay, self.stop.wait)


class Driver(Protocol):
    """Writes and deletes one file of a kind of store."""

    def put(self, url: str, content: Outgoing, traffic: Traffic) -> bool:
        """Writes a file; whether the store itself has shown that it has received what was sent."""

    def delete(self, url: str, traffic: Traffic) -> None:
        """Deletes a file."""


class Store:
    """The files beneath a URL. url: without a slash at its end."""

    def __init__(self, url: str, traffic: Traffic | None = None) -> None:
        self.url, self.traffic = url.rstrip("/"), traffic or Traffic()
        self._driver = _driver(self.url, self.traffic.patience.stall_seconds)

    def __str__(self) -> str:
        return shown(self.url)

    def head(self, name: str) -> Head | None:
        """What the store tells of a file; None where there is none."""
        fetcher = self._fetcher(name)
        try:
            return self.traffic.try_again(fetcher.head)
        except FailedError as error:
            if error.missing:
                return None
            raise

    def put(self, name: str, content: Outgoing) -> Head:
        """Writes a file, and makes sure that it is there as it should be."""
        proven = self._driver.put(self._url(name), content, self.traffic)
        head = self.head(name)
        if head is None or head.size != content.file.size:
            has = "no such file" if head is None else f"{head.size} bytes"
            raise FailedError(f"{name}: {content.file.size} bytes were sent, and the store has {has}", False)
        if not proven:
            for _ in self.blocks(name, content.file, head):
                pass
        return head

    def blocks(self, name: str, file: Stored, head: Head | None = None, start: int = 0) -> Iterator[bytes]:
        """The blocks of a file from byte `start` on, the beginning of one, each compared.

        head: what is known of the file. Raises NotAsSentError for another file than `file`.
        """
        url = self._url(name)
        head = head or self.head(name)
        if head is None or head.size != file.size:
            has = "is not there" if head is None else f"has {head.size} bytes instead of {file.size}"
            raise NotAsSentError(f"{shown(url)} {has}")
        with RandomFile(File(url, head.size, head.tag), self.traffic.patience) as opened:
            for at in range(start, file.size, BLOCK):
                block = _read_at(opened, at, BLOCK)
                try:
                    check(block, file.xxh64, at, shown(url))
                except RunFault as fault:
                    raise NotAsSentError(str(fault)) from fault
                yield block

    def text(self, name: str) -> bytes | None:
        """A small file; None where there is none."""
        head = self.head(name)
        if head is None:
            return None
        if head.size > MAX_TEXT:
            raise FailedError(f"{shown(self._url(name))} has {head.size} bytes, more than it ever had", True)
        with RandomFile(File(self._url(name), head.size, head.tag), self.traffic.patience) as opened:
            return _read_at(opened, 0, head.size)

    def delete(self, name: str) -> None:
        """Deletes a file, if it is there."""
        try:
            self._driver.delete(self._url(name), self.traffic)
        except FailedError as error:
            if not error.missing:
                raise

    def _fetcher(self, name: str) -> fetch.Fetcher:
        return fetch.fetcher(self._url(name), self.traffic.patience.stall_seconds)

    def _url(self, name: str) -> str:
        return f"{self.url}/{name}"


def _read_at(opened: RandomFile, start: int, count: int) -> bytes:
    try:
        return opened.read_at(start, count)
    except RunFault as fault:
        raise FailedError(str(fault), False) from fault


def _driver(url: str, stall_seconds: float) -> Driver:
    from llmkit.copies import drivers

    scheme = urlsplit(url).scheme.lower()
    filesystem, _ = fetch.open_filesystem(url, stall_seconds)
    kinds: dict[str, Callable[[Any, float], Driver]] = {
        "http": drivers.WebDriver, "https": drivers.WebDriver,
        **dict.fromkeys(s3.SCHEMES, drivers.S3Driver),
    }  # fmt: skip
    return kinds.get(scheme, drivers.FileDriver)(filesystem, stall_seconds)
