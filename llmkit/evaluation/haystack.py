"""Texts that hide a number among other sentences and ask for it at their end ("needle in a haystack").

The form is that of the pass key test (Mohtashami and Jaggi 2023): filler without information, one sentence
with the number at a chosen depth, a question, and the number once more as the answer. Nothing here needs a
model: the same functions make the questions of `llmkit evaluate --needle` and records to train on.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

DIGITS = 5
MOST_DIGITS = 10
"""Of the number that is hidden, which are all different."""
FILLER = (
    " Rain fell on the roof all night.",
    " A cart stood at the gate of the mill.",
    " The river runs slowly past the old bridge.",
    " Somebody had left a lamp in the window.",
    " Bread was sold at the corner until noon.",
    " Two boats lay upside down on the shore.",
    " In autumn the hills turn brown.",
)
"""Sentences that say nothing of any number."""
QUESTION = " Question: what is the secret number? Answer: the secret number is"

Units = TypeVar("Units", bound=Sequence[int] | str)


def needle(number: str) -> str:
    """The sentence that tells the number."""
    return f" The secret number is {number}. Keep {number} in mind."


def answer(number: str) -> str:
    """What follows the question."""
    return f" {number}"


def draw_number(draw: random.Random, digits: int = DIGITS) -> str:
    """A number of so many digits, all different; the first may be 0.

    So what follows a digit is known by this digit alone, which a small model finds, too.
    """
    return "".join(draw.sample("0123456789", digits))


def sentences(text: str) -> list[str]:
    """A text in parts that end where sentences or lines do; together they are the text."""
    return [part for part in re.split(r"(?<=[.!?])(?=\s)|(?<=\n)", text) if part]


def spread(
    filler: Sequence[Units], room: int, depth: float, first: int = 0
) -> tuple[list[Units], list[Units]]:
    """Filler of exactly `room` units, as what stands before the needle and what stands behind it.

    filler: sentences, each as characters or as token ids; they are repeated as often as needed. room:
    characters or ids. depth: share of the filler before the needle, 0 to 1, moved to the nearest end of a
    sentence. first: the sentence to begin with. What is too much is cut off the beginning.
    """
    parts: list[Units] = []
    size = 0
    for part in _around(filler, first):
        if size >= room:
            break
        parts.append(part)
        size += len(part)
    surplus = size - room
    while surplus and len(parts[0]) <= surplus:
        surplus -= len(parts.pop(0))
    if surplus:
        parts[0] = parts[0][surplus:]  # type: ignore[assignment]
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + len(part))
    split = min(range(len(ends)), key=lambda place: abs(ends[place] - depth * room))
    return parts[:split], parts[split:]


def _around(filler: Sequence[Units], first: int) -> Iterator[Units]:
    """The sentences from one on, over and over."""
    place = first
    while True:
        yield filler[place % len(filler)]
        place += 1


def record(draw: random.Random, length: int, digits: int = DIGITS) -> tuple[str, str]:
    """A prompt and its answer, of `length` characters together, with a number and a depth drawn at random."""
    number = draw_number(draw, digits)
    hidden, found = needle(number), answer(number)
    room = max(0, length - len(hidden) - len(QUESTION) - len(found))
    before, behind = spread(FILLER, room, draw.random(), draw.randrange(len(FILLER)))
    return "".join([*before, hidden, *behind, QUESTION]), found
