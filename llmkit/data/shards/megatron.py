"""Reads the token files of Megatron-LM in place, without a copy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from xxhash import xxh64_hexdigest

from llmkit.data.shards.format import BLOCK_BYTES
from llmkit.data.shards.mapped import Check, MappedFile
from llmkit.data.shards.megatron_index import REMEDY, find_prefixes, read_index, with_suffix
from llmkit.data.shards.token_files import TokenFiles
from llmkit.errors import UserError

COUNTED = 1 << 22
"""Tokens that are looked through at a time."""


class MegatronReader:
    """Reads Megatron-LM's files as one stream, the tokens as they lie there, one file after the other.

    path: PREFIX of PREFIX.bin and PREFIX.idx, a folder with such files, or a glob pattern. vocab_size: ids
    must be below it; a block of ids is checked when it is first read. end_of_text_id: ends every document;
    that of the last one is looked at here, the others by `check_documents`.
    Raises UserError for files that are missing, broken, in conflict with each other or made with another
    tokenizer, and while reading, for an id outside the vocabulary; RunFault for a file that is cut,
    written to, replaced or removed while it is being read.
    """

    def __init__(self, path: Path, vocab_size: int, end_of_text_id: int) -> None:
        prefixes = find_prefixes(str(path))
        self.has_targets = False
        self.text_bytes = None
        self._indices = [read_index(with_suffix(prefix, ".idx")) for prefix in prefixes]
        self._paths = [with_suffix(prefix, ".bin") for prefix in prefixes]
        types = {index.dtype for index in self._indices}
        if len(types) > 1:
            names = ", ".join(sorted(dtype.name for dtype in types))
            raise UserError(
                f"{self._paths[0]} and the files read with it have ids of several types ({names}); "
                "make each type a source of its own"
            )
        dtype = types.pop()
        files = []
        for name, index in zip(self._paths, self._indices, strict=True):
            check, size = _below(name, dtype, vocab_size), index.tokens * dtype.itemsize
            files.append(MappedFile(name, size, index.path.name, REMEDY, check, has_checksums=False))
        self._stream = TokenFiles(files, dtype, first_is_last=False)
        self.tokens = self._stream.tokens
        self.documents = sum(index.documents for index in self._indices)
        self._starts = np.cumsum([0] + [index.tokens for index in self._indices]).tolist()
        self._end_of_text = end_of_text_id
        for number, (index, name) in enumerate(zip(self._indices, self._paths, strict=True)):
            end = self._starts[number] + index.tokens
            if (last := int(self.read(end - 1, end)[0])) != end_of_text_id:
                what = f"its last document ends with token {last} and not with {self._wanted}"
                raise UserError(f"{name}: {what}")
        self.digest = self._digest(dtype)

    @property
    def times(self) -> list[int]:
        """When the files of ids were last written to, in ns."""
        return self._stream.times

    @property
    def _wanted(self) -> str:
        return (
            f"{self._end_of_text}, the end-of-text of data.tokenizer: the file was made without --append-eod "
            "or with another tokenizer; make it again, or name its tokenizer"
        )

    @property
    def period(self) -> int:
        """Tokens after which the stream begins again."""
        return self._stream.period

    def rows(self, index: np.ndarray, length: int, out: np.ndarray | None = None) -> np.ndarray:
        """Rows of `length` inputs and the last one's label; `index`: (count,), result (count, length + 1).

        The result is `out` where that is given, whatever integer type it has, else a new array of the
        stored type.
        """
        return self._stream.rows(index, length, out)

    def targets(self, index: np.ndarray, length: int) -> None:
        """None: every token is a target."""

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start .. stop-1 of the stream, across files; shape (stop - start,), the stored type."""
        return self._stream.read(start, stop)

    def read_targets(self, start: int, stop: int) -> None:
        """None: every token is a target."""

    def document(self, number: int) -> np.ndarray:
        """Tokens of a document, without end-of-text; shape (tokens,)."""
        assert 0 <= number < self.documents, number
        file = 0
        while number >= self._indices[file].documents:
            number -= self._indices[file].documents
            file += 1
        first, end = (self._starts[file] + place for place in self._indices[file].document(number))
        tokens = self.read(first, end)
        return tokens[:-1] if tokens.size and tokens[-1] == self._end_of_text else tokens

    def verify(self) -> int:
        """Check the ids of every block, and the end of every document; returns the number of blocks."""
        self.check_documents()
        return self._stream.check_all()

    def ends_inside(self) -> int:
        """How many end-of-text tokens lie inside documents, which end there for a row. Reads everything."""
        filled = 0
        for index in self._indices:
            before = 0
            for ends in index.document_ends():
                filled += int(np.count_nonzero(np.diff(ends, prepend=before)))
                before = int(ends[-1])
        found = 0
        for start in range(0, self.tokens, COUNTED):
            part = self.read(start, min(start + COUNTED, self.tokens))
            found += int(np.count_nonzero(part == self._end_of_text))
        return found - filled

    def check_documents(self) -> None:
        """Raises UserError unless each document, but empty ones, ends with end-of-text, as rows show it.

        Reads, in order, every block that holds the end of a document: all of most files.
        """
        for number, (index, name) in enumerate(zip(self._indices, self._paths, strict=True)):
            unended, before, documents = 0, 0, 0
            first = ""
            for ends in index.document_ends():
                filled = np.diff(ends, prepend=before) > 0
                last = self._stream.take(self._starts[number] + ends[filled] - 1)
                wrong = np.flatnonzero(last != self._end_of_text)
                if wrong.size and not unended:
                    document = documents + int(np.flatnonzero(filled)[wrong[0]]) + 1
                    first = f"the first: document {document}, whose last token is {last[wrong[0]]}"
                unended, before, documents = unended + wrong.size, int(ends[-1]), documents + ends.size
            if unended:
                raise UserError(
                    f"{name}: {unended:,} of its {documents:,} documents ({first}) do not end with "
                    f"{self._wanted}"
                )

    def _digest(self, dtype: np.dtype) -> str:
        """One hash of the indices, the sizes, and the first and the last block of each file."""
        parts, block = [], BLOCK_BYTES // dtype.itemsize
        for index, start in zip(self._indices, self._starts, strict=False):
            end = start + index.tokens
            last = start + (index.tokens - 1) // block * block
            ends = [self.read(start, min(start + block, end)), self.read(last, end)]
            parts += [index.digest, str(index.tokens), *(xxh64_hexdigest(part.tobytes()) for part in ends)]
        return xxh64_hexdigest(" ".join(parts).encode())


def _below(path: Path, dtype: np.dtype, vocab_size: int) -> Check:
    """Checks that the ids of a block lie in the vocabulary."""

    def check(block: int, content: memoryview) -> None:
        """Raises UserError for an id outside."""
        ids = np.frombuffer(content, dtype=dtype)
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= vocab_size:
            raise UserError(
                f"{path}: holds token id {low if low < 0 else high} (in bytes {block * BLOCK_BYTES} to "
                f"{block * BLOCK_BYTES + len(content) - 1}), the vocabulary has {vocab_size} tokens; "
                "use the tokenizer that the data was made with"
            )

    return check
