"""Which tokens are targets of the loss, as bit files beside the token files.

Bit j (little-endian in its byte) of a shard's file says whether token j of the shard is a target where it
is a label. A shard without such a file has only targets.
"""

from __future__ import annotations

import numpy as np

from llmkit.data.shards.mapped import MappedFile


class TargetBits:
    """The target bits of shards, one after the other.

    files: of each shard, None where all its tokens are targets. tokens: of each shard, their number.
    """

    def __init__(self, files: list[MappedFile | None], tokens: list[int]) -> None:
        self._files = files
        self._starts = np.cumsum([0, *tokens])
        self._first: list[int] = self._starts.tolist()
        self._period = self._first[-1] - 1  # of labels: the first token is none

    def read(self, start: int, stop: int) -> np.ndarray:
        """Bits start .. stop-1 of the stream, across shards; (stop - start,) bool."""
        out = np.empty(stop - start, dtype=bool)
        number = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            first, end = self._first[number], min(stop, self._first[number + 1])
            self._touch(number, np.array([start - first]), np.array([end - first]))
            out[out.size - (stop - start) :][: end - start] = self._bits(number, start - first, end - first)
            start, number = end, number + 1
        return out

    def rows(self, index: np.ndarray, length: int) -> np.ndarray:
        """The bits of each row's labels; `index`: (count,), result (count, length) bool."""
        starts = index.astype(np.int64) * length % self._period + 1  # a row's first label is its second token
        over = np.flatnonzero(starts + length > self._period + 1)
        ends = starts[over]
        starts[over] = 1  # read for nothing: these are few
        out = self._rows_inside(starts, length)
        for place, start in zip(over.tolist(), ends.tolist(), strict=True):
            end = self.read(start, self._period + 1)
            out[place] = np.concatenate([end, self.read(1, 1 + length - end.size)])
        return out

    def _rows_inside(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The `length` bits from each place on; none of them reaches over the end of the stream."""
        if len(self._files) == 1 and starts.size:
            self._touch(0, starts, starts + length)
            only = self._files[0]
            if only is not None and only.size >= _window(length):
                return _unpack_rows(only.bytes, starts, length)
        out = np.empty((starts.size, length), dtype=bool)
        numbers = np.searchsorted(self._starts, starts, side="right") - 1
        first = starts - self._starts[numbers]
        end = np.minimum(first + length, np.diff(self._starts)[numbers])
        for number in np.unique(numbers).tolist():
            self._touch(number, first, end, numbers)
        whole = end - first == length
        for place, (number, begin) in enumerate(zip(numbers.tolist(), first.tolist(), strict=True)):
            if whole[place]:
                out[place] = self._bits(number, begin, begin + length)
            else:  # it goes on in the next shard
                out[place] = self.read(int(starts[place]), int(starts[place]) + length)
        return out

    def check_all(self) -> int:
        """Check every block; returns their number."""
        files = [file for file in self._files if file is not None]
        for file in files:
            file.check_all()
        return sum(file.blocks for file in files)

    def _touch(
        self, number: int, first: np.ndarray, end: np.ndarray, numbers: np.ndarray | None = None
    ) -> None:
        """Before bits first[i] .. end[i]-1 of a shard are read; numbers[i]: the shard that i is about."""
        file = self._files[number]
        if file is not None and file.look():
            here = slice(None) if numbers is None else numbers == number
            file.check(first[here] // 8, (end[here] + 7) // 8)

    def _bits(self, number: int, start: int, stop: int) -> np.ndarray | bool:
        """Bits start .. stop-1 of one shard, as 0 and 1."""
        file = self._files[number]
        if file is None:
            return True
        low = start // 8
        packed = file.bytes[low : (stop + 7) // 8]
        return np.unpackbits(packed, bitorder="little")[start - 8 * low : stop - 8 * low]


def _window(length: int) -> int:
    """Bytes that hold any `length` bits one after the other."""
    return (length + 14) // 8


def _unpack_rows(packed: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """`length` bits from each place on, (count, length) bool; a call for all rows, not a call for each."""
    windows = np.lib.stride_tricks.sliding_window_view(packed, _window(length))
    low = np.minimum(starts // 8, len(windows) - 1)
    bits = np.unpackbits(windows[low], axis=1, bitorder="little").view(bool)
    shifts = starts - 8 * low
    if (shifts == shifts[0]).all():  # as where rows are whole bytes long
        return bits[:, shifts[0] : shifts[0] + length]
    out = np.empty((starts.size, length), dtype=bool)
    for shift in np.unique(shifts).tolist():
        here = shifts == shift
        out[here] = bits[here, shift : shift + length]
    return out
