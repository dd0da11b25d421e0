"""Tokens and masks of several files as one array each, of which ranges and rows are read."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from llmkit.data.shards.mmap_file import MappedFile

GATHER_BYTES = 1 << 18
"""Bytes copied at a time, few enough for the processor's cache: they are then converted from there."""
MANY_ROWS = 4
"""Rows of a file from which on they are copied together: a copy of all has the fixed cost of some rows."""


class TokenArray:
    """The tokens of a file, (size,) of `dtype`."""

    def __init__(self, file: MappedFile, dtype: np.dtype) -> None:
        self.file, self.dtype, self.values = file, dtype, file.bytes.view(dtype)
        self.size = self.values.size

    def verify(self, begin: int | np.ndarray, count: int) -> None:
        """To be called before tokens begin .. begin + count - 1 are read; an array: of several ranges."""
        if self.file.has_unverified():
            self.file.verify(begin * self.dtype.itemsize, (begin + count) * self.dtype.itemsize)

    def read(self, begin: int, end: int) -> np.ndarray:
        """Tokens begin .. end-1, (end - begin,)."""
        return self.values[begin:end]

    def rows(self, begins: np.ndarray, width: int) -> np.ndarray:
        """`width` tokens from each of `begins` (count,) on, all in this file; (count, width)."""
        return _windows(self.values, width)[begins]


class MaskArray:
    """Which tokens of a shard are targets of the loss where they are labels, (size,) bool.

    file: a bit a token, little-endian in its byte; None = all are targets.
    """

    dtype = np.dtype(bool)

    def __init__(self, file: MappedFile | None, size: int) -> None:
        self.file, self.size = file, size

    def verify(self, begin: int | np.ndarray, count: int) -> None:
        """To be called before bits begin .. begin + count - 1 are read; an array: of several ranges."""
        if self.file is not None and self.file.has_unverified():
            self.file.verify(begin // 8, (begin + count + 7) // 8)

    def read(self, begin: int, end: int) -> np.ndarray:
        """Bits begin .. end-1, (end - begin,) bool."""
        return self.rows(np.array([begin]), end - begin)[0]

    def rows(self, begins: np.ndarray, width: int) -> np.ndarray:
        """`width` bits from each of `begins` (count,) on, all in this shard; (count, width) bool."""
        if self.file is None:
            return np.ones((begins.size, width), dtype=bool)
        size = (width + 14) // 8  # bytes that hold any `width` bits one after the other
        packed = self.file.bytes
        if packed.size < size:
            packed = np.pad(packed, (0, size - packed.size))
        windows = _windows(packed, size)
        first = np.minimum(begins // 8, len(windows) - 1)
        bits = np.unpackbits(windows[first], bitorder="little").view(bool)  # those of all rows, end to end
        return _windows(bits, width)[8 * size * np.arange(begins.size) + begins - 8 * first]


def _windows(array: np.ndarray, width: int) -> np.ndarray:
    """A view of all runs of `width` items, (size - width + 1, width): one call of numpy copies many rows."""
    step = array.itemsize
    return np.ndarray((array.size - width + 1, width), array.dtype, array, strides=(step, step))


class JoinedArray:
    """The arrays of files one after the other, repeated without end.

    skip: items at the beginning that are left out when the array is repeated.
    Example: arrays [0, 5, 6] and [0, 7, 0], skip 1: 0 5 6 0 7 0 | 5 6 0 7 0 | 5 ...
    """

    def __init__(self, arrays: Sequence[TokenArray] | Sequence[MaskArray], skip: int) -> None:
        self.arrays, self._skip, self._dtype = arrays, skip, arrays[0].dtype
        self._sizes = np.array([array.size for array in arrays])
        self.bounds = np.concatenate(([0], np.cumsum(self._sizes)))
        self.size = int(self.bounds[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Items start .. stop-1, across files; (stop - start,)."""
        assert 0 <= start <= stop <= self.size, (start, stop, self.size)
        out = np.empty(stop - start, dtype=self._dtype)
        self._copy(start, out)
        return out

    def rows(self, starts: np.ndarray, width: int, out: np.ndarray | None = None) -> np.ndarray:
        """`width` items from each of `starts` (count,) on, across files and the end; (count, width).

        The result is `out`, of any integer type, or a new array of the stored type.
        """
        if out is None:
            out = np.empty((starts.size, width), dtype=self._dtype)
        assert out.shape == (starts.size, width), (out.shape, starts.size, width)
        assert starts.size == 0 or width <= self.size, (width, self.size)
        if len(self.arrays) == 1:  # then all rows are copied by slices; those at the end for nothing
            is_cut = starts + width > self.size
            begins = np.where(is_cut, 0, starts)
            self.arrays[0].verify(begins, width)
            _copy_rows(self.arrays[0], begins, None, out)
        else:
            is_cut = self._copy_inside(starts, out)
        for row in np.flatnonzero(is_cut).tolist():
            self._copy(int(starts[row]), out[row])
        return out

    def _copy_inside(self, starts: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Fills the rows that lie inside one of the files; returns which do not, (count,) bool."""
        width = out.shape[1]
        indices = np.searchsorted(self.bounds, starts, side="right") - 1
        begins = starts - self.bounds[indices]
        is_cut = begins + width > self._sizes[indices]
        inside = np.flatnonzero(~is_cut)
        inside = inside[np.argsort(indices[inside], kind="stable")]
        borders = (np.flatnonzero(np.diff(indices[inside])) + 1).tolist()
        order, begin_of = inside.tolist(), begins.tolist()
        for first, end in itertools.pairwise([0, *borders, inside.size] if order else []):
            array, rows = self.arrays[indices[order[first]]], inside[first:end]
            array.verify(begins[rows], width)
            if end - first >= MANY_ROWS:
                _copy_rows(array, begins[rows], rows, out)
                continue
            for row in order[first:end]:
                out[row] = array.read(begin_of[row], begin_of[row] + width)
        return is_cut

    def _copy(self, start: int, out: np.ndarray) -> None:
        """Fills `out` with the items from `start` on, across files and the end."""
        index, done = int(np.searchsorted(self.bounds, start, side="right")) - 1, 0
        begin = start - int(self.bounds[index])
        while done < out.size:
            array = self.arrays[index]
            end = min(array.size, begin + out.size - done)
            array.verify(begin, end - begin)
            out[done : done + end - begin] = array.read(begin, end)
            done += end - begin
            index, begin = index + 1, 0
            if index == len(self.arrays):
                index, begin = 0, self._skip


def _copy_rows(
    array: TokenArray | MaskArray, begins: np.ndarray, rows: np.ndarray | None, out: np.ndarray
) -> None:
    """Fills out[rows] with what begins at `begins` of a file; None = all of `out`, which is faster."""
    width = out.shape[1]
    step = max(1, GATHER_BYTES // (width * array.dtype.itemsize))
    for first in range(0, begins.size, step):
        some = slice(first, first + step)
        out[some if rows is None else rows[some]] = array.rows(begins[some], width)
