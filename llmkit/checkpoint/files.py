"""Files with a checksum for each block: written once, and verified block by block as they are read."""

from __future__ import annotations

import errno
import os
import stat
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from llmkit.checkpoint.format import BLOCK, Damaged, FileEntry
from llmkit.errors import RunFault, UserError
from llmkit.files import cannot_read

OPEN_FILES = 64
"""Files of a checkpoint that are open at once: it may have more than a process may open (`ulimit -n`),
and several checkpoints may be open."""
_OF_THIS_PROCESS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_OF_THE_DISK = (
    errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ESHUTDOWN, errno.EHOSTDOWN, errno.EHOSTUNREACH,
)  # fmt: skip
"""Errors that say nothing about the file: the limits of this process, a file server that does not answer."""


class StoredFile(NamedTuple):
    """A file of a checkpoint as it was written. checksums: (blocks,) uint64, xxh64 of each block."""

    name: str
    size: int
    checksums: NDArray[np.uint64]

    @staticmethod
    def of(entry: FileEntry) -> StoredFile:
        """From its entry in a manifest."""
        return StoredFile(
            entry.name, entry.size, np.array([int(text, 16) for text in entry.xxh64], np.uint64)
        )

    def entry(self) -> FileEntry:
        """Its entry in a manifest."""
        return FileEntry(name=self.name, size=self.size, xxh64=[f"{value:016x}" for value in self.checksums])


def write_file(path: Path, chunks: Iterable[memoryview]) -> StoredFile:
    """Write the chunks to a new file and sync it to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        size, checksums = 0, []
        for block in _blocks(chunks):
            checksums.append(xxhash.xxh64(block).intdigest())
            size += len(block)
            while block:
                block = block[os.write(descriptor, block) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return StoredFile(path.name, size, np.array(checksums, np.uint64))


def _blocks(chunks: Iterable[memoryview]) -> Iterator[memoryview]:
    """The bytes of all chunks in blocks of `BLOCK` bytes, the last shorter; each is valid until the next."""
    pending = bytearray()
    for chunk in chunks:
        while chunk:
            if not pending and len(chunk) >= BLOCK:  # without a copy
                yield chunk[:BLOCK]
                chunk = chunk[BLOCK:]
                continue
            taken = BLOCK - len(pending)
            pending += chunk[:taken]
            chunk = chunk[taken:]
            if len(pending) == BLOCK:
                yield memoryview(pending)
                pending = bytearray()
    if pending:
        yield memoryview(pending)


def open_file(path: Path) -> int:
    """A descriptor for reading a regular file, which must not be a symbolic link.

    Raises Damaged if there is none; UserError or RunFault where this process cannot open a file that may be
    valid.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Damaged(f"{path}: it is a symbolic link") from error
        raise unreadable(path, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Damaged(f"{path}: it is not a regular file")
    return descriptor


def unreadable(path: Path, error: OSError, what: str = "") -> UserError | RunFault:
    """What to raise for a file that cannot be read: Damaged, after which an older checkpoint is taken, where
    the file alone is at fault. what: was being done, as ", reading from byte 0"."""
    if isinstance(error, PermissionError):
        return cannot_read(path, error)
    if error.errno in _OF_THIS_PROCESS:
        return RunFault(f"{path}: it cannot be opened now ({error.strerror})")
    if error.errno in _OF_THE_DISK:
        return RunFault(
            f"{path}: it cannot be read now ({error.strerror}){what}: its disk does not answer, or another "
            "machine has removed or replaced it; look after the disk, then start again"
        )
    return Damaged(f"{path}: {error.strerror or error}{what}")


class OpenFiles:
    """A cache of descriptors for reading: the `limit` most recently used files stay open."""

    def __init__(self, limit: int = OPEN_FILES) -> None:
        self._limit = limit
        self._descriptors: dict[Path, int] = {}
        weakref.finalize(self, _close_all, self._descriptors)

    def descriptor(self, path: Path, size: int) -> int:
        """A descriptor of a file, valid until the next call.

        Raises as `open_file` does, and Damaged for a file of another size.
        """
        found = self._descriptors.pop(path, None)
        if found is None:
            if len(self._descriptors) >= self._limit:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            found = open_file(path)
            try:
                _check_size(path, os.fstat(found).st_size, size)
            except Damaged:
                os.close(found)
                raise
        self._descriptors[path] = found
        return found


def _close_all(descriptors: dict[Path, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)


class BlockFile:
    """A file of a checkpoint, opened when something of it is read.

    Every method raises Damaged, naming the file, if it is not what was written.
    """

    def __init__(self, path: Path, stored: StoredFile, opened: OpenFiles) -> None:
        self.path = path
        self.size = stored.size
        self.blocks = len(stored.checksums)
        self._checksums = stored.checksums
        self._opened = opened

    def open(self) -> None:
        """Open it now, and so check its size; where few files are open it then stays readable."""
        self._opened.descriptor(self.path, self.size)

    def check_size(self) -> None:
        """Check, without opening it, that it is a regular file of the right size."""
        try:
            found = os.lstat(self.path)
        except OSError as error:
            raise unreadable(self.path, error) from error
        if stat.S_ISLNK(found.st_mode):
            raise Damaged(f"{self.path}: it is a symbolic link")
        if not stat.S_ISREG(found.st_mode):
            raise Damaged(f"{self.path}: it is not a regular file")
        _check_size(self.path, found.st_size, self.size)

    def fill(self, index: int, buffer: memoryview) -> None:
        """Read a block into the start of the buffer and check it."""
        offset, descriptor = index * BLOCK, self._opened.descriptor(self.path, self.size)
        rest = wanted = buffer[: min(BLOCK, self.size - offset)]
        try:
            while rest and (count := os.preadv(descriptor, [rest], offset + len(wanted) - len(rest))):
                rest = rest[count:]
        except OSError as error:
            raise unreadable(self.path, error, f", reading from byte {offset}") from error
        if rest:
            raise Damaged(f"{self.path}: it has less than {self.size} bytes")
        if xxhash.xxh64(wanted).intdigest() != self._checksums[index]:
            raise Damaged(f"{self.path}: bytes {offset} to {offset + len(wanted)} are not what was written")

    def damage(self, index: int, buffer: memoryview) -> str:
        """What is wrong with a block, read into the buffer; "" if nothing is."""
        try:
            self.fill(index, buffer)
        except Damaged as error:
            return str(error)
        return ""

    def block(self, index: int, memory: Tensor | None = None) -> Tensor:
        """(bytes,) uint8: a block. memory: to put it in, if that is as long: new memory costs as much time as
        reading."""
        size = min(BLOCK, self.size - index * BLOCK)
        if memory is None or len(memory) != size:
            memory = torch.empty(size, dtype=torch.uint8)
        self.fill(index, tensor_bytes(memory))
        return memory

    def content(self) -> bytes:
        """All of it."""
        self.open()  # memory is taken only for a file that is as long as it should be
        found = torch.empty(self.size, dtype=torch.uint8)
        view = tensor_bytes(found)
        for index in range(self.blocks):
            self.fill(index, view[index * BLOCK :])
        return found.numpy().tobytes()


def _check_size(path: Path, found: int, expected: int) -> None:
    if found != expected:
        raise Damaged(f"{path}: it has {found} bytes instead of {expected}")


def tensor_bytes(flat: Tensor) -> memoryview:
    """The memory of a tensor (n,) on the CPU, which is its safetensors form on little-endian machines."""
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]  # an array is a buffer
