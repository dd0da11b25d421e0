"""The order of documents in a token stream in which the ends of rows cut as few of them as possible.

Rows are cut from the stream at every multiple of the row length T, so packing documents into rows is a
matter of their order alone: the stream has the same form as without, every token once and no padding.

A document takes the inputs [end-of-text, its tokens]: the end-of-text before it opens it, and the one behind
it is its last label and the next document's first input. A document of n tokens so fills n + 1 inputs, the
first of which is the last token written before it.
"""

from __future__ import annotations

from array import array

import numpy as np


def plan(lengths: np.ndarray, row_length: int, phase: int) -> np.ndarray:
    """The order in which to write documents; (documents,) their indexes in `lengths`.

    lengths: (documents,) tokens of each with its end-of-text. phase: tokens of the stream before them,
    modulo row_length (1 for a new stream, which begins with an end-of-text).

    A row is filled with the longest document that is left, then one or two that fill the rest exactly, else
    the longest that fits, and so on. Where nothing fits, a document longer than a row begins, which is cut
    anyway; where there is none left, a short one is cut. Documents of one length keep their order.
    """
    assert lengths.size == 0 or lengths.min() >= 1, "a document has its end-of-text at least"
    short = lengths <= row_length
    laid = _lay(lengths[short], lengths[~short], row_length, _offset(row_length, phase))
    order = np.empty(lengths.size, dtype=np.int64)
    # The documents of each length, in their order, take the positions laid out for that length.
    order[np.argsort(laid, kind="stable")] = np.argsort(lengths, kind="stable")
    return order


def are_cut(first: np.ndarray, lengths: np.ndarray, row_length: int) -> np.ndarray:
    """Which documents have inputs in several rows; (documents,) bool.

    first: (documents,) offset in the stream of each one's first input, the end-of-text before it. lengths:
    tokens of each with one end-of-text.
    """
    return first // row_length != (first + lengths - 1) // row_length


def _offset(row_length: int, phase: int) -> int:
    """Place in its row of the next document's first input: the end-of-text that was written last."""
    return (phase - 1) % row_length


def _lay(short: np.ndarray, long: np.ndarray, row_length: int, offset: int) -> np.ndarray:
    """The lengths of all documents in the order to write them, by `plan`'s rule."""
    sizes = _Sizes(short, row_length)
    waiting = iter(long.tolist())
    laid = array("q")
    room = row_length - offset
    while sizes.present:
        pieces = sizes.take_for(room)
        if not pieces:  # it runs over the end of the row
            pieces = (next(waiting, 0) or sizes.take_to_cut(room),)
        for piece in pieces:
            laid.append(piece)
            room -= piece
        if room <= 0:
            room = row_length - -room % row_length
    laid.extend(waiting)
    return np.array(laid, dtype=np.int64)


class _Sizes:
    """How many documents of each size are left, and bit sets to find a size by: bit s stands for size s."""

    def __init__(self, sizes: np.ndarray, row_length: int) -> None:
        counts = np.bincount(sizes, minlength=row_length + 1)
        self._length = row_length
        self._counts: list[int] = counts.tolist()
        self.present = _bits(counts)
        # Bit row_length - s stands for size s: shifted, each size meets the one that fills up the rest.
        self._mirror = _bits(counts[::-1])

    def take_for(self, room: int) -> tuple[int, ...]:
        """One or two sizes for the room left in a row: the best next ones, () if nothing fits."""
        if self._counts[room]:
            return (self._take(room),)
        fitting = self.present & ((1 << room) - 1)
        if not fitting:
            return ()
        if room == self._length:
            return (self._take(fitting.bit_length() - 1),)
        half = (room + 1) // 2
        larger = (fitting & (self._mirror >> (self._length - room))) >> half
        if not room % 2 and self._counts[half] == 1:
            larger &= ~1  # it is its own other half, and there is one only
        if larger:
            # The two most alike: small sizes, which fill what others leave, are kept for later.
            size = half + (larger & -larger).bit_length() - 1
            return self._take(size), self._take(room - size)
        return (self._take(fitting.bit_length() - 1),)

    def take_to_cut(self, room: int) -> int:
        """A size too large for the room; where possible, what its rest leaves of a row is filled exactly."""
        ending = self.present & (self._mirror << room)
        return self._take((ending or self.present).bit_length() - 1)

    def _take(self, size: int) -> int:
        self._counts[size] -= 1
        if not self._counts[size]:
            self.present ^= 1 << size
            self._mirror ^= 1 << (self._length - size)
        return size


def _bits(counts: np.ndarray) -> int:
    return int.from_bytes(np.packbits(counts > 0, bitorder="little").tobytes(), "little")
