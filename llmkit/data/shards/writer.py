"""Writes token shards; the format is described in `llmkit.data.shards.format`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydantic import JsonValue
from xxhash import xxh64, xxh64_hexdigest

from llmkit.data.shards.documents import Documents
from llmkit.data.shards.format import (
    BLOCK_BYTES,
    Index,
    ShardRecord,
    Suffix,
    shard_name,
    stored_dtype,
    token_dtype,
)
from llmkit.errors import UserError
from llmkit.files import sync_folder, write_atomic, write_sealed

SHARD_BYTES = 512 << 20
"""A shard is closed after the document that reaches this size."""


class _BlockHashes:
    """xxh64 of each BLOCK_BYTES of a stream of bytes."""

    def __init__(self) -> None:
        self._hashes, self._bytes = list[xxh64](), 0

    def update(self, content: memoryview) -> None:
        while len(content):
            filled = self._bytes % BLOCK_BYTES
            if not filled:
                self._hashes.append(xxh64())
            piece = content[: BLOCK_BYTES - filled]
            self._hashes[-1].update(piece)
            self._bytes += len(piece)
            content = content[len(piece) :]

    def digests(self) -> list[str]:
        return [each.hexdigest() for each in self._hashes]


class _Mask:
    """Which tokens of a shard are targets, packed in memory until the shard is closed."""

    def __init__(self) -> None:
        self._targets, self._has_others = 0, False  # tokens before the first that is no target
        self._packed, self._rest = bytearray(), np.empty(0, dtype=bool)  # the rest does not fill a byte yet

    def add(self, count: int, targets: np.ndarray | None) -> None:
        """The next `count` tokens; targets: (count,) bool, None = all are targets."""
        if targets is None or targets.all():
            if not self._has_others:
                self._targets += count
                return
            targets = np.ones(count, dtype=bool)
        if not self._has_others:
            self._packed, self._has_others = bytearray(b"\xff" * (self._targets // 8)), True
            self._rest = np.ones(self._targets % 8, dtype=bool)
        bits = np.concatenate((self._rest, targets))
        whole = bits.size - bits.size % 8
        self._packed += np.packbits(bits[:whole], bitorder="little").data
        self._rest = bits[whole:]

    def finish(self) -> bytearray:
        """A bit a token, little-endian in its byte; empty if all tokens are targets."""
        return self._packed + np.packbits(self._rest, bitorder="little").data


class ShardWriter:
    """Writes documents as a token stream; nothing can be read before `finish` wrote the index.

    folder: is created. name: begins the file names. tokenizer: hash of the tokenizer. vocab_size: ids
    must be below it. shard_bytes: a shard is closed by the document that reaches this size.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        tokenizer: str,
        vocab_size: int,
        end_of_text_id: int,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        if not 0 <= end_of_text_id < vocab_size <= 1 << 32:
            raise UserError(
                f"{name}: end-of-text id {end_of_text_id} and a vocabulary of {vocab_size} tokens cannot be "
                f"stored: ids must be below the vocabulary's size, and that at most {1 << 32}"
            )
        self.folder, self.name, self.tokenizer = folder, name, tokenizer
        self.vocab_size, self.end_of_text_id, self.shard_bytes = vocab_size, end_of_text_id, shard_bytes
        self.dtype = token_dtype(vocab_size)
        self.stored = stored_dtype(self.dtype)
        self._records: list[ShardRecord] = []
        self._text_bytes = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._begin()
        self._append(np.array([end_of_text_id]), None)

    def add(
        self,
        tokens: np.ndarray,
        text_bytes: int,
        targets: np.ndarray | None = None,
        end_is_target: bool = True,
    ) -> None:
        """Append a document and its end-of-text; `tokens`: (count,) integers.

        text_bytes: UTF-8 size of what is to be learned of it. targets: (count,) bool, which of the tokens are
        targets of the loss, None = all. end_is_target: whether the end-of-text is. Raises as `add_all`.
        """
        stream = np.append(tokens, self.end_of_text_id)
        if targets is not None or not end_is_target:
            before = np.ones(tokens.size, dtype=bool) if targets is None else targets.astype(bool)
            targets = np.append(before, end_is_target)
        self.add_all(Documents(stream, np.array([stream.size]), text_bytes, targets))

    def add_all(self, documents: Documents) -> None:
        """Append documents.

        Raises UserError if an id lies outside the vocabulary: it would be stored as another one.
        """
        tokens, lengths, text_bytes, targets = documents
        assert targets is None or targets.shape == tokens.shape, (targets, tokens.shape)
        self._text_bytes += text_bytes
        ends, limit = np.cumsum(lengths), -(-self.shard_bytes // self.stored.itemsize)
        first = begin = 0
        while first < lengths.size:
            if self._tokens >= limit:
                self._end()
                self._begin()
            last = 1 + int(np.searchsorted(ends[:-1], begin + limit - self._tokens))
            end = int(ends[last - 1])
            self._offsets.append(self._tokens - begin + ends[first:last] - lengths[first:last])
            self._append(tokens[begin:end], None if targets is None else targets[begin:end])
            first, begin = last, end

    def finish(self, extra: dict[str, JsonValue] | None = None) -> Index:
        """Close the last shard and write the index, which makes the folder readable."""
        self._end()
        index = Index(
            name=self.name,
            dtype=self.dtype,
            vocab_size=self.vocab_size,
            end_of_text_id=self.end_of_text_id,
            tokenizer=self.tokenizer,
            text_bytes=self._text_bytes,
            shards=self._records,
            extra=extra or {},
        )
        write_sealed(self.folder / "index.json", index.model_dump())
        sync_folder(self.folder)
        return index

    def _begin(self) -> None:
        self._open = ExitStack()
        self._file: BinaryIO = self._open.enter_context(write_atomic(self._path("bin")))
        self._mask, self._blocks, self._offsets = _Mask(), _BlockHashes(), list[np.ndarray]()
        self._tokens, self._max_id = 0, 0

    def _path(self, suffix: Suffix) -> Path:
        return self.folder / shard_name(self.name, len(self._records), suffix)

    def _append(self, tokens: np.ndarray, targets: np.ndarray | None) -> None:
        """Write tokens, end-of-text among them; targets: as in `Documents`."""
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.vocab_size:
            wrong = low if low < 0 else high
            at = self._tokens + int(np.flatnonzero(tokens == wrong)[0])
            inside = int(np.searchsorted(np.concatenate(self._offsets), at, side="right")) - 1
            raise UserError(
                f"{self.name}: token id {wrong} in document "
                f"{sum(record.documents for record in self._records) + inside} is not in 0 .. "
                f"{self.vocab_size - 1}, the vocabulary of the tokenizer"
            )
        content = np.ascontiguousarray(tokens, dtype=self.stored).view(np.uint8).data
        self._file.write(content)
        self._blocks.update(content)
        self._mask.add(tokens.size, targets)
        self._tokens += tokens.size
        self._max_id = max(self._max_id, high)

    def _end(self) -> None:
        self._open.close()
        starts = np.concatenate([*self._offsets, [self._tokens]]).astype("<u8")
        offsets = starts.tobytes()
        with write_atomic(self._path("idx")) as file:
            file.write(offsets)
        hashes = _BlockHashes()
        if mask := self._mask.finish():
            hashes.update(memoryview(mask))
            with write_atomic(self._path("mask")) as file:
                file.write(mask)
        record = ShardRecord(
            tokens=self._tokens,
            documents=starts.size - 1,
            max_id=self._max_id,
            bytes=self._tokens * self.stored.itemsize,
            blocks=self._blocks.digests(),
            offsets=xxh64_hexdigest(offsets),
            mask=hashes.digests(),
        )
        self._records.append(record)
