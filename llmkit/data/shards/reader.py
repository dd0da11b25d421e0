"""Reads token shards; the format is described in `llmkit.data.shards.format`.

Row k of a stream, for rows of T tokens, is tokens kT .. kT+T: T inputs and the label of the last one, so
that neighbours share a token and no label is lost.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Literal

import numpy as np
from xxhash import xxh64_hexdigest

from llmkit.data.shards.format import BLOCK_BYTES, read_index, shard_name, stored_dtype, token_dtype
from llmkit.errors import UserError


class ShardReader:
    """Reads a token stream by memory map; every block is checked against its checksum on first touch.

    vocab_size: what the model has, None to skip the check. tokenizer: the hash that is expected, None to
    skip the check. remedy: ends the message of each UserError. Those are raised for a folder that is
    missing, broken, of another version, or written with another tokenizer, and, while reading, for a
    damaged block.
    """

    def __init__(
        self,
        folder: Path,
        vocab_size: int | None = None,
        tokenizer: str | None = None,
        remedy: str = "build the data again",
    ) -> None:
        self.folder = folder
        self.index = read_index(folder, remedy)
        self._remedy = remedy
        self._dtype = stored_dtype(self.index.dtype)
        self._check_index(vocab_size, tokenizer)
        self._maps = [self._open(number) for number in range(len(self.index.shards))]
        self._tokens = [np.frombuffer(content, dtype=self._dtype) for content in self._maps]
        self._starts = np.cumsum([0] + [shard.tokens for shard in self.index.shards])
        self._unchecked = [np.ones(len(shard.blocks), dtype=bool) for shard in self.index.shards]
        self._windows: dict[tuple[int, int], np.ndarray] = {}

    @property
    def tokens(self) -> int:
        """Length of the stream, end-of-text tokens included."""
        return self.index.tokens

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start .. stop-1 of the stream, across shards; shape (stop - start,), the stored type."""
        assert 0 <= start <= stop <= self.tokens, (start, stop, self.tokens)
        parts = []
        for number, tokens in enumerate(self._tokens):
            first, end = self._starts[number], self._starts[number + 1]
            if start < end and stop > first:
                low, high = max(start - first, 0), min(stop, end) - first
                self._check_blocks(number, np.array([low]), np.array([high]))
                parts.append(tokens[low:high])
        return np.concatenate(parts) if parts else self._tokens[0][:0].copy()

    def rows(self, index: np.ndarray, length: int) -> np.ndarray:
        """Rows of `length` inputs and the last one's label; `index`: (count,), result (count, length + 1)."""
        assert index.size == 0 or 0 <= index.min() <= index.max() < self.row_count(length), index
        starts = index * length
        if len(self._tokens) == 1 and index.size:  # the usual case needs no look at each row
            return self._take(0, starts, length + 1)
        out = np.empty((index.size, length + 1), dtype=self._dtype)
        shard = np.searchsorted(self._starts, starts, side="right") - 1
        straddles = starts + length >= self._starts[shard + 1]
        for number in np.unique(shard[~straddles]):
            here = (shard == number) & ~straddles
            out[here] = self._take(number, starts[here] - self._starts[number], length + 1)
        for place in np.flatnonzero(straddles):
            out[place] = self.read(starts[place], starts[place] + length + 1)
        return out

    def row_count(self, length: int) -> int:
        """How many whole rows of `length` inputs the stream has."""
        return (self.tokens - 1) // length

    def document(self, number: int) -> np.ndarray:
        """Tokens of a document, without end-of-text; shape (tokens,)."""
        assert 0 <= number < self.index.documents, number
        shard = 0
        while number >= self.index.shards[shard].documents:
            number -= self.index.shards[shard].documents
            shard += 1
        first, end = (int(place) for place in self._offsets(shard)[number : number + 2])
        return self.read(int(self._starts[shard]) + first, int(self._starts[shard]) + end - 1)

    def verify(self) -> int:
        """Check every block, the documents' places and the largest id; returns the number of blocks."""
        for number, record in enumerate(self.index.shards):
            self._check_blocks(number, np.array([0]), np.array([record.tokens]))
            self._offsets(number)
            if int(self._tokens[number].max()) != record.max_id:
                raise UserError(
                    f"{self._path(number)}: its largest id is not the {record.max_id} of index.json"
                )
        return sum(len(record.blocks) for record in self.index.shards)

    def _take(self, shard: int, starts: np.ndarray, width: int) -> np.ndarray:
        """`width` tokens from each place in `starts` of one shard, (count, width)."""
        self._check_blocks(shard, starts, starts + width)
        if (shard, width) not in self._windows:
            # Every run of `width` tokens as a view, so that one call of numpy copies all rows.
            view = np.lib.stride_tricks.sliding_window_view(self._tokens[shard], width)
            self._windows[shard, width] = view
        return self._windows[shard, width][starts]

    def _path(self, shard: int, suffix: Literal["bin", "idx"] = "bin") -> Path:
        return self.folder / shard_name(self.index.name, shard, suffix)

    def _check_index(self, vocab_size: int | None, tokenizer: str | None) -> None:
        index, place = self.index, self.folder / "index.json"
        if tokenizer is not None and tokenizer != index.tokenizer:
            raise UserError(
                f"{place}: these tokens were made with tokenizer {index.tokenizer}, the run has {tokenizer}; "
                f"{self._remedy}"
            )
        if index.dtype != token_dtype(index.vocab_size):
            raise UserError(
                f"{place}: dtype {index.dtype} does not go with a vocabulary of {index.vocab_size} tokens; "
                f"{self._remedy}"
            )
        limit = index.vocab_size if vocab_size is None else min(vocab_size, index.vocab_size)
        for number, record in enumerate(index.shards):
            if record.max_id >= limit:
                raise UserError(
                    f"{self._path(number)}: holds token id {record.max_id}, the vocabulary has {limit} "
                    "tokens; use the tokenizer that the data was built with"
                )
            size = record.tokens * self._dtype.itemsize
            if record.bytes != size or len(record.blocks) != -(-size // BLOCK_BYTES):
                raise UserError(
                    f"{place}: the figures of shard {number} contradict each other; {self._remedy}"
                )

    def _open(self, shard: int) -> mmap.mmap:
        path, expected = self._path(shard), self.index.shards[shard].bytes
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                if size != expected:
                    raise UserError(
                        f"{path}: {size} bytes, index.json says {expected}; the file was cut or written "
                        f"over; {self._remedy}"
                    )
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read ({error.strerror}), index.json lists it; {self._remedy}"
            ) from error

    def _check_blocks(self, shard: int, first: np.ndarray, end: np.ndarray) -> None:
        """Check the blocks under token ranges first[i] .. end[i]-1, those not yet checked."""
        unchecked = self._unchecked[shard]
        if not unchecked.any():
            return
        item = self._dtype.itemsize
        low, high = first * item // BLOCK_BYTES, (end * item - 1) // BLOCK_BYTES
        touched = np.zeros(len(unchecked) + 1, dtype=np.int64)
        np.add.at(touched, low, 1)
        np.add.at(touched, high + 1, -1)
        for block in np.flatnonzero((np.cumsum(touched)[:-1] > 0) & unchecked):
            begin = int(block) * BLOCK_BYTES
            content = memoryview(self._maps[shard])[begin : begin + BLOCK_BYTES]
            if xxh64_hexdigest(content) != self.index.shards[shard].blocks[block]:
                end_byte = begin + len(content) - 1
                raise UserError(
                    f"{self._path(shard)}: block {block} (bytes {begin} to {end_byte}) does not match its "
                    f"checksum, the file is damaged; {self._remedy}"
                )
            unchecked[block] = False

    def _offsets(self, shard: int) -> np.ndarray:
        """Place of each document's first token in a shard, then the shard's length; (documents + 1,)."""
        path, record = self._path(shard, "idx"), self.index.shards[shard]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); {self._remedy}") from error
        if len(content) != 8 * (record.documents + 1) or xxh64_hexdigest(content) != record.offsets:
            raise UserError(f"{path}: does not match its checksum in index.json; {self._remedy}")
        return np.frombuffer(content, dtype="<u8")
