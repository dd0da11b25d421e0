"""Byte-level vocabularies: every byte has a character that stands for it, and tokens are strings of those."""

from __future__ import annotations

from typing import Any

import numpy as np


def byte_symbols() -> list[str]:
    """The character that stands for each byte in byte-level vocabularies (Radford et al. 2019, GPT-2)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("\xa1"), ord("\xac") + 1), *range(ord("\xae"), 256)]
    symbols = {byte: chr(byte) for byte in shown}
    for byte in range(256):
        symbols.setdefault(byte, chr(256 + len(symbols) - len(shown)))
    return [symbols[byte] for byte in range(256)]


def bytes_of_ids(spec: dict[str, Any], vocabulary: dict[str, int]) -> dict[int, bytes] | None:
    """Bytes of each id of a byte-level vocabulary; None for other kinds, whose text depends on neighbours.

    spec: a tokenizer.json. Ids that stand for no bytes are left out.
    """
    if (spec.get("decoder") or {}).get("type") != "ByteLevel":
        return None
    added = {token["content"] for token in spec.get("added_tokens") or []}
    byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    return {
        number: token.encode() if token in added else bytes(byte_of[symbol] for symbol in token)
        for token, number in vocabulary.items()
        if token in added or all(symbol in byte_of for symbol in token)
    }


def byte_lengths(bytes_of: dict[int, bytes], vocab_size: int) -> np.ndarray:
    """How many bytes each id stands for, (vocab_size,) int64."""
    lengths = np.zeros(vocab_size, dtype=np.int64)
    for number, content in bytes_of.items():
        lengths[number] = len(content)
    return lengths
