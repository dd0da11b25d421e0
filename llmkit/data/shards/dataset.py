"""Tokens on disk as a stream that training reads by row, and evaluation by range."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from llmkit.data.shards.arrays import JoinedArray, MaskArray, TokenArray

COUNTED = 1 << 20
"""Tokens whose mask is read at a time to count the targets."""


class DocumentBounds(NamedTuple):
    """Documents of a file that follow each other.

    file: its path. before: documents of the stream before them, before_in_file: of the file. bounds:
    (count + 1,) int64, the token of the stream at which each begins, and the one behind the last of them.
    """

    file: str
    before: int
    before_in_file: int
    bounds: np.ndarray


class TokenDataset:
    """A stream of tokens, and which of them are targets of the loss; repeated without end.

    Row k of length T is tokens kT .. kT+T of the repeated stream, T inputs and the label of the last one:
    neighbours share a token and no label is lost. The last row of an epoch goes on at the beginning.
    Example: documents [5, 6] and [7] of end-of-text 0 are the stream 0 5 6 0 7 0, repeated 0 5 6 0 7 | 0 5 6
    .. (period 5, as its first and last token are the same); rows of T = 2 are [0 5 6], [6 0 7], [7 0 5], ...

    tokens: files of tokens, end-of-text included. masks: of each file; None = all tokens are targets.
    first_is_last: whether the first and the last token are the same end-of-text. documents: their number.
    text_bytes: UTF-8 bytes of the text to be learned; None where that is not known.

    period: tokens after which the stream begins again; no row may be longer. digest: fingerprint of the
    content, found without reading all of it; set by the subclass.
    """

    digest: str

    def __init__(
        self,
        tokens: Sequence[TokenArray],
        masks: Sequence[MaskArray] | None,
        *,
        first_is_last: bool,
        documents: int,
        text_bytes: int | None,
    ) -> None:
        skip = int(first_is_last)
        self._tokens = JoinedArray(tokens, skip)
        self._mask = None if masks is None else JoinedArray(masks, skip)
        self.tokens, self.documents, self.text_bytes = self._tokens.size, documents, text_bytes
        self.period = self.tokens - skip
        self.has_mask = masks is not None

    def rows(self, index: np.ndarray, length: int, out: np.ndarray | None = None) -> np.ndarray:
        """Rows `index` (count,) int64, of any epoch; result (count, length + 1).

        The result is `out` where that is given, whatever integer type it has, else a new array of the
        stored type.
        """
        return self._tokens.rows(self._starts(index, length), length + 1, out)

    def targets(self, index: np.ndarray, length: int) -> np.ndarray | None:
        """Which labels of the rows are targets: (count, length) bool, column t for token t+1; None = all."""
        if self._mask is None:
            return None
        return self._mask.rows(self._starts(index, length), length + 1)[:, 1:]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start .. stop-1 of the stream; shape (stop - start,), the stored type."""
        return self._tokens.read(start, stop)

    def read_targets(self, start: int, stop: int) -> np.ndarray | None:
        """Which of tokens start .. stop-1 are targets, as labels; (stop - start,) bool, None = all."""
        return None if self._mask is None else self._mask.read(start, stop)

    def count_targets(self) -> int:
        """Targets of the stream: all its tokens but the first, or those that are marked, which are read."""
        if self._mask is None:
            return self.tokens - 1
        starts = range(1, self.tokens, COUNTED)
        return sum(int(self._mask.read(n, min(n + COUNTED, self.tokens)).sum()) for n in starts)

    def document_bounds_between(self, start: int, stop: int) -> Iterator[DocumentBounds]:
        """The documents with tokens start .. stop-1 of the stream, and neighbours of theirs, in order."""
        raise NotImplementedError

    def verify(self) -> int:
        """Checks every block of the files; returns their number."""
        joined = [array for array in (self._tokens, self._mask) if array is not None]
        files = [array.file for each in joined for array in each.arrays if array.file is not None]
        return sum(file.verify_all() for file in files)

    def _starts(self, index: np.ndarray, length: int) -> np.ndarray:
        """Where rows begin in the stream; (count,) int64."""
        assert index.size == 0 or index.min() >= 0, index
        return index.astype(np.int64) * length % self.period
