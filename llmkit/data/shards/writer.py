"""Writes token shards; the format is described in `llmkit.data.shards.format`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydantic import JsonValue
from xxhash import xxh64, xxh64_hexdigest

from llmkit.data.shards.format import BLOCK_BYTES, Index, ShardRecord, shard_name, stored_dtype, token_dtype
from llmkit.errors import UserError
from llmkit.files import sync_folder, write_atomic, write_sealed

SHARD_BYTES = 512 << 20
"""A shard is closed after the document that reaches this size."""


class _BlockHashes:
    """xxh64 of each BLOCK_BYTES of a stream of bytes."""

    def __init__(self) -> None:
        self.digests: list[str] = []
        self._hash, self._filled = xxh64(), 0

    def update(self, content: memoryview) -> None:
        while len(content):
            part = content[: BLOCK_BYTES - self._filled]
            self._hash.update(part)
            self._filled += len(part)
            content = content[len(part) :]
            if self._filled == BLOCK_BYTES:
                self._close_block()

    def finish(self) -> list[str]:
        if self._filled:
            self._close_block()
        return self.digests

    def _close_block(self) -> None:
        self.digests.append(self._hash.hexdigest())
        self._hash, self._filled = xxh64(), 0


class _TargetBits:
    """The target bits of a shard, written from the first token on that is no target.

    The file then begins with the bits of all the tokens before, which were targets.
    """

    def __init__(self, path: Path, files: ExitStack) -> None:
        self._path, self._files = path, files
        self._file: BinaryIO | None = None
        self._hashes, self._tokens = _BlockHashes(), 0
        self._rest = np.empty(0, dtype=bool)  # bits that do not fill a byte yet

    def add_targets(self, count: int) -> None:
        """The next `count` tokens are targets."""
        if self._file is not None:
            self.add(np.ones(count, dtype=bool))
        else:
            self._tokens += count

    def add(self, targets: np.ndarray) -> None:
        """Append the next tokens' bits; (count,) bool."""
        if self._file is None:
            if targets.all():
                self._tokens += targets.size
                return
            self._file = self._files.enter_context(write_atomic(self._path))
            for first in range(0, self._tokens, BLOCK_BYTES):
                self._append(np.ones(min(BLOCK_BYTES, self._tokens - first), dtype=bool))
        self._append(targets)

    def finish(self) -> list[str]:
        """Checksums of the blocks; empty if there is no file, as all tokens are targets."""
        if self._file is not None:
            self._write(np.packbits(self._rest, bitorder="little"))
        return self._hashes.finish()

    def _append(self, bits: np.ndarray) -> None:
        bits = np.concatenate((self._rest, bits))
        whole = bits.size - bits.size % 8
        self._write(np.packbits(bits[:whole], bitorder="little"))
        self._rest = bits[whole:]

    def _write(self, packed: np.ndarray) -> None:
        assert self._file is not None
        self._file.write(packed.data)
        self._hashes.update(packed.data)


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
        self._stored = stored_dtype(self.dtype)
        self._records: list[ShardRecord] = []
        self._text_bytes = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._begin()
        self._append(np.empty(0, dtype=np.int64))
        self._bits.add_targets(1)

    def add(
        self,
        tokens: np.ndarray,
        text_bytes: int,
        targets: np.ndarray | None = None,
        end_is_target: bool = True,
    ) -> None:
        """Append a document and its end-of-text; `tokens`: (count,) integers.

        text_bytes: UTF-8 size of what is to be learned of it. targets: (count,) bool, which of the tokens are
        targets of the loss, None = all. end_is_target: whether the end-of-text is.
        Raises UserError if an id lies outside the vocabulary: it would be stored as another one.
        """
        assert targets is None or targets.shape == tokens.shape, (targets, tokens.shape)
        low, high = (int(tokens.min()), int(tokens.max())) if tokens.size else (0, 0)
        if low < 0 or high >= self.vocab_size:
            wrong = low if low < 0 else high
            number = sum(record.documents for record in self._records) + len(self._offsets)
            raise UserError(
                f"{self.name}: token id {wrong} in document {number} is not in 0 .. {self.vocab_size - 1}, "
                "the vocabulary of the tokenizer"
            )
        if self._tokens * self._stored.itemsize >= self.shard_bytes:
            self._end()
            self._begin()
        self._offsets.append(self._tokens)
        self._append(tokens)
        if targets is None and end_is_target:
            self._bits.add_targets(tokens.size + 1)
        else:
            shown = np.ones(tokens.size, dtype=bool) if targets is None else targets.astype(bool)
            self._bits.add(np.append(shown, end_is_target))
        self._text_bytes += text_bytes

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
        number = len(self._records)
        self._open = ExitStack()
        path = self.folder / shard_name(self.name, number, "bin")
        self._file: BinaryIO = self._open.enter_context(write_atomic(path))
        self._bits = _TargetBits(self.folder / shard_name(self.name, number, "mask"), self._open)
        self._blocks, self._offsets, self._tokens, self._max_id = _BlockHashes(), list[int](), 0, 0

    def _append(self, tokens: np.ndarray) -> None:
        """Write tokens, and end-of-text after them."""
        stored = np.empty(tokens.size + 1, dtype=self._stored)
        stored[:-1], stored[-1] = tokens, self.end_of_text_id
        content = stored.view(np.uint8).data
        self._file.write(content)
        self._blocks.update(content)
        self._tokens += stored.size
        self._max_id = max(self._max_id, int(stored.max()))

    def _end(self) -> None:
        mask = self._bits.finish()
        self._open.close()
        offsets = np.array([*self._offsets, self._tokens], dtype="<u8").tobytes()
        with write_atomic(self.folder / shard_name(self.name, len(self._records), "idx")) as file:
            file.write(offsets)
        record = ShardRecord(
            tokens=self._tokens,
            documents=len(self._offsets),
            max_id=self._max_id,
            bytes=self._tokens * self._stored.itemsize,
            blocks=self._blocks.finish(),
            offsets=xxh64_hexdigest(offsets),
            mask=mask,
        )
        self._records.append(record)
