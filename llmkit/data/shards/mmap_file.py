"""A file read by memory map: each block is checked before its first use, and a change of the file is noticed.

Reading a map beyond the end of a file that was cut kills the process (SIGBUS) without a word. So
`stat` comes before each read, and a block is first read the plain way, where a file that has become too
short is an ordinary error. What stays possible is a cut in the instant between `stat` and copy, or, on a
network file system, within the seconds for which the client caches a file's attributes.
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
"""Gets a block's index and content, and raises UserError if they are not what they should be."""


class MappedFile:
    """A file's bytes, to be read after `has_unverified` and, where that is true, `verify`.

    size: bytes it must have. says: who says so, and why it is asked for, for messages. check: sees each
    block of BLOCK_BYTES once before it is used. has_checksums: `check` notices any change; where it does not,
    a file with a new date is taken for changed. Raises UserError if the file is missing or of another size.

    time: when the file was last written to, in ns.
    """

    def __init__(
        self, path: Path, size: int, says: str, remedy: str, check: Check, has_checksums: bool = True
    ) -> None:
        self.path, self.size, self._has_checksums = path, size, has_checksums
        self._remedy, self._check = remedy, check
        self._name = os.fspath(path)  # a Path is turned into one at each call, which costs as much as stat
        try:
            with path.open("rb") as file:
                self._stamp = os.fstat(file.fileno())
                if self._stamp.st_size != size:
                    raise UserError(
                        f"{path}: {self._stamp.st_size} bytes, {says} says {size}; the file was cut or "
                        f"written over; {remedy}"
                    )
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise cannot_read(path, error, f"{says} lists it: {remedy}") from error
        self.bytes, self.time = np.frombuffer(content, dtype=np.uint8), self._stamp.st_mtime_ns
        self._unverified = np.ones(-(-size // BLOCK_BYTES), dtype=bool)
        self._left = self._unverified.size

    def has_unverified(self) -> bool:
        """To be asked before each read: whether some blocks are unverified, so that `verify` must come first.

        Raises RunFault if the file was cut, replaced or removed since it was opened, or, where it has no
        checksums, has a new date.
        """
        try:
            now = os.stat(self._name)
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
        self._unverified[:], self._left, self._stamp = True, self._unverified.size, now
        return True

    def verify(self, begin: int | np.ndarray, end: int | np.ndarray) -> None:
        """Checks the blocks under bytes begin .. end-1, those not yet verified; arrays: of several ranges."""
        low, high = np.atleast_1d(begin) // BLOCK_BYTES, (np.atleast_1d(end) - 1) // BLOCK_BYTES
        for step in range(int((high - low).max(initial=-1)) + 1):
            blocks = np.minimum(low + step, high)
            self._verify_blocks(np.unique(blocks[self._unverified[blocks]]))

    def verify_all(self) -> int:
        """Checks every block that was not verified yet; returns the number of all."""
        self.has_unverified()
        self._verify_blocks(np.flatnonzero(self._unverified))
        return self._unverified.size

    def _verify_blocks(self, blocks: np.ndarray) -> None:
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
                    self._check(block, content)
                    self._unverified[block] = False
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
