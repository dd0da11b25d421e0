"""Reads token shards; the format is described in `llmkit.data.shards.format`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from xxhash import xxh64_hexdigest

from llmkit.data.shards.arrays import MaskArray, TokenArray
from llmkit.data.shards.dataset import DocumentBounds, TokenDataset
from llmkit.data.shards.format import Suffix, mask_bytes, read_index, shard_name, stored_dtype
from llmkit.data.shards.mmap_file import MappedFile, checksum
from llmkit.errors import UserError
from llmkit.files import cannot_read


class ShardReader(TokenDataset):
    """Reads a token stream by memory map; every block is checked against its checksum before its first use.

    vocab_size: what the model has. tokenizer: the hash that is expected. end_of_text_id: what ends documents.
    None skips the check of each. remedy: ends the message of each UserError. Those are raised for a folder
    that is missing, broken, of another version, or written with another tokenizer, and, while reading, for a
    damaged block; RunFault for a file that is cut, replaced or removed while it is being read.
    """

    text_bytes: int

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
        shards = self.index.shards
        self._files = [self._open(shard) for shard in range(len(shards))]
        masks = [self._open_mask(shard) for shard in range(len(shards))]
        super().__init__(
            self._files,
            masks if any(record.mask for record in shards) else None,
            first_is_last=True,
            documents=self.index.documents,
            text_bytes=self.index.text_bytes,
        )
        hashes = [block for record in shards for block in record.blocks]
        hashes += [f"{shard}:{block}" for shard, record in enumerate(shards) for block in record.mask]
        self.digest = xxh64_hexdigest(" ".join(hashes).encode())

    def verify(self) -> int:
        """Checks every block, the documents' offsets and the largest id; returns the number of blocks."""
        blocks = super().verify()
        for shard, record in enumerate(self.index.shards):
            self.document_bounds(shard)
            if int(self._files[shard].values.max()) != record.max_id:
                raise UserError(
                    f"{self._path(shard)}: its largest id is not the {record.max_id} of index.json"
                )
        return blocks

    def document(self, index: int) -> np.ndarray:
        """Tokens of a document, without end-of-text; shape (tokens,)."""
        lengths = self.document_lengths()
        end = int(lengths[: index + 1].sum())
        return self.read(1 + end - int(lengths[index]), end)

    def document_lengths(self) -> np.ndarray:
        """Tokens of each document of the stream, its end-of-text included; (documents,) int64."""
        bounds = [self.document_bounds(shard) for shard in range(len(self.index.shards))]
        return np.concatenate([np.diff(each.astype(np.int64)) for each in bounds])

    def document_bounds_between(self, start: int, stop: int) -> Iterator[DocumentBounds]:
        """Those of the shards with tokens start .. stop-1."""
        begin = documents = 0
        for shard, record in enumerate(self.index.shards):
            if begin < stop and start < begin + record.tokens:
                bounds = begin + self.document_bounds(shard).astype(np.int64)
                yield DocumentBounds(str(self._path(shard)), documents, 0, bounds)
            begin, documents = begin + record.tokens, documents + record.documents

    def document_bounds(self, shard: int) -> np.ndarray:
        """Offset of each document's first token in a shard, then the shard's length; (documents + 1,)."""
        path, record = self._path(shard, "idx"), self.index.shards[shard]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise cannot_read(path, error, self._remedy) from error
        if len(content) != 8 * (record.documents + 1) or xxh64_hexdigest(content) != record.offsets:
            raise UserError(f"{path}: does not match its checksum in index.json; {self._remedy}")
        return np.frombuffer(content, dtype="<u8")

    def _path(self, shard: int, suffix: Suffix = "bin") -> Path:
        return self.folder / shard_name(self.index.name, shard, suffix)

    def _check_index(self, vocab_size: int | None, tokenizer: str | None, end_of_text_id: int | None) -> None:
        index, path = self.index, self.folder / "index.json"
        if tokenizer is not None and tokenizer != index.tokenizer:
            raise UserError(
                f"{path}: these tokens were made with tokenizer {index.tokenizer}, the run has {tokenizer}; "
                f"{self._remedy}"
            )
        limit = index.vocab_size if vocab_size is None else min(vocab_size, index.vocab_size)
        for shard, record in enumerate(index.shards):
            if record.max_id >= limit:
                raise UserError(
                    f"{self._path(shard)}: holds token id {record.max_id}, the vocabulary has {limit} "
                    "tokens; use the tokenizer that the data was built with"
                )
        if end_of_text_id is not None and end_of_text_id != index.end_of_text_id:
            raise UserError(
                f"{path}: documents end with token {index.end_of_text_id}, the tokenizer's end-of-text is "
                f"{end_of_text_id}; {self._remedy}"
            )

    def _open(self, shard: int) -> TokenArray:
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

        return TokenArray(MappedFile(path, record.bytes, "index.json", self._remedy, check), self._dtype)

    def _open_mask(self, shard: int) -> MaskArray:
        path, record = self._path(shard, "mask"), self.index.shards[shard]
        if not record.mask:
            return MaskArray(None, record.tokens)
        check = checksum(path, record.mask, self._remedy)
        file = MappedFile(path, mask_bytes(record.tokens), "index.json", self._remedy, check)
        return MaskArray(file, record.tokens)
