"""Reads the token files of Megatron-LM in place, without a copy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from xxhash import xxh64_hexdigest

from llmkit.data.shards.arrays import TokenArray
from llmkit.data.shards.dataset import DocumentBounds, TokenDataset
from llmkit.data.shards.format import BLOCK_BYTES
from llmkit.data.shards.megatron_index import REMEDY, MegatronIndex, find_prefixes, with_suffix
from llmkit.data.shards.mmap_file import MappedFile
from llmkit.errors import UserError

COUNTED = 1 << 22
"""Tokens that are searched at a time."""


class MegatronReader(TokenDataset):
    """Reads Megatron-LM's files as one stream, the tokens as they lie there, one file after the other.

    path: PREFIX of PREFIX.bin and PREFIX.idx, a folder with such files, or a glob pattern. vocab_size: ids
    must be below it; a block of ids is checked when it is first read. end_of_text_id: ends every document;
    that of the last one is checked here, the others by `check_documents`.
    Raises UserError for files that are missing, broken, in conflict with each other or made with another
    tokenizer, and while reading, for an id outside the vocabulary; RunFault for a file that is cut,
    written to, replaced or removed while it is being read.
    """

    def __init__(self, path: Path, vocab_size: int, end_of_text_id: int) -> None:
        prefixes = find_prefixes(str(path))
        self._end_of_text = end_of_text_id
        self._indices = [MegatronIndex(with_suffix(prefix, ".idx")).read() for prefix in prefixes]
        paths = [with_suffix(prefix, ".bin") for prefix in prefixes]
        types = {index.dtype for index in self._indices}
        if len(types) > 1:
            names = ", ".join(sorted(dtype.name for dtype in types))
            raise UserError(
                f"{paths[0]} and the files read with it have ids of several types ({names}); "
                "make each type a source of its own"
            )
        self._files = [
            _open(name, index, vocab_size) for name, index in zip(paths, self._indices, strict=True)
        ]
        super().__init__(
            self._files,
            None,
            first_is_last=False,
            documents=sum(index.documents for index in self._indices),
            text_bytes=None,
        )
        self.times = [array.file.time for array in self._files]
        """When the files of ids were last written to, in ns."""
        for array in self._files:
            array.verify(array.size - 1, 1)
            if (last := int(array.values[-1])) != end_of_text_id:
                raise UserError(
                    f"{array.file.path}: its last document ends with token {last} and not with {self._wanted}"
                )
        self.digest = self._digest()

    @property
    def _wanted(self) -> str:
        return (
            f"{self._end_of_text}, the end-of-text of data.tokenizer: the file was made without --append-eod "
            "or with another tokenizer; make it again, or name its tokenizer"
        )

    def verify(self) -> int:
        """Checks the ids of every block, and the end of every document; returns the number of blocks."""
        self.check_documents()
        return super().verify()

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
            tokens = self.read(start, min(start + COUNTED, self.tokens))
            found += int(np.count_nonzero(tokens == self._end_of_text))
        return found - filled

    def document_bounds_between(self, start: int, stop: int) -> Iterator[DocumentBounds]:
        """Those of the stretches of the indices with tokens start .. stop-1."""
        begin = documents = 0
        for index, array in zip(self._indices, self._files, strict=True):
            before, count = 0, 0
            for ends in index.document_ends() if begin < stop and start < begin + array.size else ():
                if begin + before < stop and start < begin + int(ends[-1]):
                    bounds = begin + np.append(before, ends).astype(np.int64)
                    yield DocumentBounds(str(array.file.path), documents + count, count, bounds)
                before, count = int(ends[-1]), count + ends.size
            begin, documents = begin + array.size, documents + index.documents

    def check_documents(self) -> None:
        """Raises UserError unless each document, but empty ones, ends with end-of-text, as rows show it.

        Reads, in order, every block that holds the end of a document: all of most files.
        """
        for index, array in zip(self._indices, self._files, strict=True):
            unended, before, documents, first = 0, 0, 0, ""
            for ends in index.document_ends():
                filled = np.diff(ends, prepend=before) > 0
                lasts = ends[filled] - 1
                array.verify(lasts, 1)
                last = array.values[lasts]
                wrong = np.flatnonzero(last != self._end_of_text)
                if wrong.size and not unended:
                    document = documents + int(np.flatnonzero(filled)[wrong[0]]) + 1
                    first = f"the first: document {document}, whose last token is {last[wrong[0]]}"
                unended, before, documents = unended + wrong.size, int(ends[-1]), documents + ends.size
            if unended:
                raise UserError(
                    f"{array.file.path}: {unended:,} of its {documents:,} documents ({first}) do not end "
                    f"with {self._wanted}"
                )

    def _digest(self) -> str:
        """One hash of the indices, the sizes, and the first and the last block of each file."""
        found = []
        for index, array in zip(self._indices, self._files, strict=True):
            block = BLOCK_BYTES // array.dtype.itemsize
            found += [index.digest, str(array.size)]
            for begin in (0, (array.size - 1) // block * block):
                ids = array.values[begin : begin + block]
                array.verify(begin, ids.size)
                found.append(xxh64_hexdigest(ids.tobytes()))
        return xxh64_hexdigest(" ".join(found).encode())


def _open(path: Path, index: MegatronIndex, vocab_size: int) -> TokenArray:
    """The ids of a file, of which each block is checked to lie in the vocabulary."""

    def check(block: int, content: memoryview) -> None:
        ids = np.frombuffer(content, dtype=index.dtype)
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= vocab_size:
            raise UserError(
                f"{path}: holds token id {low if low < 0 else high} (in bytes {block * BLOCK_BYTES} to "
                f"{block * BLOCK_BYTES + len(content) - 1}), the vocabulary has {vocab_size} tokens; "
                "use the tokenizer that the data was made with"
            )

    size = index.tokens * index.dtype.itemsize
    return TokenArray(
        MappedFile(path, size, index.path.name, REMEDY, check, has_checksums=False), index.dtype
    )
