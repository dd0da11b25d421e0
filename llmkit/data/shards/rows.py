"""What the order of training needs of tokens on disk: rows by number."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class RowSource(Protocol):
    """A stream of tokens, read by row.

    The stream is repeated without end, and row k of length T is tokens kT .. kT+T of that: T inputs and the
    last one's label. So the last row of an epoch goes on at the beginning.
    """

    @property
    def tokens(self) -> int:
        """Length of the stream, end-of-text tokens included."""

    @property
    def documents(self) -> int:
        """Documents of the stream."""

    @property
    def text_bytes(self) -> int | None:
        """UTF-8 bytes of the text to be learned; None where nobody wrote it down."""

    @property
    def has_targets(self) -> bool:
        """Whether some tokens are no targets of the loss."""

    @property
    def digest(self) -> str:
        """Fingerprint of the content, found without reading all of it."""

    @property
    def period(self) -> int:
        """Tokens after which the stream begins again: one less than it has, where its first and last token
        are the same end-of-text. No row may be longer."""

    def rows(self, index: np.ndarray, length: int, out: np.ndarray | None = None) -> np.ndarray:
        """Rows by number, which may be of any epoch; `index`: (count,) int64, result (count, length + 1).

        The result is `out` where that is given, whatever integer type it has, else a new array of the
        stored type.
        """

    def targets(self, index: np.ndarray, length: int) -> np.ndarray | None:
        """Which labels of the rows are targets: (count, length) bool, place t for token t+1; None = all."""

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start .. stop-1 of the stream; shape (stop - start,), the stored type."""

    def read_targets(self, start: int, stop: int) -> np.ndarray | None:
        """Which of tokens start .. stop-1 are targets, as labels; (stop - start,) bool, None = all."""

    def document(self, number: int) -> np.ndarray:
        """Tokens of a document, without end-of-text; shape (tokens,)."""

    def verify(self) -> int:
        """Check all that can be checked; returns the number of blocks."""
