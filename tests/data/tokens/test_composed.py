from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from llmkit.data.tokens.composed import LAST_MARK, is_composed, library_agrees

MARKED = st.text(
    st.sampled_from(
        "aeoA<>;\u00e9\u1ea1\u0301\u0323\u0316\u0338\u0345\u1100\u1161\u11a8\uac00\u0958\u212a\U0001e130"
    )
)


def test_the_library_agrees() -> None:
    assert library_agrees()


@given(st.text() | MARKED)
def test_what_is_composed_the_library_leaves_as_it_is(text: str) -> None:
    if is_composed(text):
        assert normalizers.NFC().normalize_str(text) == text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("plain", True), ("\u00e9", True), ("e\u0301", False), ("\u212a", False), ("\u1100\u1161", False)],
)
def test_texts(text: str, wanted: bool) -> None:
    assert is_composed(text) is wanted


def test_no_mark_has_a_higher_class() -> None:
    highest = max(range(0x110000), key=lambda number: unicodedata.combining(chr(number)))
    assert chr(highest) == LAST_MARK


def test_a_library_that_knows_more_characters_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this Python did not know the marks."""
    category = unicodedata.category

    def older(char: str) -> str:
        return "Cn" if char == "\u0323" else category(char)

    monkeypatch.setattr(unicodedata, "category", older)
    assert not library_agrees.__wrapped__()
