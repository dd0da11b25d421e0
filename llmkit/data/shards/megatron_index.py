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
from typing import NamedTuple

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


class MegatronIndex(NamedTuple):
    """What an index file says; tokens: of all its sequences, documents: their number, digest: its content."""

    path: Path
    dtype: np.dtype
    sequences: int
    documents: int
    tokens: int
    digest: str

    def document_ends(self) -> Iterator[np.ndarray]:
        """The token after the last one of each document, in order; (count,) int64 each."""
        base = HEADER.size + 12 * self.sequences
        for bounds in _chunks(self.path, base + 8, self.documents, "<i8", DOCUMENTS_AT_ONCE):
            first, last = int(bounds[0]), int(bounds[-1])
            count = min(last + 1, self.sequences) - first
            pointers = HEADER.size + 4 * self.sequences + 8 * first
            begins = _read(self.path, pointers, count, "<i8") // self.dtype.itemsize
            yield np.append(begins, self.tokens)[bounds - first]


def _read(path: Path, offset: int, count: int, dtype: str) -> np.ndarray:
    """`count` values of a file from byte `offset` on."""
    try:
        values = np.fromfile(path, dtype=dtype, count=count, offset=offset)
    except OSError as error:
        raise cannot_read(path, error) from error
    if values.size != count:
        raise UserError(f"{path}: ends too early, it was cut; {REMEDY}")
    return values


def _chunks(
    path: Path, offset: int, count: int, dtype: str, at_once: int = VALUES_AT_ONCE
) -> Iterator[np.ndarray]:
    """The same, in chunks of `at_once`."""
    size = np.dtype(dtype).itemsize
    for first in range(0, count, at_once):
        yield _read(path, offset + first * size, min(at_once, count - first), dtype)


class Head(NamedTuple):
    """The beginning of an index file. bounds: how many values bound the documents. raw: its bytes."""

    dtype: np.dtype
    sequences: int
    bounds: int
    raw: bytes


def read_head(path: Path) -> Head:
    """Read and check the beginning of an index file, and its size; raises UserError."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEADER.size)
    except OSError as error:
        raise cannot_read(path, error) from error
    if len(head) < HEADER.size or not head.startswith(MAGIC):
        raise UserError(f"{path}: is no index of Megatron-LM (it does not begin with MMIDIDX)")
    _, version, code, sequences, bounds = HEADER.unpack(head)
    if version != 1:
        raise UserError(f"{path}: version {version}, this llmkit reads 1")
    if code not in ID_TYPES:
        allowed = ", ".join(f"{code} ({np.dtype(name).name})" for code, name in ID_TYPES.items())
        raise UserError(f"{path}: type code {code}, ids may have {allowed}")
    expected = HEADER.size + 12 * sequences + 8 * bounds
    if size != expected:
        raise UserError(
            f"{path}: {size} bytes, its {sequences} sequences and {max(bounds - 1, 0)} documents take "
            f"{expected}; the file was cut, or it holds more than text; {REMEDY}"
        )
    return Head(np.dtype(ID_TYPES[code]), sequences, bounds, head)


def read_index(path: Path) -> MegatronIndex:
    """Read and check an index file, all of it, in chunks; raises UserError."""
    dtype, sequences, bounds, head = read_head(path)
    tokens = _check_sequences(path, sequences, dtype.itemsize)
    _check_documents(path, sequences, bounds)
    if tokens == 0:
        raise UserError(f"{path}: holds no tokens; {REMEDY}")
    digest = xxh64(head)
    for chunk in _chunks(path, HEADER.size, 12 * sequences + 8 * bounds, "u1"):
        digest.update(chunk.data)
    return MegatronIndex(path, dtype, sequences, bounds - 1, tokens, digest.hexdigest())


def _check_sequences(path: Path, sequences: int, item: int) -> int:
    """Check that the sequences lie one after the other; returns their tokens."""
    tokens = 0
    lengths = _chunks(path, HEADER.size, sequences, "<i4")
    pointers = _chunks(path, HEADER.size + 4 * sequences, sequences, "<i8")
    for some, begins in zip(lengths, pointers, strict=True):
        ends = tokens + np.cumsum(some, dtype=np.int64)
        if some.min() < 0 or (begins != (ends - some) * item).any():
            raise UserError(f"{path}: its sequences do not lie one after the other; {REMEDY}")
        tokens = int(ends[-1])
    return tokens


def _check_documents(path: Path, sequences: int, bounds: int) -> None:
    """Check that the documents are all sequences in order."""
    first, last = -1, 0
    for chunk in _chunks(path, HEADER.size + 12 * sequences, bounds, "<i8"):
        if chunk[0] < last or (np.diff(chunk) < 0).any():
            raise UserError(f"{path}: its documents are not in order; {REMEDY}")
        first, last = int(chunk[0]) if first < 0 else first, int(chunk[-1])
    if bounds < 2 or first != 0 or last != sequences:
        raise UserError(f"{path}: its documents are not all of its {sequences} sequences; {REMEDY}")
