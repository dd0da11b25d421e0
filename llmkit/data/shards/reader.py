"""Reads token shards; the format is described in `llmkit.data.shards.format`.

Row k of a stream, for rows of T tokens, is tokens kT .. kT+T: T inputs and the label of the last one, so
that neighbours share a token and no label is lost. The stream is repeated without end: see `RowSource`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from xxhash import xxh64_hexdigest

from llmkit.data.shards.format import BLOCK_BYTES, Suffix, read_index, shard_name, stored_dtype, token_dtype
from llmkit.data.shards.mapped import MappedFile, checksum
from llmkit.data.shards.masks import TargetBits
from llmkit.data.shards.token_files import TokenFiles
from llmkit.errors import UserError
from llmkit.files import cannot_read

COUNTED = 1 << 20
"""Marks of targets that are counted at a time."""


class ShardReader:
    """Reads a token stream by memory map; every block is checked against its checksum on first touch.

    vocab_size: what the model has. tokenizer: the hash that is expected. end_of_text_id: what ends documents.
    None skips the check of each. remedy: ends the message of each UserError. Those are raised for a folder
    that is missing, broken, of another version, or written with another tokenizer, and, while reading, for a
    damaged block; RunFault for a file that is cut, replaced or removed while it is being read.
    """

    def __init__(
        self,
        folder: Path,
        vocab_size: int | None = None,
        tokenizer: str | None = None,
        remedy: str = "build the data again",
        end_of_text_id: int | None = None,
    ) -> None:
        self.folder = folder
        self.index = read_index(folder, remedy)
        self._remedy = remedy
        self._dtype = stored_dtype(self.index.dtype)
        self._check_index(vocab_size, tokenizer, end_of_text_id)
        numbers = range(len(self.index.shards))
        self._stream = TokenFiles([self._open(number) for number in numbers], self._dtype, first_is_last=True)
        self._masks: TargetBits | None = None
        if any(shard.mask for shard in self.index.shards):
            masks = [self._open_mask(number) for number in numbers]
            self._masks = TargetBits(masks, [shard.tokens for shard in self.index.shards])

    @property
    def tokens(self) -> int:
        """Length of the stream, end-of-text tokens included."""
        return self.index.tokens

    @property
    def documents(self) -> int:
        """Documents of the stream."""
        return self.index.documents

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of the text that is to be learned."""
        return self.index.text_bytes

    @property
    def has_targets(self) -> bool:
        """Whether some tokens are no targets of the loss."""
        return self._masks is not None

    @property
    def digest(self) -> str:
        """One hash of all the tokens, and of which are targets."""
        blocks = [block for shard in self.index.shards for block in shard.blocks]
        masks = [
            f"{number}:{block}" for number, shard in enumerate(self.index.shards) for block in shard.mask
        ]
        return xxh64_hexdigest(" ".join(blocks + masks).encode())

    @property
    def period(self) -> int:
        """Tokens after which the stream begins again; its first and last token are the same end-of-text."""
        return self._stream.period

    def rows(self, index: np.ndarray, length: int, out: np.ndarray | None = None) -> np.ndarray:
        """Rows of `length` inputs and the last one's label; `index`: (count,), result (count, length + 1).

        The result is `out` where that is given, whatever integer type it has, else a new array of the
        stored type.
        """
        return self._stream.rows(index, length, out)

    def targets(self, index: np.ndarray, length: int) -> np.ndarray | None:
        """Which labels of the rows are targets: (count, length) bool, place t for token t+1; None = all."""
        return None if self._masks is None else self._masks.rows(index, length)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start .. stop-1 of the stream, across shards; shape (stop - start,), the stored type."""
        return self._stream.read(start, stop)

    def read_targets(self, start: int, stop: int) -> np.ndarray | None:
        """Which of tokens start .. stop-1 are targets, as labels; (stop - start,) bool, None = all."""
        assert 0 <= start <= stop <= self.tokens, (start, stop, self.tokens)
        return None if self._masks is None else self._masks.read(start, stop)

    def count_targets(self) -> int:
        """Targets of the stream: all its tokens but the first, or those that are marked, which are read."""
        if not self.has_targets:
            return self.tokens - 1
        count = 0
        for start in range(1, self.tokens, COUNTED):
            is_target = self.read_targets(start, min(start + COUNTED, self.tokens))
            assert is_target is not None
            count += int(is_target.sum())
        return count

    def document(self, number: int) -> np.ndarray:
        """Tokens of a document, without end-of-text; shape (tokens,)."""
        assert 0 <= number < self.index.documents, number
        shard, begin = 0, 0
        while number >= self.index.shards[shard].documents:
            number -= self.index.shards[shard].documents
            begin += self.index.shards[shard].tokens
            shard += 1
        first, end = (int(place) for place in self._offsets(shard)[number : number + 2])
        return self.read(begin + first, begin + end - 1)

    def verify(self) -> int:
        """Check every block, the documents' places and the largest id; returns the number of blocks."""
        blocks = self._stream.check_all() + (self._masks.check_all() if self._masks else 0)
        for number, record in enumerate(self.index.shards):
            self._offsets(number)
            if self._stream.largest(number) != record.max_id:
                raise UserError(
                    f"{self._path(number)}: its largest id is not the {record.max_id} of index.json"
                )
        return blocks

    def _path(self, shard: int, suffix: Suffix = "bin") -> Path:
        return self.folder / shard_name(self.index.name, shard, suffix)

    def _check_index(self, vocab_size: int | None, tokenizer: str | None, end_of_text_id: int | None) -> None:
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
            masks = -(-record.tokens // 8 // BLOCK_BYTES) if record.mask else 0
            if (
                record.bytes != size
                or len(record.blocks) != -(-size // BLOCK_BYTES)
                or len(record.mask) != masks
            ):
                raise UserError(
                    f"{place}: the figures of shard {number} contradict each other; {self._remedy}"
                )
        if end_of_text_id is not None and end_of_text_id != index.end_of_text_id:
            raise UserError(
                f"{place}: documents end with token {index.end_of_text_id}, the tokenizer's end-of-text is "
                f"{end_of_text_id}; {self._remedy}"
            )

    def _open(self, shard: int) -> MappedFile:
        path, record = self._path(shard), self.index.shards[shard]
        is_whole = checksum(path, record.blocks, self._remedy)

        def check(block: int, content: memoryview) -> None:
            is_whole(block, content)
            largest = int(np.frombuffer(content, dtype=self._dtype).max())
            if largest > record.max_id:  # which the vocabulary was compared with
                raise UserError(
                    f"{path}: holds token id {largest}, index.json says that {record.max_id} is the largest; "
                    f"{self._remedy}"
                )

        return MappedFile(path, record.bytes, "index.json", self._remedy, check)

    def _open_mask(self, shard: int) -> MappedFile | None:
        path, record = self._path(shard, "mask"), self.index.shards[shard]
        if not record.mask:
            return None
        check = checksum(path, record.mask, self._remedy)
        return MappedFile(path, -(-record.tokens // 8), "index.json", self._remedy, check)

    def _offsets(self, shard: int) -> np.ndarray:
        """Place of each document's first token in a shard, then the shard's length; (documents + 1,)."""
        path, record = self._path(shard, "idx"), self.index.shards[shard]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise cannot_read(path, error, self._remedy) from error
        if len(content) != 8 * (record.documents + 1) or xxh64_hexdigest(content) != record.offsets:
            raise UserError(f"{path}: does not match its checksum in index.json; {self._remedy}")
        return np.frombuffer(content, dtype="<u8")
