"""A file, local or remote, as bytes at any offset, and as a file object for Arrow and gzip."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Self

from llmkit.data.sources.files import File
from llmkit.data.sources.remote import ChangedError, FileStat, remote_file
from llmkit.data.sources.retries import RequestError, RetryPolicy, in_thread, one_line, with_retries
from llmkit.data.sources.urls import is_url, redact_url
from llmkit.errors import RunFault, UserError

BLOCK_BYTES, FIRST_BYTES, SMALLEST_BYTES = 2 << 20, 256 << 10, 64 << 10
"""Requested where a remote file is read on, at a new offset at least, and after failures at least."""
RETRIES = RetryPolicy()


class ByteReader:
    """Random access to a file; a context manager.

    until: where a sequential reader ends, so that no more is read ahead.
    Raises RunFault where the file cannot be read, or is no longer the one that was listed.
    """

    def __init__(self, file: File, retries: RetryPolicy | None = None, until: int | None = None) -> None:
        self.file, self.name = file, redact_url(file.path)
        self._until = file.size if until is None else until
        self._retries = retries or RETRIES
        self._closed = threading.Event()
        self._start, self._block = 0, b""  # of a remote file, what was read last
        self._ahead: Future[bytes] | None = None  # what follows it
        self._handle = -1
        if is_url(file.path):
            self._remote = remote_file(file.path, self._retries.stall_seconds)
            return
        try:
            self._handle = os.open(file.path, os.O_RDONLY)
        except OSError as error:
            raise RunFault(f"{self.name}: cannot be read ({error.strerror})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """No reading after this; what is read ahead is given up."""
        self._closed.set()
        if self._handle >= 0:
            os.close(self._handle)

    def read_at(self, start: int, count: int) -> bytes:
        """Bytes [start, start + count); fewer only at the end of the file."""
        assert not self._closed.is_set(), "the file is closed"
        end, parts = min(start + count, self.file.size), []
        while start < end and (part := self._next_part(start, end - start)):
            parts.append(part)
            start += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _next_part(self, start: int, count: int) -> bytes:
        if self._handle < 0:
            if not 0 <= start - self._start < len(self._block):
                self._load(start, count)
            return self._block[start - self._start : start - self._start + count]
        try:
            now = os.fstat(self._handle)
            if now.st_size != self.file.size or self.file.stamp not in (0, now.st_mtime_ns):
                raise self._changed("its size or time of change is another")
            return os.pread(self._handle, count, start)
        except OSError as error:
            raise RunFault(f"{self.name}: cannot be read at byte {start} ({error.strerror})") from error

    def _load(self, start: int, count: int) -> None:
        """Make the block from `start` on the current one."""
        goes_on = start == self._start + len(self._block) and start > 0
        ahead, self._ahead = self._ahead, None
        if goes_on and ahead is not None:
            block = ahead.result()
        else:
            size = BLOCK_BYTES if goes_on else min(max(count, FIRST_BYTES), BLOCK_BYTES)
            block = self._fetch(start, min(size, max(count, self._until - start), self.file.size - start))
        self._start, self._block = start, block
        if goes_on or count > len(block):
            after = start + len(block)
            wanted = max(count - len(block), self._until - after)
            size = min(BLOCK_BYTES, wanted, self.file.size - after)
            if size > 0:
                self._ahead = in_thread(lambda: self._fetch(after, size))

    def _fetch(self, start: int, count: int) -> bytes:
        """Bytes [start, start + count); what came before a failure is not requested again."""
        received, size = bytearray(), count

        def request() -> int:
            """Receives some bytes; how many of those that were asked for are missing."""
            nonlocal size
            if self._closed.is_set():
                raise RequestError("the file was closed", final=True)
            asked = min(size, count - len(received))
            size = max(SMALLEST_BYTES, asked // 4)  # unless all of them come
            part = self._remote.read(start + len(received), asked, FileStat(self.file.size, self.file.tag))
            if not part:
                raise RequestError("the connection broke", final=False)
            received.extend(part)
            size = asked if len(part) == asked else size
            return asked - len(part)

        while len(received) < count:
            try:
                if with_retries(request, self._retries, self._closed.wait):
                    self._closed.wait(self._retries.first_delay)
            except ChangedError as error:
                raise self._changed(str(error)) from error
            except RequestError as error:
                tries = f" after {error.attempts} attempts" if error.attempts > 1 else ""
                at = start + len(received)
                raise RunFault(f"{self.name}: cannot be read from byte {at} on{tries} ({error})") from error
        return bytes(received)

    def _changed(self, how: str) -> RunFault:
        return RunFault(
            f"{self.name}: the file changed while the job runs ({how}); put the old one back, or start afresh"
        )


class ArrowSource(io.RawIOBase):
    """Ranges of a file, one after the other, as a file object.

    Arrow may turn an exception of its source into one of its own: the first one is kept in `error`.
    """

    def __init__(self, file: ByteReader, ranges: Sequence[tuple[int, int]] | None = None) -> None:
        super().__init__()
        self._file = file
        self._ranges = [(0, file.file.size)] if ranges is None else ranges
        self._size = sum(end - start for start, end in self._ranges)
        self._position = 0
        self.error: BaseException | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def size(self) -> int:
        """Bytes of all ranges; Arrow asks for it."""
        return self._size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def read(self, count: int | None = -1) -> bytes:
        """The next bytes over all ranges; fewer than asked for only at the end."""
        if count is None or count < 0:
            count = self._size - self._position
        found, before = [], 0
        try:
            for start, end in self._ranges:
                offset = self._position - before
                before += end - start
                if 0 <= offset < end - start and count > 0:
                    found.append(self._file.read_at(start + offset, min(count, end - start - offset)))
                    self._position += len(found[-1])
                    count -= len(found[-1])
        except BaseException as error:
            self.error = self.error or error
            raise
        return found[0] if len(found) == 1 else b"".join(found)

    @contextlib.contextmanager
    def translated_errors(self) -> Iterator[None]:
        """Errors of reading or unpacking this become a RunFault that names the file."""
        import pyarrow as pa  # slow to import, and loaded by whoever reads through this

        try:
            yield
        except (RunFault, UserError):
            raise
        except (pa.ArrowException, zlib.error, OSError, EOFError, UnicodeError) as error:
            if self.error is not None:
                raise self.error from None
            raise RunFault(f"{self._file.name}: is damaged or cut short ({one_line(error)})") from error
