"""The files of Megatron-LM: PREFIX.bin with the ids, PREFIX.idx with the bounds of sequences and documents.

The index (little-endian): `MMIDIDX` and two zero bytes; uint64 version 1; uint8 code of the ids' type; uint64
counts S of sequences and D of document bounds; int32 length of each sequence; int64 byte offset of each
sequence; int64 index of each document's first sequence, then S (D values for D - 1 documents). As in
https://github.com/NVIDIA/Megatron-LM/blob/main/megatron/core/datasets/indexed_dataset.py
"""

from __future__ import annotations

import glob
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
from xxhash import xxh64

from llmkit.errors import UserError
from llmkit.files import cannot_read, may_exist

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
ID_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
"""Types of ids by their code; 6 and 7 are floating point."""
VALUES_AT_ONCE = 1 << 20
DOCUMENTS_AT_ONCE = 1 << 16
"""Documents whose ends are read together: each may have many sequences."""

REMEDY = "make the files again with Megatron-LM's tools/preprocess_data.py"


def find_prefixes(path: str) -> list[Path]:
    """The prefixes PREFIX of PREFIX.bin and PREFIX.idx that a path means, sorted.

    That is such a prefix, one of the two files, a folder with them, or a glob pattern for any of these.
    Raises UserError where it leads to none.
    """
    matches = [path, *glob.glob(path), *glob.glob(path + ".idx")]
    prefixes = {prefix for match in matches for prefix in _prefixes_at(Path(match))}
    if not prefixes:
        raise UserError(f"{path}: there is no {path}.idx, and no folder of that name with .idx files")
    return sorted(prefixes)


def _prefixes_at(path: Path) -> list[Path]:
    if os.path.isdir(path):
        try:
            return [index.with_suffix("") for index in path.iterdir() if index.suffix == ".idx"]
        except OSError as error:
            raise cannot_read(path, error) from error
    prefix = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
    return [prefix] if may_exist(with_suffix(prefix, ".idx")) else []


def with_suffix(prefix: Path, suffix: str) -> Path:
    """PREFIX.idx or PREFIX.bin, whatever dots the prefix has itself."""
    return prefix.with_name(prefix.name + suffix)


class MegatronIndex:
    """An index file, whose beginning and size are checked here; raises UserError.

    dtype: of the ids. sequences, documents: their numbers. Set by `read`: tokens of all sequences, and
    digest, a hash of the content.
    """

    tokens: int
    digest: str

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                self._head = file.read(HEADER.size)
        except OSError as error:
            raise cannot_read(path, error) from error
        if len(self._head) < HEADER.size or not self._head.startswith(MAGIC):
            raise UserError(f"{path}: is no index of Megatron-LM (it does not begin with MMIDIDX)")
        _, version, code, self.sequences, count = HEADER.unpack(self._head)
        if version != 1:
            raise UserError(f"{path}: version {version}, this llmkit reads 1")
        if code not in ID_TYPES:
            allowed = ", ".join(f"{code} ({np.dtype(name).name})" for code, name in ID_TYPES.items())
            raise UserError(f"{path}: type code {code}, ids may have {allowed}")
        self.dtype, self.documents = np.dtype(ID_TYPES[code]), max(count - 1, 0)
        self._pointers = HEADER.size + 4 * self.sequences
        self._bounds = self._pointers + 8 * self.sequences
        self._size = self._bounds + 8 * count
        if size != self._size:
            raise UserError(
                f"{path}: {size} bytes, its {self.sequences} sequences and {self.documents} documents take "
                f"{self._size}; the file was cut, or it holds more than text; {REMEDY}"
            )

    def read(self) -> Self:
        """Reads and checks all of it: sequences lie one after the other, documents are all of them in order.

        Raises UserError.
        """
        digest, tokens, last = xxh64(self._head), 0, 0
        lengths = self._chunks(HEADER.size, self.sequences, "<i4")
        pointers = self._chunks(self._pointers, self.sequences, "<i8")
        for some, begins in zip(lengths, pointers, strict=True):
            ends = tokens + np.cumsum(some, dtype=np.int64)
            if some.min() < 0 or (begins != (ends - some) * self.dtype.itemsize).any():
                raise self._wrong("its sequences do not lie one after the other")
            tokens = int(ends[-1])
        for bounds in self._chunks(self._bounds, (self._size - self._bounds) // 8, "<i8"):
            if bounds[0] < last or (np.diff(bounds) < 0).any():
                raise self._wrong("its documents are not in order")
            last = int(bounds[-1])
        if not self.documents or last != self.sequences or self._read(self._bounds, 1, "<i8")[0] != 0:
            raise self._wrong(f"its documents are not all of its {self.sequences} sequences")
        if tokens == 0:
            raise self._wrong("holds no tokens")
        for chunk in self._chunks(HEADER.size, self._size - HEADER.size, "u1"):
            digest.update(chunk.data)
        self.tokens, self.digest = tokens, digest.hexdigest()
        return self

    def document_ends(self) -> Iterator[np.ndarray]:
        """The token after the last one of each document, in order; (count,) int64 each."""
        for bounds in self._chunks(self._bounds + 8, self.documents, "<i8", DOCUMENTS_AT_ONCE):
            first, last = int(bounds[0]), int(bounds[-1])
            count = min(last + 1, self.sequences) - first
            begins = self._read(self._pointers + 8 * first, count, "<i8") // self.dtype.itemsize
            yield np.append(begins, self.tokens)[bounds - first]

    def _read(self, offset: int, count: int, dtype: str) -> np.ndarray:
        """`count` values from byte `offset` on."""
        try:
            values = np.fromfile(self.path, dtype=dtype, count=count, offset=offset)
        except OSError as error:
            raise cannot_read(self.path, error) from error
        if values.size != count:
            raise self._wrong("ends too early, it was cut")
        return values

    def _chunks(
        self, offset: int, count: int, dtype: str, at_once: int = VALUES_AT_ONCE
    ) -> Iterator[np.ndarray]:
        """The same, in chunks of `at_once`."""
        for first in range(0, count, at_once):
            yield self._read(offset + first * np.dtype(dtype).itemsize, min(at_once, count - first), dtype)

    def _wrong(self, what: str) -> UserError:
        return UserError(f"{self.path}: {what}; {REMEDY}")
