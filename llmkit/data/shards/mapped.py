"""A file read by memory map: its blocks are checked on first touch, and a change under the reader is found.

Reading a map beyond the end of a file that was cut kills the process (SIGBUS) without a word. So the
file is looked at before each read, and a block is first read the plain way, where a file that has
become too short is an ordinary error. What stays possible is a cut in the instant between look and copy,
or, on a network file system, within the seconds for which the client believes what it knows of a file.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from xxhash import xxh64_hexdigest

from llmkit.data.shards.format import BLOCK_BYTES
from llmkit.errors import RunFault, UserError
from llmkit.files import cannot_read, owner_of

Check = Callable[[int, memoryview], None]
"""Gets a block's number and content, and raises UserError if they are not what they should be."""


class MappedFile:
    """A file's bytes, to be read after `look` and, where that asks for it, `check`.

    size: bytes it must have. says: who says so, and why it is asked for, for messages. check: sees each
    block of BLOCK_BYTES once before it is used. has_checksums: `check` notices any change; where it does not,
    a file with a new date is taken for changed. Raises UserError if the file is missing or of another size.
    """

    def __init__(
        self, path: Path, size: int, says: str, remedy: str, check: Check, has_checksums: bool = True
    ) -> None:
        self.path, self.size, self._has_checksums = path, size, has_checksums
        self._remedy, self._check_block = remedy, check
        try:
            with path.open("rb") as file:
                self._stamp = os.fstat(file.fileno())
                if self._stamp.st_size != size:
                    raise UserError(
                        f"{path}: {self._stamp.st_size} bytes, {says} says {size}; the file was cut or "
                        f"written over; {remedy}"
                    )
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise cannot_read(path, error, f"{says} lists it: {remedy}") from error
        self.bytes = np.frombuffer(self._map, dtype=np.uint8)
        self.blocks = -(-size // BLOCK_BYTES)
        self._unchecked = np.ones(self.blocks, dtype=bool)
        self._left = self.blocks

    @property
    def time(self) -> int:
        """When the file was last written to, in ns."""
        return self._stamp.st_mtime_ns

    def look(self) -> bool:
        """Before each read: whether some blocks are unchecked, so that `check` must come first.

        Raises RunFault if the file was cut, replaced or removed since it was opened, or, where it has no
        checksums, has a new date.
        """
        try:
            now = os.stat(self.path)
        except OSError as error:
            is_denied = isinstance(error, PermissionError)
            remedy = f"ask {owner_of(self.path)} for read access to it" if is_denied else self._remedy
            raise RunFault(
                f"{self.path}: went away while it is being read ({error.strerror}); {remedy}"
            ) from error
        was = self._stamp
        if now.st_mtime_ns == was.st_mtime_ns and now.st_size == was.st_size:
            return self._left > 0
        what = None
        if now.st_size != was.st_size:
            what = f"has {now.st_size} bytes now and had {was.st_size} bytes"
        elif now.st_ino != was.st_ino:
            what = f"is another file now and had {was.st_size} bytes"
        elif not self._has_checksums:
            what = "was written to and has no checksums that could tell what"
        if what is not None:
            raise RunFault(
                f"{self.path}: changed while it is being read, it {what}; "
                "let nothing write to the data of a running job"
            )
        # The same file with a new date: touched only, if the blocks are still what they were.
        self._unchecked[:], self._left, self._stamp = True, self.blocks, now
        return True

    def check(self, first: np.ndarray, end: np.ndarray) -> None:
        """Check the blocks under the byte ranges first[i] .. end[i] - 1, those not yet checked."""
        low, high = first // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
        for step in range(int((high - low).max(initial=-1)) + 1):
            blocks = np.minimum(low + step, high)
            self._check_blocks(np.unique(blocks[self._unchecked[blocks]]))

    def check_all(self) -> None:
        """Check every block that was not checked yet."""
        self.look()
        self._check_blocks(np.flatnonzero(self._unchecked))

    def _check_blocks(self, blocks: np.ndarray) -> None:
        if not blocks.size:
            return
        buffer = memoryview(bytearray(min(BLOCK_BYTES, self.size)))
        try:
            # Not by the map: a plain read lets other threads run while it waits for the disk.
            with self.path.open("rb", buffering=0) as file:
                for block in blocks.tolist():
                    begin = block * BLOCK_BYTES
                    content = buffer[: min(BLOCK_BYTES, self.size - begin)]
                    self._fill(file.fileno(), content, begin)
                    self._check_block(block, content)
                    self._unchecked[block] = False
                    self._left -= 1
        except OSError as error:
            raise RunFault(f"{self.path}: cannot be read ({error.strerror})") from error

    def _fill(self, file: int, content: memoryview, begin: int) -> None:
        while len(content):
            count = os.preadv(file, [content], begin)
            if not count:
                raise RunFault(f"{self.path}: ends at byte {begin}, it was cut while it is being read")
            content, begin = content[count:], begin + count


def checksum(path: Path, blocks: list[str], remedy: str) -> Check:
    """Checks blocks against their xxh64."""

    def check(block: int, content: memoryview) -> None:
        if xxh64_hexdigest(content) != blocks[block]:
            begin = block * BLOCK_BYTES
            raise UserError(
                f"{path}: block {block} (bytes {begin} to {begin + len(content) - 1}) does not match its "
                f"checksum, the file is damaged; {remedy}"
            )

    return check
