"""Texts that Unicode's composed form (NFC) leaves as they are, found faster than by making that form."""

from __future__ import annotations

import functools
import unicodedata

LAST_MARK = "\u0345"
"""Of all marks the one with the highest class: whatever mark follows it is moved before it."""


def is_composed(text: str) -> bool:
    """Whether a text is in its composed form, as most are."""
    return text.isascii() or unicodedata.is_normalized("NFC", text)


@functools.cache
def library_agrees() -> bool:
    """Whether the tokenizers library, too, leaves each text that `is_composed` as it is.

    Both follow the same standard, which never changes what it once said of a character; their versions of it
    may differ. To the library of an older version a character of ours is an unknown one, beside which nothing
    is composed or moved. A newer one may know characters that are unassigned here: it must not know any as a
    mark, which it would move, or as a composed character, which it would make of its parts.
    """
    from tokenizers import normalizers

    known, unknown = [], []
    for number in (*range(0xD800), *range(0xE000, 0x33000), *range(0xE0000, 0xE0200)):
        char = chr(number)
        if unicodedata.category(char) == "Cn":
            unknown.append(LAST_MARK + char)
        elif is_composed("a" + char):
            known.append("a" + char)
    composed, parts = normalizers.NFC().normalize_str, normalizers.NFD().normalize_str
    return all(made(text) == text for made, text in ((composed, "".join(known)), (parts, "x".join(unknown))))
