"""Keyed random numbers and permutations that are evaluated where they are needed: nothing is stored.

Both are pure functions of integers, so every process gets the same ones, whatever was asked for before.

    >>> permute(np.arange(5), 5, key(0, 1)).tolist()        # seed 0, stream 1
    [3, 1, 0, 4, 2]
    >>> permute(np.array([3]), 5, key(0, 1)).tolist()       # one element alone
    [4]
"""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK64 = (1 << 64) - 1
_ROUNDS = 6
_U64 = np.uint64
HashWord = int | np.ndarray


def _mix(z: np.ndarray) -> np.ndarray:
    """Finaliser of splitmix64 (Steele, Lea and Flood 2014): a bijection that scatters nearby inputs."""
    z = (z ^ (z >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> _U64(27))) * _U64(0x94D049BB133111EB)
    return z ^ (z >> _U64(31))


def _scramble(half: np.ndarray, round_key: np.ndarray) -> np.ndarray:
    """Round function: the 64-bit finaliser of MurmurHash3 (Appleby) on the keyed half."""
    z = half ^ round_key
    # In place, as this is most of what an order costs: the arrays then stay in the processor's cache.
    high = z >> _U64(33)
    for factor in (_U64(0xFF51AFD7ED558CCD), _U64(0xC4CEB9FE1A85EC53)):
        z ^= high
        z *= factor
        np.right_shift(z, _U64(33), out=high)
    z ^= high
    return z


def key(*words: HashWord) -> np.ndarray:
    """Fold integers into 64-bit keys; the order of the words matters.

    A word is one integer or an array of them: arrays give a key an element. Returns uint64, shape (1,)
    if every word is a single integer.
    """
    # Arrays throughout: numpy wraps them silently, while its scalars warn about every overflow.
    state = np.zeros(1, dtype=_U64)
    for word in words:
        value = word.astype(_U64) if isinstance(word, np.ndarray) else np.array([word & _MASK64], dtype=_U64)
        state = _mix((state ^ value) + _GOLDEN)
    return state


def permute(index: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """Keyed bijection of [0, n), evaluated at `index`: a Feistel network that walks cycles.

    index: (count,) integers in [0, n). keys: uint64 of shape (1,) or (count,), one permutation each.
    Returns (count,) int64. The network permutes the smallest domain of an even number of bits that holds
    n, under 4n wide; a value outside [0, n) goes through again (Black and Rogaway 2002).
    """
    if n <= 1:
        return np.zeros(index.shape, dtype=np.int64)
    half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
    shift, mask = _U64(half_bits), _U64((1 << half_bits) - 1)
    round_keys = [_mix(keys + np.array([r + 1], dtype=_U64) * _GOLDEN) for r in range(_ROUNDS)]

    out = index.astype(_U64)
    again = np.arange(out.size)
    while again.size:
        value = out[again]
        left, right = value >> shift, value & mask
        for round_key in round_keys:
            chosen = round_key if round_key.size == 1 else round_key[again]
            scrambled = _scramble(right, chosen)
            scrambled &= mask
            scrambled ^= left
            left, right = right, scrambled
        value = (left << shift) | right
        out[again] = value
        again = again[value >= _U64(n)]
    return out.astype(np.int64)
