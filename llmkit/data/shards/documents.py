"""Documents as they lie in a token stream, one after the other and each with its end-of-text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Documents(NamedTuple):
    """Some documents. Of end-of-text 0, [5, 6] and [7] are tokens [5, 6, 0, 7, 0] and lengths [3, 2].

    tokens: (n,) integers. lengths: (documents,) tokens of each, their sum is n. text_bytes: UTF-8 size of
    what is to be learned of them. targets: (n,) bool, which tokens the loss counts as labels; None = all.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    text_bytes: int
    targets: np.ndarray | None = None

    @classmethod
    def join(cls, parts: Sequence[Documents]) -> Documents:
        """The documents of all parts, of which there is at least one, in order."""
        tokens, lengths, sizes, masks = zip(*parts, strict=True)
        targets = None
        if any(mask is not None for mask in masks):
            every = (np.ones(part.size, dtype=bool) for part in tokens)
            targets = np.concatenate([all_ if mask is None else mask for mask, all_ in zip(masks, every)])
        return cls(np.concatenate(tokens), np.concatenate(lengths), sum(sizes), targets)

    def reordered(self, order: np.ndarray) -> Documents:
        """The documents `order` (documents,), each of them once."""
        if not order.size:
            return self
        ends = np.cumsum(self.lengths)
        ranges = [slice(*each) for each in zip((ends - self.lengths)[order].tolist(), ends[order].tolist())]
        tokens = np.concatenate([self.tokens[each] for each in ranges])
        targets = self.targets
        if targets is not None:
            targets = np.concatenate([targets[each] for each in ranges])
        return Documents(tokens, self.lengths[order], self.text_bytes, targets)

    def one_by_one(self) -> Iterator[np.ndarray]:
        """Tokens of each document, without its end-of-text."""
        ends = np.cumsum(self.lengths)
        for begin, end in zip((ends - self.lengths).tolist(), ends.tolist(), strict=True):
            yield self.tokens[begin : end - 1]
