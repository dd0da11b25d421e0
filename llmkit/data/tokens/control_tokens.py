"""Text in which only some of the special tokens that it spells are meant, and text in parts, by the library.

Where of "<|user|>hi <|user|><|end|>" the first and the last token are meant, and the one in the middle is
text, the library is given "\\ufdd3|user|>hi <|user|>\\ufdd3|end|>": a control token that is meant has a
noncharacter of Unicode for its first character, and such words are added to the vocabulary. So the library
cuts the text as it does at special tokens; the ids of these words are then replaced by those of the tokens.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np
from tokenizers import AddedToken
from tokenizers import Tokenizer as HFTokenizer

from llmkit.errors import UserError

Span = tuple[int, int]
"""First character and end of a part of a text."""

Part = tuple[int, int, list[Span]]
"""First character and end of a part of a text, and where control tokens are meant in it."""

PLACEHOLDERS = range(0xFDD3, 0xFDF0)
"""Noncharacters that stand for the first character of a control token; no text that has some may hold one."""


def cut(text: str, cuts: Sequence[int], controls: Sequence[Span]) -> list[Part]:
    """The parts of a text that begin at its first character and at `cuts`; no control token lies on a cut."""
    bounds, starts = [0, *cuts, len(text)], [start for start, _ in controls]
    return [
        (start, end, list(controls[bisect_left(starts, start) : bisect_left(starts, end)]))
        for start, end in pairwise(bounds)
    ]


def has_noncharacters(text: str) -> bool:
    """Whether a text holds characters that stand for control tokens."""
    return any(chr(code) in text for code in PLACEHOLDERS)


class ControlTokenEncoder:
    """Encodes parts of texts by Hugging Face's library, each as a model that goes on from one meets it.

    library: encodes a text. build: makes a new one; given True, one for text that goes on, before which it
    puts no space. added: the tokenizer's added tokens by id. in_text: those that the library takes out of a
    text.
    """

    def __init__(
        self,
        library: HFTokenizer,
        build: Callable[[bool], HFTokenizer],
        added: Mapping[int, AddedToken],
        in_text: Sequence[str],
    ) -> None:
        self._library, self._build, self._added = library, build, added
        self._ids = {token.content: id for id, token in added.items()}
        self._in_text = sorted(in_text, key=len, reverse=True)
        self._found = re.compile("|".join(map(re.escape, self._in_text)) or "(?!)")

    def encode(self, text: str, part: Part, before: Span | None) -> np.ndarray:
        """Ids of a part, (count,) int32. before: the control token that ends where the part begins."""
        start, end, controls = part
        if start == 0:
            return self._encode(text, 0, end, controls)
        # What the library makes of the text behind a token depends on that token.
        ended = text[slice(*before)] if before else self._token_that_ends(text, start)
        if ended:
            ids = self._encode(text, start - len(ended), end, [before, *controls] if before else controls)
            if ids.size and ids[0] == self._ids[ended]:
                return ids[1:]
        token = self._found.search(text, start, controls[0][0] if controls else end)
        first = token.start() if token else controls[0][0] if controls else end
        words = text[start:first]
        if first < end and any(t.lstrip and text.startswith(t.content, first) for t in self._added.values()):
            words = words.rstrip()
        ids = np.array(self._continuing.encode(words, add_special_tokens=False).ids, dtype=np.int32)
        return np.concatenate([ids, self._encode(text, first, end, controls)])

    def _token_that_ends(self, text: str, end: int) -> str:
        return next((token for token in self._in_text if text.endswith(token, 0, end)), "")

    @cached_property
    def _continuing(self) -> HFTokenizer:
        return self._build(True)

    @cached_property
    def _with_placeholders(self) -> tuple[HFTokenizer, dict[str, str], dict[int, int]]:
        """A library that knows the words with placeholders, the placeholder of each control token, and the
        token's id of each word's."""
        library, words = self._build(False), {}
        special = [token for token in self._added.values() if token.special and library.encode_special_tokens]
        for token in special:
            # Only tokens that differ in nothing but their first character need different placeholders.
            free = (chr(code) + token.content[1:] for code in PLACEHOLDERS)
            word = next((word for word in free if word not in words), None)
            if word is None:
                raise UserError(f"data.tokenizer: too many special tokens end in {token.content[1:]!r}")
            words[word] = token
        added = [
            AddedToken(word, lstrip=t.lstrip, rstrip=t.rstrip, single_word=t.single_word, normalized=False)
            for word, t in words.items()
        ]
        library.add_tokens(added)
        ids: dict[str, int] = library.get_vocab(with_added_tokens=True)
        meant = {ids[word]: ids[token.content] for word, token in words.items()}
        return library, {token.content: word[0] for word, token in words.items()}, meant

    def _encode(self, text: str, start: int, end: int, controls: Sequence[Span]) -> np.ndarray:
        """Ids of the text between two characters; one with controls must be free of noncharacters.

        Like the library's, a control token of whole words only is text beside a letter.
        """
        if not controls:
            encoded = self._library.encode(text[start:end], add_special_tokens=False)
            return np.array(encoded.ids, dtype=np.int32)
        assert not has_noncharacters(text[start:end]), "the text could spell control tokens"
        library, placeholders, meant = self._with_placeholders
        pieces, done = [], start
        for a, b in controls:
            pieces += [text[done:a], placeholders[text[a:b]], text[a + 1 : b]]
            done = b
        encoded = library.encode("".join([*pieces, text[done:end]]), add_special_tokens=False)
        taken = [span for id, span in zip(encoded.ids, encoded.offsets) if id in meant]
        if len(taken) < len(controls):  # once more with those taken; their spans may have white space
            found, left = iter(taken), []
            span = next(found, None)
            for a, b in controls:
                if span is not None and span[0] <= a - start < span[1]:
                    left.append((a, b))
                    span = next(found, None)
            return self._encode(text, start, end, left)
        return np.array([meant.get(id, id) for id in encoded.ids], dtype=np.int32)
