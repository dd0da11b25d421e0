"""Encoding a text in parts, each by itself, as a model that goes on from one meets them."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
from tokenizers import AddedToken
from tokenizers import Tokenizer as Encoder

from llmkit.data.tokens.marked import MarkedEncoder, Span

Part = tuple[int, int, list[Span]]
"""First character and end of a part of a text, and where control tokens are meant in it."""


def cut(text: str, cuts: Sequence[int], controls: Sequence[Span]) -> list[Part]:
    """The parts of a text that begin at its first character and at `cuts`; no control token lies on a cut."""
    bounds, starts = [0, *cuts, len(text)], [start for start, _ in controls]
    return [
        (start, end, list(controls[bisect_left(starts, start) : bisect_left(starts, end)]))
        for start, end in pairwise(bounds)
    ]


class PartEncoder:
    """Encodes parts of texts by Hugging Face's library.

    make_encoder: a new encoder; given True, one for text that goes on, which gets no space before it. added:
    the tokenizer's added tokens by id. in_text: those that the encoder takes out of a text.
    """

    def __init__(
        self, make_encoder: Callable[[bool], Encoder], added: Mapping[int, AddedToken], in_text: Sequence[str]
    ) -> None:
        self._plain = cache(make_encoder)
        self._marked = cache(lambda: MarkedEncoder(make_encoder(False), added))
        self._number = {token.content: number for number, token in added.items()}
        self._takes_left = {token.content for token in added.values() if token.lstrip}
        self._in_text = sorted(in_text, key=len, reverse=True)
        self._found = re.compile("|".join(map(re.escape, self._in_text)) or "(?!)")

    def encode(self, text: str, part: Part, before: Span | None) -> np.ndarray:
        """Ids of a part, (count,) int32. before: the control token that ends where the part begins."""
        start, end, controls = part
        if start == 0:
            return self._ids(text, 0, end, controls)
        # What the library makes of the text behind a token depends on that token.
        known = text[before[0] : start] if before else self._token_that_ends(text, start)
        if known:
            ids = self._ids(text, start - len(known), end, [before, *controls] if before else controls)
            if ids.size and ids[0] == self._number[known]:
                return ids[1:]
        token = self._found.search(text, start, controls[0][0] if controls else end)
        first = token.start() if token else controls[0][0] if controls else end
        words = text[start:first]
        if first < end and any(text.startswith(taken, first) for taken in self._takes_left):
            words = words.rstrip()
        goes_on = self._plain(True).encode(words, add_special_tokens=False).ids
        return np.concatenate([np.array(goes_on, dtype=np.int32), self._ids(text, first, end, controls)])

    def _token_that_ends(self, text: str, place: int) -> str:
        return next((token for token in self._in_text if text.endswith(token, 0, place)), "")

    def _ids(self, text: str, start: int, end: int, controls: Sequence[Span]) -> np.ndarray:
        if controls:
            return self._marked().encode(text[start:end], [(a - start, b - start) for a, b in controls])
        encoded = self._plain(False).encode(text[start:end], add_special_tokens=False)
        return np.array(encoded.ids, dtype=np.int32)
