"""tiktoken may stand in for the library: both cut texts alike by every known pattern, and the library
composes nothing that Python holds to be composed."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator
from functools import cache
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer

from llmkit.data.tokens.fast_bpe import PATTERNS, TiktokenEncoder, encoder_of
from llmkit.data.tokens.tokenizer_json import byte_symbols

CONTEXT = "aA1 !\n'/\u0301"
"""A letter of each case, a digit, white space, signs, the apostrophe of contractions, an accent."""
CHARACTERS = (*range(0xD800), *range(0xE000, 0x33000), *range(0xE0000, 0xE0200))
"""Every character but those of the private planes, and of those that are unassigned."""


@cache
def both(pattern: str) -> tuple[HFTokenizer, TiktokenEncoder]:
    """The library and tiktoken with a token for every two bytes of which one is of CONTEXT: where two such
    bytes are one token they lie in one piece, so that equal ids mean equal cuts."""
    symbols = byte_symbols()
    vocabulary = {symbol: byte for byte, symbol in enumerate(symbols)}
    for near in sorted(set(CONTEXT.encode())):
        for symbol in symbols:
            for pair in (symbols[near] + symbol, symbol + symbols[near]):
                vocabulary.setdefault(pair, len(vocabulary))
    merges = [(token[0], token[1]) for token in vocabulary if len(token) == 2]
    library = HFTokenizer(models.BPE(vocabulary, merges))
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return library, encoder_of(pattern, vocabulary, vocabulary)


def differing(pattern: str, texts: Iterator[str]) -> list[str]:
    library, tiktoken = both(pattern)
    found = []
    for text in texts:
        (ids,) = tiktoken.encode([text])
        if ids is None or ids.tolist() != library.encode(text, add_special_tokens=False).ids:
            found.append(text)
    return found


def border_texts() -> Iterator[str]:
    """Characters on both sides of every border between categories, and every 61st too, in many contexts."""
    text, before = [], ""
    for code in CHARACTERS:
        category = unicodedata.category(chr(code))
        if category != before or code % 61 == 0:
            beside = category != before and code not in (0, 0xE000)
            for c in (chr(code - 1), chr(code)) if beside else (chr(code),):
                text.append(f"a{c}a1{c}1 {c} !{c}!\n{c}\n{c}{c}a'{c}e A{c}A\u0301{c}\u0301/{c}/")
        before = category
        if len(text) >= 256:
            yield "".join(text)
            text = []
    yield "".join(text)


def random_texts() -> Iterator[str]:
    alphabet = CONTEXT + "sStTrRevVmMlLdD\t\r\u00a0\u00e9\u0663\u65e5\u01c5\U0001f600\u02b0\u17b4"
    choose = random.Random(0).choices
    for length in (3, 30, 300):
        for _ in range(100):
            yield "".join(choose(alphabet, k=length))


@pytest.mark.parametrize("name", PATTERNS)
def test_both_engines_cut_alike(name: str) -> None:
    assert differing(PATTERNS[name], border_texts()) == []
    assert differing(PATTERNS[name], random_texts()) == []


def test_both_engines_have_the_same_classes_of_characters() -> None:
    """o200k uses all the classes that the other patterns use."""
    starts = range(0, len(CHARACTERS), 4096)
    texts = ("".join(f"a{chr(code)}a" for code in CHARACTERS[start : start + 4096]) for start in starts)
    assert differing(PATTERNS["o200k"], texts) == []


@pytest.mark.parametrize("pattern", [r"^a.+|\s+|[^\s]", r"\w+|\s+|[^\w\s]+"])
def test_a_pattern_that_they_read_otherwise_would_be_found(pattern: str) -> None:
    assert differing(pattern, iter(["a\nab", *islice(border_texts(), 8)]))


def test_patterns_that_leave_a_character_out_would_be_found() -> None:
    assert differing(r"\p{L}+|\p{N}", random_texts())


MARKED = st.text(
    st.sampled_from(
        "aeoA<>;\u00e9\u1ea1\u0301\u0323\u0316\u0338\u0345\u1100\u1161\u11a8\uac00\u0958\u212a\U0001e130"
    )
)
HIGHEST_MARK = "\u0345"
"""Of all marks the one with the highest class: whatever mark follows it is moved before it."""


@given(st.text() | MARKED)
def test_what_is_composed_the_library_leaves_as_it_is(text: str) -> None:
    if unicodedata.is_normalized("NFC", text):
        assert normalizers.NFC().normalize_str(text) == text


def test_the_library_knows_no_composition_that_python_does_not() -> None:
    """Both follow one standard, which never changes what it once said of a character. To a library of an
    older version a character of ours is an unknown one, beside which nothing is composed or moved; a newer
    one must know no character that is unassigned here as a mark, which it would move, or as composed."""
    assert chr(max(range(0x110000), key=lambda code: unicodedata.combining(chr(code)))) == HIGHEST_MARK
    known, unknown = [], []
    for char in map(chr, CHARACTERS):
        if unicodedata.category(char) == "Cn":
            unknown.append(HIGHEST_MARK + char)
        elif unicodedata.is_normalized("NFC", "a" + char):
            known.append("a" + char)
    assert normalizers.NFC().normalize_str("".join(known)) == "".join(known)
    assert normalizers.NFD().normalize_str("x".join(unknown)) == "x".join(unknown)
