"""What the order of training needs of tokens on disk: rows by number."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class RowSource(Protocol):
    """A stream of tokens, read by row.

    Row k of length T is tokens kT .. kT+T: T inputs and the last one's label.
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

    def row_count(self, length: int) -> int:
        """How many whole rows of `length` inputs the stream has."""

    def rows(self, index: np.ndarray, length: int, out: np.ndarray | None = None) -> np.ndarray:
        """Rows by number; `index`: (count,) int64, result (count, length + 1).

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
