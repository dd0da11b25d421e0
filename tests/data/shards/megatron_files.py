"""Writes the files of Megatron-LM, from the description of their format."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "float64": 6, "float32": 7, "uint16": 8}


def write_megatron(prefix: Path, documents: Sequence[Sequence[Sequence[int]]], dtype: str = "uint16") -> Path:
    """A pair of files; a document is a list of sequences, a sequence a list of ids (end-of-text included)."""
    sequences = [sequence for document in documents for sequence in document]
    ids = b"".join(np.array(sequence, dtype=dtype).tobytes() for sequence in sequences)
    index = b"MMIDIDX\x00\x00" + struct.pack("<Q", 1) + struct.pack("<B", CODES[dtype])
    index += struct.pack("<QQ", len(sequences), len(documents) + 1)
    for sequence in sequences:
        index += struct.pack("<i", len(sequence))
    place = 0
    for sequence in sequences:
        index += struct.pack("<q", place)
        place += len(sequence) * np.dtype(dtype).itemsize
    first = 0
    for document in documents:
        index += struct.pack("<q", first)
        first += len(document)
    index += struct.pack("<q", first)
    prefix.with_name(prefix.name + ".bin").write_bytes(ids)
    prefix.with_name(prefix.name + ".idx").write_bytes(index)
    return prefix
