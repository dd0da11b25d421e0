"""What a record of a source holds, and the reasons for which a record cannot be used."""

from __future__ import annotations

from collections import Counter
from typing import Literal, NamedTuple

import numpy as np

MAX_RECORD_BYTES = 256 << 20
"""What a line, or a document of text, may have unpacked: it is in memory as a whole, and more than once."""

EMPTY = "empty"
TOO_LONG = f"longer than {MAX_RECORD_BYTES >> 20} MiB"
REPAIRED = "mended with U+FFFD"
SPELLED_END = "with the letters of end-of-text at the end, which stay text (take them away there)"
"""Keys of the counters: two reasons to skip a record (others: extract, record_masks), two that skip none."""

Policy = Literal["skip", "replace", "raise"]
"""What to do with a record that cannot be used (data.errors)."""


class Text(NamedTuple):
    """A text; every token of it is learned."""

    text: str


Messages = tuple[dict[str, str], ...]


class Chat(NamedTuple):
    """A conversation: messages of {"role": ..., "content": ...}, all strings.

    context: indices of the assistant's messages that are not learned.
    """

    messages: Messages
    context: frozenset[int] = frozenset()


class PromptCompletion(NamedTuple):
    """A prompt, which may be empty, and the completion that is learned."""

    prompt: str
    completion: str


class Ids(NamedTuple):
    """Token ids.

    ids: (count,) int64, not yet compared with a vocabulary. learned: (count,) bool; None = all.
    """

    ids: np.ndarray
    learned: np.ndarray | None = None


class Preference(NamedTuple):
    """Two answers to the same prompt, both of the same type; only the answers are learned."""

    chosen: Chat | PromptCompletion
    rejected: Chat | PromptCompletion


Record = Text | Chat | PromptCompletion | Preference | Ids


class Skipped(NamedTuple):
    """Why a record is not used. reason: key of the counters. detail: what exactly is wrong with it."""

    reason: str
    detail: str


class UnusableError(Exception):
    """A record that cannot be used."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.skipped = Skipped(reason, detail)


def skipped_summary(skipped: Counter[str]) -> str:
    """Counters as one line; empty if there are none.

    >>> skipped_summary(Counter({"empty": 3, "not UTF-8": 2}))
    '5 documents left out: 3 empty, 2 not UTF-8'
    """
    used = (REPAIRED, SPELLED_END)
    reasons = {reason: count for reason, count in skipped.most_common() if reason not in used}
    parts = []
    if reasons:
        total = sum(reasons.values())
        listed = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        parts.append(f"{total} document{'s' * (total > 1)} left out: {listed}")
    parts += [f"{skipped[what]} {what}" for what in used if skipped[what]]
    return "; ".join(parts)
