"""Files of tokens, one after the other, as one stream that is read by place or by row."""

from __future__ import annotations

import numpy as np

from llmkit.data.shards.mapped import MappedFile

GATHER_BYTES = 1 << 18
"""Tokens copied at a time, small enough for the processor's cache: they are then converted from there."""

MANY_ROWS = 4
"""Rows a file from which on they are copied together: a call of numpy costs as much as some rows."""


class TokenFiles:
    """The tokens of mapped files; dtype: type of the tokens in all of them.

    first_is_last: whether the first token stands for the last one of the stream, as both are end-of-text:
    then it is left out where the stream is repeated. Row k of length T is tokens kT .. kT+T of that.
    """

    def __init__(self, files: list[MappedFile], dtype: np.dtype, first_is_last: bool) -> None:
        self._files, self._dtype = files, dtype
        self._tokens = [file.bytes.view(dtype) for file in files]
        self._sizes = np.array([tokens.size for tokens in self._tokens], dtype=np.int64)
        self._starts = np.concatenate(([0], np.cumsum(self._sizes)))
        self._first: list[int] = self._starts.tolist()
        self._windows: dict[tuple[int, int], np.ndarray] = {}
        self.tokens = int(self._starts[-1])
        self.times = [file.time for file in files]
        self._skip = int(first_is_last)
        self.period = self.tokens - self._skip

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start .. stop-1, across files; shape (stop - start,), the stored type."""
        assert 0 <= start <= stop <= self.tokens, (start, stop, self.tokens)
        out = np.empty(stop - start, dtype=self._dtype)
        number = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            first, end = self._first[number], min(stop, self._first[number + 1])
            self._touch(number, np.array([start - first]), np.array([end - first]))
            out[out.size - (stop - start) :][: end - start] = self._tokens[number][
                start - first : end - first
            ]
            start, number = end, number + 1
        return out

    def take(self, places: np.ndarray) -> np.ndarray:
        """Single tokens, (count,) of the stored type; `places`: (count,) in the stream."""
        out = np.empty(places.size, dtype=self._dtype)
        numbers = np.searchsorted(self._starts, places, side="right") - 1
        first = places - self._starts[numbers]
        for number in np.unique(numbers).tolist():
            self._touch(number, first, first + 1, numbers)
            here = numbers == number
            out[here] = self._tokens[number][first[here]]
        return out

    def rows(self, index: np.ndarray, length: int, out: np.ndarray | None = None) -> np.ndarray:
        """Rows of `length` inputs and the last one's label; `index`: (count,), result (count, length + 1).

        length: less than `tokens`. The result is `out`, of any integer type, or a new array of the stored
        type.
        """
        width = length + 1
        if out is None:
            out = np.empty((index.size, width), dtype=self._dtype)
        assert out.shape == (index.size, width), (out.shape, index.size, length)
        if index.size == 0:
            return out
        assert index.min() >= 0, index
        assert width <= self.tokens, (length, self.tokens)
        starts = index.astype(np.int64) * length % self.period
        over = np.flatnonzero(starts + width > self.tokens)
        ends = starts[over]
        starts[over] = 0  # read for nothing: these are few
        if len(self._files) == 1:  # then no row needs a look of its own
            self._touch(0, starts, starts + width)
            self._gather(0, starts, out, None)
        else:
            self._gather_over_files(starts, out)
        for place, start in zip(over.tolist(), ends.tolist(), strict=True):
            end = self.read(start, self.tokens)
            out[place, : end.size] = end
            out[place, end.size :] = self.read(self._skip, self._skip + width - end.size)
        return out

    def check_all(self) -> int:
        """Check every block; returns their number."""
        for file in self._files:
            file.check_all()
        return sum(file.blocks for file in self._files)

    def largest(self, number: int) -> int:
        """The largest id of a file, found by reading it whole."""
        return int(self._tokens[number].max())

    def _touch(
        self, number: int, first: np.ndarray, end: np.ndarray, numbers: np.ndarray | None = None
    ) -> None:
        """Before tokens first[i] .. end[i]-1 of a file are read; numbers[i]: the file that i is about."""
        if self._files[number].look():
            here = slice(None) if numbers is None else numbers == number
            self._files[number].check(first[here] * self._dtype.itemsize, end[here] * self._dtype.itemsize)

    def _gather(self, number: int, first: np.ndarray, out: np.ndarray, places: np.ndarray | None) -> None:
        """Rows of one file, which begin at `first` in it, into out[places]; None = into all of `out`."""
        width = out.shape[1]
        if (number, width) not in self._windows:
            # Every run of `width` tokens as a view, so that one call of numpy copies many rows.
            windows = np.lib.stride_tricks.sliding_window_view(self._tokens[number], width)
            self._windows[number, width] = windows
        view, step = self._windows[number, width], max(1, GATHER_BYTES // (width * self._dtype.itemsize))
        for begin in range(0, first.size, step):
            part = slice(begin, begin + step)
            out[part if places is None else places[part]] = view[first[part]]

    def _gather_over_files(self, starts: np.ndarray, out: np.ndarray) -> None:
        """Rows of several files."""
        width = out.shape[1]
        numbers = np.searchsorted(self._starts, starts, side="right") - 1
        first = starts - self._starts[numbers]
        end = np.minimum(first + width, self._sizes[numbers])
        present = np.unique(numbers).tolist()
        for number in present:
            self._touch(number, first, end, numbers)
        left = np.ones(starts.size, dtype=bool)
        if starts.size >= MANY_ROWS * len(present):
            left = end - first < width
            for number in present:
                places = np.flatnonzero((numbers == number) & ~left)
                if places.size:
                    self._gather(number, first[places], out, places)
        for place in np.flatnonzero(left).tolist():
            number, begin = int(numbers[place]), int(first[place])
            row = self._tokens[number][begin : begin + width]
            if row.size == width:
                out[place] = row
            else:  # it goes on in the next file
                out[place] = self.read(self._first[number] + begin, self._first[number] + begin + width)
