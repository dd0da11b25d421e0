"""Encoding with known places: text with control tokens in it, and which ids stand for which characters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from tokenizers import AddedToken
from tokenizers import Tokenizer as Encoder

from llmkit.errors import UserError

Span = tuple[int, int]
"""First character and end of a part of a text."""

_STAND_INS = range(0xFDD3, 0xFDF0)
"""Noncharacters of Unicode; a text that holds one is no text for a MarkedEncoder."""

Placed = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Ids, int32, and the first character and the end of what each stands for, int64; (count,) each."""


class MarkedEncoder:
    """Encodes text in which only some of the special tokens that it spells are meant.

    A special token that is meant begins with a noncharacter in place of its own first character, and such
    words are tokens of their own. The library then cuts the text as it does for its special tokens, and what
    comes before and after is encoded as there.

    encoder: taken over and changed. added: the tokenizer's added tokens by id.
    """

    def __init__(self, encoder: Encoder, added: Mapping[int, AddedToken]) -> None:
        self._encoder = encoder
        special = [token for token in added.values() if token.special and encoder.encode_special_tokens]
        words: dict[str, AddedToken] = {}
        for token in special:
            # Only tokens that differ in nothing but their first character need different noncharacters.
            free = (chr(code) + token.content[1:] for code in _STAND_INS)
            word = next((word for word in free if word not in words), None)
            if word is None:
                raise UserError(f"data.tokenizer: too many special tokens end in {token.content[1:]!r}")
            words[word] = token
        self._stand_in = {token.content: word[0] for word, token in words.items()}
        encoder.add_tokens(
            [
                AddedToken(
                    word,
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=False,
                )
                for word, token in words.items()
            ]
        )
        number: dict[str, int] = encoder.get_vocab(with_added_tokens=True)
        self._meant = {number[word]: number[token.content] for word, token in words.items()}
        greedy = {number[word]: word for word, token in words.items() if token.lstrip or token.rstrip}
        self._greedy = greedy_tokens(added) | greedy

    def encode(self, text: str, controls: Sequence[Span]) -> Placed:
        """Ids of a text without noncharacters, and their places.

        controls: where special tokens are meant, in order. Like the library's, a token of whole words only
        is text beside a letter.
        """
        assert not any(chr(code) in text for code in _STAND_INS), "the text could spell marked tokens"
        parts, place = [], 0
        for start, end in controls:
            parts += [text[place:start], self._stand_in[text[start:end]], text[start + 1 : end]]
            place = end
        ids, starts, ends = encode_placed(self._encoder, "".join([*parts, text[place:]]), self._greedy)
        taken = set(starts[np.isin(ids, list(self._meant))].tolist())
        if len(taken) < len(controls):
            return self.encode(text, [span for span in controls if span[0] in taken])
        return np.array([self._meant.get(one, one) for one in ids.tolist()], dtype=np.int32), starts, ends


def greedy_tokens(added: Mapping[int, AddedToken]) -> dict[int, str]:
    """Id and text of the added tokens that take the white space beside them along."""
    return {number: token.content for number, token in added.items() if token.lstrip or token.rstrip}


def encode_placed(encoder: Encoder, text: str, greedy: Mapping[int, str]) -> Placed:
    """Ids of a text by the library, and their places; those of `greedy` tokens are without white space."""
    encoded = encoder.encode(text, add_special_tokens=False)
    ids = np.array(encoded.ids, dtype=np.int32)
    places = np.array(encoded.offsets, dtype=np.int64).reshape(-1, 2)
    for i in np.flatnonzero(np.isin(ids, list(greedy))).tolist():
        content = greedy[encoded.ids[i]]
        start = text.find(content, *encoded.offsets[i])
        if start >= 0:  # a token may be found in another spelling, after a normalizer
            places[i] = start, start + len(content)
    return ids, places[:, 0], np.maximum(places[:, 1], places[:, 0] + 1)


def byte_spans(text: str, spans: Sequence[Span]) -> list[Span]:
    """Spans in characters as spans in the UTF-8 bytes of the text."""
    if text.isascii():
        return list(spans)
    found, place, size = [], 0, 0
    for start, end in spans:
        first = size + len(text[place:start].encode())
        place, size = end, first + len(text[start:end].encode())
        found.append((first, size))
    return found


def covered(starts: np.ndarray, ends: np.ndarray, spans: Sequence[Span]) -> np.ndarray:
    """Which of the stretches [starts, ends), which are in order, overlap one of the spans; (count,) bool."""
    found = np.zeros(len(starts), dtype=bool)
    for start, end in spans:
        if start < end:
            first, last = np.searchsorted(ends, start, "right"), np.searchsorted(starts, end, "left")
            found[first:last] = True
    return found
