"""A file at any place as a file object, for Arrow."""

from __future__ import annotations

import contextlib
import io
import zlib
from collections.abc import Iterator, Sequence

from llmkit.data.sources.attempts import told
from llmkit.data.sources.remote import RandomFile
from llmkit.errors import RunFault, UserError


class RawReader(io.RawIOBase):
    """Parts of a RandomFile, one after the other, as a file object.

    Arrow may turn an exception of its source into one of its own: the first one is kept in `fault`.
    """

    def __init__(self, source: RandomFile, parts: Sequence[tuple[int, int]] | None = None) -> None:
        super().__init__()
        self._source = source
        parts = [(0, source.file.size)] if parts is None else parts
        self._parts = [(start, end) for start, end in parts if start < end]
        self._size = sum(end - start for start, end in self._parts)
        self._position = 0
        self.fault: BaseException | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def size(self) -> int:
        """Bytes of all parts; Arrow asks for it."""
        return self._size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def read(self, count: int | None = -1) -> bytes:
        """The next bytes over all parts; fewer than asked for only at the end."""
        if count is None or count < 0:
            count = self._size - self._position
        found, before = [], 0
        try:
            for start, end in self._parts:
                offset = self._position - before
                before += end - start
                if 0 <= offset < end - start and count > 0:
                    found.append(self._source.read_at(start + offset, min(count, end - start - offset)))
                    self._position += len(found[-1])
                    count -= len(found[-1])
        except BaseException as error:
            self.fault = self.fault or error
            raise
        return found[0] if len(found) == 1 else b"".join(found)

    @contextlib.contextmanager
    def faults(self) -> Iterator[None]:
        """What goes wrong in reading or unpacking this becomes a RunFault that names the file."""
        import pyarrow as pa  # slow to import, and loaded by whoever reads through this

        try:
            yield
        except (RunFault, UserError):
            raise
        except (pa.ArrowException, zlib.error, OSError, EOFError, UnicodeError) as error:
            if self.fault is not None:
                raise self.fault from None
            raise RunFault(f"{self._source.name}: is damaged or cut short ({told(error)})") from error
