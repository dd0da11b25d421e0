"""What is sent to a store: a file of a checkpoint or bytes at hand, a part at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import xxhash
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from llmkit.errors import RunFault

BLOCK = 4 << 20
"""Bytes under one checksum, as in checkpoints."""
PART_BYTES = 2 * BLOCK
"""Sent at a time, and in memory, unless a file would have more than MAX_PARTS of them."""
MAX_PARTS = 9000
"""S3 takes 10,000 parts."""
MANIFEST = "manifest.json"
"""Of a checkpoint: written after its other files, here as there."""


class Stored(BaseModel):
    """A file as it was written. name: below the folder that it lies in. size: bytes. xxh64: of each block."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[
        str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,127}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    ]
    size: Annotated[int, Field(ge=0, le=2**53)]
    xxh64: list[Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]]

    @model_validator(mode="after")
    def _a_checksum_a_block(self) -> Stored:
        if len(self.xxh64) != -(-self.size // BLOCK):
            raise ValueError(f"{len(self.xxh64)} checksums for {self.size} bytes")
        return self

    @property
    def digest(self) -> str:
        """xxh64 of the checksums of all blocks."""
        return xxhash.xxh64("".join(self.xxh64).encode()).hexdigest()


def _of_a_checkpoint(files: list[Stored]) -> list[Stored]:
    names = {file.name for file in files}
    if len(names) < len(files) or MANIFEST not in names or any("/" in name for name in names):
        raise ValueError("they are not those of a checkpoint: each once, none in a folder, and a manifest")
    return files


FilesOfCheckpoint = Annotated[list[Stored], AfterValidator(_of_a_checkpoint)]
"""All files of a checkpoint, its manifest among them."""


def stored(name: str, content: bytes) -> Stored:
    """What is known of a file that has this content."""
    blocks = range(0, len(content), BLOCK)
    return Stored(
        name=name,
        size=len(content),
        xxh64=[xxhash.xxh64(content[at : at + BLOCK]).hexdigest() for at in blocks],
    )


class Outgoing:
    """Content that is to be sent, and its MD5 by parts as they were read last.

    file: what it must be; each block is compared as it is read. source: where it lies, or the content.
    """

    def __init__(self, file: Stored, source: Path | bytes) -> None:
        self.file, self._source = file, source
        parts = -(-file.size // PART_BYTES)
        self.part_bytes = PART_BYTES * max(1, -(-parts // MAX_PARTS))
        self.count = -(-file.size // self.part_bytes)

    def parts(self) -> Iterator[bytes]:
        """All of it, `part_bytes` at a time. Raises RunFault where it is not what was written."""
        for number in range(self.count):
            yield self.part(number)

    def part(self, number: int) -> bytes:
        """Part number `number`, from 0. Raises as `parts` does."""
        start = number * self.part_bytes
        end = min(start + self.part_bytes, self.file.size)
        content = (
            self._source[start:end] if isinstance(self._source, bytes) else _read(self._source, start, end)
        )
        if len(content) < end - start:
            raise RunFault(f"{self._source!s}: it has less than {self.file.size} bytes")
        check(content, self.file.xxh64, start, str(self._source))
        return content


def check(content: bytes, checksums: Sequence[str], start: int, name: str) -> None:
    """Raises RunFault unless a file has this content from `start`, the beginning of a block, on."""
    view = memoryview(content)
    for at in range(0, len(view), BLOCK):
        block = view[at : at + BLOCK]
        if xxhash.xxh64(block).hexdigest() != checksums[(start + at) // BLOCK]:
            first = start + at
            raise RunFault(f"{name}: bytes {first} to {first + len(block)} are not what was written")


def _read(path: Path, start: int, end: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            parts = []
            while start < end and (part := os.pread(descriptor, end - start, start)):
                parts.append(part)
                start += len(part)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RunFault(f"{path}: cannot be read at byte {start} ({error.strerror})") from error
    return parts[0] if len(parts) == 1 else b"".join(parts)


def md5(content: bytes) -> bytes:
    """By which stores tell that what they have received is what was sent."""
    return hashlib.md5(content, usedforsecurity=False).digest()
