"""Encoding of text with control tokens in it."""

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

    def encode(self, text: str, controls: Sequence[Span]) -> np.ndarray:
        """Ids of a text without noncharacters, (count,) int32.

        controls: where special tokens are meant, in order. Like the library's, a token of whole words only
        is text beside a letter.
        """
        assert not has_noncharacters(text), "the text could spell marked tokens"
        parts, place = [], 0
        for start, end in controls:
            parts += [text[place:start], self._stand_in[text[start:end]], text[start + 1 : end]]
            place = end
        encoded = self._encoder.encode("".join([*parts, text[place:]]), add_special_tokens=False)
        taken = [places for one, places in zip(encoded.ids, encoded.offsets) if one in self._meant]
        if len(taken) < len(controls):  # the places of those taken may have white space beside them
            starts = iter(taken)
            left: list[Span] = []
            found = next(starts, None)
            for control in controls:
                if found is not None and found[0] <= control[0] < found[1]:
                    left.append(control)
                    found = next(starts, None)
            return self.encode(text, left)
        return np.array([self._meant.get(one, one) for one in encoded.ids], dtype=np.int32)


def has_noncharacters(text: str) -> bool:
    """Whether a text holds characters that stand for marked tokens."""
    return any(chr(code) in text for code in _STAND_INS)
