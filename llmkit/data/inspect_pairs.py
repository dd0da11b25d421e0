"""Shows pairs of answers: their figures, and both sequences as the model sees them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from llmkit.data.shards.dataset import TokenDataset

SAMPLE_PAIRS = 4096
"""Pairs of a source that are counted; all of them where it has no more."""
SIDES = ("chosen", "rejected")


def pair_lines(stored: TokenDataset, row_length: int) -> Iterator[str]:
    """Figures of a source of pairs. row_length: tokens of a pair."""
    count = stored.documents
    some = np.unique(np.linspace(0, count - 1, min(count, SAMPLE_PAIRS)).astype(np.int64))
    part = "all" if len(some) == count else f"a sample of {len(some):,}"
    yield f"  {count:,} pairs of sequences of up to {row_length // 2:,} tokens; counted: {part}"
    targets = stored.targets(some, row_length)
    assert targets is not None, "pairs have tokens that are no targets"
    both = targets.reshape(len(some), 2, -1)
    for side, learned in zip(SIDES, both.transpose(1, 0, 2), strict=True):
        lengths = learned.shape[1] - np.argmax(learned[:, ::-1], axis=1)  # up to the last target
        answers = learned.sum(1)
        yield (
            f"    {side}: median {int(np.median(lengths)):,} tokens, longest {lengths.max():,}; of the "
            f"answer median {int(np.median(answers)):,}, longest {answers.max():,}"
        )


def sequences(
    tokens: np.ndarray, is_target: np.ndarray
) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """Both sequences of a pair, without what only fills: a title, tokens (T+1,) and label targets (T,).

    tokens: (2 L + 1,); is_target: (2 L,).
    """
    length = is_target.size // 2
    for side, start in zip(SIDES, (0, length), strict=True):
        learned = is_target[start : start + length]
        end = int(np.flatnonzero(learned)[-1]) + 1
        yield side, (tokens[start : start + end + 1], learned[:end])
