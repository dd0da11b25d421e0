"""A part of a source as tokens on disk, between its tokenization and the final shards.

A part file is a row of blocks and a table of them at the end. A block holds documents of some 64 MiB, those
to train on and those held out, each as flat arrays: lengths, sizes of the text that is to be learned, whether
the end-of-text is a target, tokens, and targets where some document has them. All arrays have checksums. The
file appears under its name when it is whole, so that what is there need not be made again.
"""

from __future__ import annotations

import json
import mmap
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from xxhash import xxh64_hexdigest

from llmkit.data.tokens.encode import Encoded
from llmkit.errors import RunFault
from llmkit.files import write_atomic

_TAIL = 16
"""Bytes at the end: length of the table and its xxh64, 8 each."""


@dataclass(frozen=True)
class Documents:
    """Some documents of a part; arrays of one entry a document, and of one a token.

    lengths: tokens without end-of-text. text_bytes: UTF-8 size of what is to be learned. ends: whether
    end-of-text is a target. tokens: one document after the other, without end-of-text. targets: None = all.
    """

    lengths: np.ndarray
    text_bytes: np.ndarray
    ends: np.ndarray
    tokens: np.ndarray
    targets: np.ndarray | None

    @property
    def count(self) -> int:
        """How many documents these are."""
        return int(self.lengths.size)

    @cached_property
    def starts(self) -> np.ndarray:
        """(documents + 1,) place of each document's first token, and the end of the last one."""
        return np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])

    @property
    def stream_lengths(self) -> np.ndarray:
        """(documents,) tokens that each takes in a stream, with its end-of-text."""
        return self.lengths.astype(np.int64) + 1

    def document(self, number: int) -> Encoded:
        """One of them."""
        part = slice(int(self.starts[number]), int(self.starts[number + 1]))
        targets = None if self.targets is None else self.targets[part]
        return Encoded(self.tokens[part], targets, int(self.text_bytes[number]), bool(self.ends[number]))

    def one_by_one(self) -> Iterator[Encoded]:
        """All of them, in order."""
        places, sizes, ends = self.starts.tolist(), self.text_bytes.tolist(), self.ends.tolist()
        for number, (size, end) in enumerate(zip(sizes, ends, strict=True)):
            part = slice(places[number], places[number + 1])
            targets = None if self.targets is None else self.targets[part]
            yield Encoded(self.tokens[part], targets, size, bool(end))


def join(documents: list[Encoded], dtype: np.dtype) -> Documents:
    """Documents in flat arrays, tokens as `dtype`, which must be able to hold them."""
    tokens = [document.tokens.astype(dtype) for document in documents]
    targets = None
    if any(document.targets is not None for document in documents):
        targets = np.concatenate(
            [
                np.ones(document.tokens.size, dtype=bool) if document.targets is None else document.targets
                for document in documents
            ]
        )
    return Documents(
        np.array([document.tokens.size for document in documents], dtype="<u4"),
        np.array([document.text_bytes for document in documents], dtype="<u8"),
        np.array([document.end_is_target for document in documents], dtype=np.uint8),
        np.concatenate(tokens) if tokens else np.zeros(0, dtype=dtype),
        targets,
    )


class PartWriter:
    """Writes a part file; nothing is there under its name before the `with` block has ended well."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left_out: Counter[str] = Counter()
        """What was left out of the part, by reason."""
        self.candidates = 0
        """Documents of the part, those that were left out too."""
        self.text_bytes = 0
        """UTF-8 bytes of its text, also of that which is not to be learned."""
        self.slow_reason: str | None = None
        """Why the fast tokenizer was not at work, if it was not."""
        self._blocks: list[dict[str, Any]] = []
        # Under a name of this process: one that outlives its parent for a moment disturbs nobody.
        self._aside = path.with_name(f".{path.name}-{os.getpid()}")
        self._whole = write_atomic(self._aside)

    def __enter__(self) -> PartWriter:
        self._file: BinaryIO = self._whole.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            names = ("left_out", "candidates", "text_bytes", "slow_reason")
            facts = {name: getattr(self, name) for name in names}
            table = json.dumps({"blocks": self._blocks, **facts}).encode()
            self._file.write(table)
            self._file.write(len(table).to_bytes(8, "little") + bytes.fromhex(xxh64_hexdigest(table)))
        self._whole.__exit__(*error)
        if error[0] is None:
            os.replace(self._aside, self.path)

    def add_block(self, train: Documents, heldout: Documents) -> None:
        """Append a block."""
        self._blocks.append({"train": self._write(train), "heldout": self._write(heldout)})

    def _write(self, documents: Documents) -> dict[str, Any]:
        targets = documents.targets
        arrays = {field.name: getattr(documents, field.name) for field in fields(documents)}
        arrays["targets"] = None if targets is None else np.packbits(targets)
        written = {}
        for name, array in arrays.items():
            if array is not None:
                content = np.ascontiguousarray(array).view(np.uint8).data
                self._file.write(content)
                written[name] = [array.dtype.str, int(array.size), xxh64_hexdigest(content)]
        return written


class PartReader:
    """Reads a part file; raises RunFault, and removes the file, where it is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size <= _TAIL:
                raise self._damaged()
            self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        length = int.from_bytes(self._content[size - _TAIL : size - 8], "little")
        table = self._content[max(0, size - _TAIL - length) : size - _TAIL]
        if xxh64_hexdigest(table) != self._content[size - 8 :].hex():
            raise self._damaged()
        content = json.loads(table)
        self._blocks: list[dict[str, Any]] = content["blocks"]
        self.left_out: Counter[str] = Counter(content["left_out"])
        self.candidates: int = content["candidates"]
        self.text_bytes: int = content["text_bytes"]
        self.slow_reason: str | None = content["slow_reason"]

    def blocks(self) -> Iterator[tuple[Documents, Documents]]:
        """Documents to train on and those held out, a pair a block; their arrays lie in the file."""
        place = 0
        for block in self._blocks:
            pair = []
            for split in ("train", "heldout"):
                arrays = {}
                for name, (dtype, count, checksum) in block[split].items():
                    array = np.frombuffer(self._content, dtype=dtype, count=count, offset=place)
                    if xxh64_hexdigest(array.view(np.uint8).data) != checksum:
                        raise self._damaged()
                    arrays[name] = array
                    place += array.nbytes
                packed = arrays.pop("targets", None)
                if packed is None:
                    pair.append(Documents(**arrays, targets=None))
                else:
                    bits = np.unpackbits(packed, count=arrays["tokens"].size).view(bool)
                    pair.append(Documents(**arrays, targets=bits))
            yield pair[0], pair[1]

    def _damaged(self) -> RunFault:
        self.path.unlink(missing_ok=True)
        return RunFault(f"{self.path}: was damaged and is removed; run the same command again")
