"""Head and loss where several ranks have parts of the vocabulary: what they exchange, in which order."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from llmkit.parallel.collectives import start_all_gather, start_sum, wait


class Ranks(NamedTuple):
    """Who has parts of the vocabulary: the group, "" where there is none, and how many they are.

    pieces: whether each has a piece of the sequence of hidden states. Tokens are then in the order
    (seq, batch), else (batch, seq).
    """

    group: str
    size: int
    pieces: bool

    def gathered(self, hidden: Tensor) -> Tensor:
        """The hidden states of all tokens, (tokens, width)."""
        if self.pieces:
            hidden = wait(start_all_gather(hidden, self.size, self.group))
        return hidden.reshape(-1, hidden.shape[-1])

    def start_sum(self, for_hidden: Tensor) -> Tensor:
        """Starts the sum of a gradient over the ranks, or of this rank's piece of it; `summed` gives it."""
        return start_sum(for_hidden, self.pieces * self.size, self.group) if self.group else for_hidden

    def summed(self, started: Tensor) -> Tensor:
        """What `start_sum` started."""
        return wait(started) if self.group else started

    def ordered(self, labels: Tensor) -> Tensor:
        """labels, (batch, seq), in the order of tokens."""
        return labels.t() if self.pieces else labels

    def by_token(self, by_row: Tensor, length: int) -> Tensor:
        """(..., batch) -> (..., tokens): the value of each token's row."""
        tokens = by_row[..., None].expand(*by_row.shape, length)
        return (tokens.mT if self.pieces else tokens).flatten(-2)

    def by_label(self, by_token: Tensor, batch: int) -> Tensor:
        """(tokens,) -> (batch, seq): the value of each label, in memory of its own."""
        if self.pieces:
            return by_token.unflatten(-1, (-1, batch)).t().contiguous()
        return by_token.unflatten(-1, (batch, -1)).clone()

    def by_row(self, by_token: Tensor, batch: int) -> Tensor:
        """(..., tokens) -> (..., batch): the sum over each row."""
        if self.pieces:
            return by_token.unflatten(-1, (-1, batch)).sum(-2)
        return by_token.unflatten(-1, (batch, -1)).sum(-1)
