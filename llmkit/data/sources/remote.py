"""Reading bytes of a file at any place: of a local one, or of a remote one that fails now and then."""

from __future__ import annotations

import os
import random
import threading
from concurrent.futures import Future
from types import TracebackType
from typing import NamedTuple

from llmkit.data.sources import fetch
from llmkit.data.sources.attempts import ChangedError, FailedError, in_thread
from llmkit.data.sources.heads import Head
from llmkit.data.sources.listing import File
from llmkit.data.sources.urls import is_url, shown
from llmkit.errors import RunFault

BLOCK_BYTES = 2 << 20
"""Read at a time, and ahead, where a remote file is read from one place on."""
FIRST_BYTES = 256 << 10
"""Read at the least from a remote file at a new place."""
SMALLEST_BYTES = 64 << 10
"""Asked for at the least after failures: a connection that breaks early still gets on."""


class Patience(NamedTuple):
    """How much is borne. retries: attempts without a byte received, after the first. first_delay: seconds
    before the second attempt; each later one waits twice as long, 30 s at most. stall_seconds: without a
    byte, an attempt has failed."""

    retries: int = 5
    first_delay: float = 1.0
    stall_seconds: float = 30.0


PATIENCE = Patience()


class RandomFile:
    """A file to read at any place; a context manager.

    until: where a sequential reader will end, so that no more is read ahead.
    Raises RunFault where the file cannot be read, or is no longer the one that was listed.
    """

    def __init__(self, file: File, patience: Patience | None = None, until: int | None = None) -> None:
        self.file, self.name = file, shown(file.path)
        self._until = file.size if until is None else until
        self._handle: int | None = None
        self._remote: _Remote | None = None
        if is_url(file.path):
            self._remote = _Remote(file, patience or PATIENCE)
        else:
            try:
                self._handle = os.open(file.path, os.O_RDONLY)
            except OSError as error:
                raise RunFault(f"{self.name}: cannot be read ({error.strerror})") from error
        self._start, self._block = 0, b""  # the part of the file at hand
        self._ahead: Future[bytes] | None = None  # the part that follows it

    def __enter__(self) -> RandomFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """No reading after this; what is read ahead is given up."""
        if self._handle is not None:
            os.close(self._handle)
        if self._remote is not None:
            self._remote.closed.set()
        self._handle = self._remote = self._ahead = None

    def read_at(self, start: int, count: int) -> bytes:
        """Bytes [start, start + count); fewer only at the end of the file."""
        count = min(count, self.file.size - start)
        if self._handle is not None:
            return self._read_local(self._handle, start, count)
        parts = []
        while count > 0:
            offset = start - self._start
            if not 0 <= offset < len(self._block):
                self._load(start, count)
                offset = 0
            parts.append(self._block[offset : offset + count])
            start, count = start + len(parts[-1]), count - len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_local(self, handle: int, start: int, count: int) -> bytes:
        parts = []
        try:
            status = os.fstat(handle)
            if status.st_size != self.file.size or self.file.stamp not in (0, status.st_mtime_ns):
                raise RunFault(_changed(self.name, "its size or time of change is another"))
            while count > 0 and (part := os.pread(handle, count, start)):
                parts.append(part)
                start, count = start + len(part), count - len(part)
        except OSError as error:
            raise RunFault(f"{self.name}: cannot be read at byte {start} ({error.strerror})") from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _load(self, start: int, count: int) -> None:
        """Make the part from `start` on the one at hand."""
        assert self._remote is not None, "the file is closed"
        goes_on = start == self._start + len(self._block) and start > 0
        ahead, self._ahead = self._ahead, None
        if goes_on and ahead is not None:
            self._start, self._block = start, ahead.result()
        else:
            size = BLOCK_BYTES if goes_on else min(max(count, FIRST_BYTES), BLOCK_BYTES)
            size = min(size, max(count, self._until - start), self.file.size - start)
            self._start, self._block = start, self._remote.fetch(start, size)
        if goes_on or count > len(self._block):
            after, remote = self._start + len(self._block), self._remote
            wanted = max(count - len(self._block), self._until - after)
            size = min(BLOCK_BYTES, wanted, self.file.size - after)
            if size > 0:
                self._ahead = in_thread(lambda: remote.fetch(after, size))


class _Remote:
    """A remote file, read with patience. closed: set when nobody waits for it any more."""

    def __init__(self, file: File, patience: Patience) -> None:
        self._expected, self._patience = Head(file.size, file.tag), patience
        self._name = shown(file.path)
        self._fetcher = fetch.fetcher(file.path, patience.stall_seconds)
        self._random = random.Random()  # its own, so that nobody's numbers change
        self.closed = threading.Event()

    def fetch(self, start: int, count: int) -> bytes:
        """Bytes [start, start + count), all of them; what came before a failure is not asked for again."""
        received = bytearray()
        failures, size = 0, count
        while len(received) < count:
            place, asked = start + len(received), min(size, count - len(received))
            part, reason, final = b"", "the connection broke", False
            try:
                part = self._fetcher.get(place, asked, self._expected)
            except ChangedError as error:
                raise RunFault(_changed(self._name, str(error))) from error
            except FailedError as error:
                reason, final = str(error), error.final
            received += part
            if len(part) == asked:
                failures = 0
                continue
            failures = 1 if part else failures + 1
            if final or failures > self._patience.retries or self.closed.is_set():
                tries = f" after {failures} attempts" if failures > 1 else ""
                raise RunFault(f"{self._name}: cannot be read from byte {place} on{tries} ({reason})")
            size = max(SMALLEST_BYTES, size // 4)
            delay = min(30.0, self._patience.first_delay * 2 ** (failures - 1))
            # Spread out, lest all processes that a server turned away come back at once.
            self.closed.wait(delay * self._random.uniform(0.5, 1.0))
        return bytes(received)


def _changed(name: str, how: str) -> str:
    return f"{name}: the file changed while the job runs ({how}); put the old one back, or start afresh"
