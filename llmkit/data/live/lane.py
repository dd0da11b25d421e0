"""A lane: some units of a live source as an endless stream of tokens, cut into rows.

The stream is end-of-text, then document after document, each followed by end-of-text. Row k is its tokens
[kT, kT+T]: T inputs and, one further, their labels, so that neighbouring rows share a token. Of a source
with `max_epochs` the stream has an end: the row that it lies in is filled up with end-of-text that is no
target, and so are all rows that follow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from pydantic import JsonValue

from llmkit.data.live.row import Cursor, Row
from llmkit.data.live.source import LiveSource
from llmkit.data.live.windows import Window, Windows
from llmkit.data.sources.records import EMPTY, MENDED, Chat, Ids, LeftOut, Pair, Record, Text
from llmkit.data.tokens.encode import Encoded
from llmkit.errors import UserError

ENCODE_CHARACTERS = 1 << 14
"""Characters tokenized at a time: enough to make calls cheap, few enough for the first row to come soon."""
RECORDS = (Text, Chat, Pair, Ids)
NOTHING = np.zeros(0, dtype=np.int32)


class Lane:
    """The rows of lane `lane` from a cursor on; from the beginning if there is none.

    After a cursor at most one window is read again, and one document tokenized again.
    """

    def __init__(self, source: LiveSource, lane: int, cursor: JsonValue = None) -> None:
        self._source, self._lane = source, lane
        self._where = f"source {source.name}: lane {lane} of {source.lanes}"
        self._start = Cursor() if cursor is None else Cursor.of(cursor, self._where)
        places = len(source.lane_units[lane]) + len(source.reader.units)
        if self._start != Cursor() and self._start.place >= places:
            raise UserError(f"{self._where}: the checkpoint's cursor does not fit the files of the source")
        self._windows = Windows(source, lane, self._start)
        self._has_begun = False
        self._window: Window | None = None  # also at the end
        self._encoded = 0  # items of the window that were tokenized
        self._begun = 0  # items of the window that were begun
        self._document = NOTHING  # without the end-of-text that follows it
        self._is_target: np.ndarray | None = None
        self._end_is_target = True
        self._at = 1  # tokens of the document that are in rows, end-of-text included
        self._end_of_text = source.encoder.tokenizer.end_of_text_id
        self._last = self._end_of_text
        self._left_out: Counter[str] = Counter()

    def next_row(self, wanted: bool = True) -> Row:
        """The next row; without its tokens if it is not wanted.

        Raises UserError for the user's mistakes in the source, RunFault where it cannot be read; both name
        it. The lane cannot go on after that.
        """
        if not self._has_begun:
            self._go_to_start()
        length = self._source.sequence_length
        tokens = np.empty(length + 1, dtype=np.int32)
        targets: np.ndarray | None = None
        tokens[0] = self._last
        filled = 1
        while filled <= length:
            if self._at > self._document.size and not self._begin_document():
                break
            begin, start = filled, self._at
            count = min(length + 1 - filled, self._document.size - start)
            tokens[begin : begin + count] = self._document[start : start + count]
            filled += count
            self._at += count
            if self._is_target is not None and targets is None:
                targets = np.ones(length + 1, dtype=bool)
            if self._is_target is not None and targets is not None:
                targets[begin : begin + count] = self._is_target[start : start + count]
            if self._at == self._document.size and filled <= length:
                tokens[filled] = self._end_of_text
                if targets is not None:
                    targets[filled] = self._end_is_target
                filled += 1
                self._at += 1
        if filled <= length:
            tokens[filled:] = self._end_of_text
            targets = np.ones(length + 1, dtype=bool) if targets is None else targets
            targets[filled:] = False
        self._last = int(tokens[length])
        left_out, self._left_out = dict(self._left_out), Counter()
        notes, self._windows.notes = tuple(self._windows.notes), []
        if not wanted:
            return Row(NOTHING, None, list(self._cursor()), left_out, notes)
        labels = None if targets is None else targets[1:]
        return Row(tokens, labels, list(self._cursor()), left_out, notes)

    @property
    def activity(self) -> str:
        """Source, lane and file of the rows that are being made, for messages."""
        return self._source.reading(self._lane, self._windows.unit)

    def close(self) -> None:
        """Close the files."""
        self._windows.close()

    def _cursor(self) -> Cursor:
        window = self._window
        if window is None:
            assert self._source.max_epochs is not None
            return Cursor(epoch=max(self._source.max_epochs, self._start.epoch))
        whole = self._at > self._document.size
        begun, token = (self._begun, 0) if whole else (self._begun - 1, self._at)
        return Cursor(window.epoch, window.place, window.first, window.hint, begun, token)

    def _go_to_start(self) -> None:
        self._has_begun = True
        start, window = self._start, self._windows.next()
        self._begin_window(window)
        if window is None or start.begun == start.token == 0:
            return
        fits = (window.epoch, window.place, window.first) == start[:3]
        fits = fits and start.begun + (start.token > 0) <= len(window.items)
        self._begun = self._encoded = start.begun
        if fits and start.token:
            fits = self._begin_document() and self._window is window
            self._left_out.clear()  # the rows before have told
            fits = fits and self._begun == start.begun + 1
            fits = fits and start.token <= self._document.size
        if not fits:
            raise UserError(f"{self._where}: the checkpoint's cursor does not fit the files of the source")
        if start.token:
            self._at, self._last = start.token, int(self._document[start.token - 1])

    def _begin_window(self, window: Window | None) -> None:
        self._window, self._encoded, self._begun = window, 0, 0

    def _begin_document(self) -> bool:
        """Go to the next document that has tokens; count what is left out on the way. False at the end."""
        while True:
            window = self._window
            if window is None:
                return False
            if self._begun == len(window.items):
                self._begin_window(self._windows.next())
                continue
            if self._begun == self._encoded:
                self._encode(window)
            item = window.items[self._begun]
            self._begun += 1
            content, item.content = item.content, None  # it is not needed any more
            if isinstance(content, LeftOut):
                self._left_out[content.reason] += 1
            elif isinstance(content, Encoded):
                if item.mended:
                    self._left_out[MENDED] += 1
                self._windows.usable = True
                self._document, self._at = content.tokens, 0
                self._end_is_target = content.end_is_target
                self._is_target = content.targets
                if self._is_target is None and not content.end_is_target:
                    self._is_target = np.ones(content.tokens.size, dtype=bool)
                return True

    def _encode(self, window: Window) -> None:
        """Make tokens of the next items of the window, of one at least."""
        first, size = self._encoded, 0
        while self._encoded < len(window.items) and size < ENCODE_CHARACTERS:
            size += window.items[self._encoded].size
            self._encoded += 1
        chosen = window.items[first : self._encoded]
        records = [(item.number, item.content) for item in chosen if isinstance(item.content, RECORDS)]
        tokens = iter(self._tokens_of(window.unit, records))
        for item in chosen:
            if isinstance(item.content, RECORDS):
                item.content = next(tokens)
            self._windows.keep(item)

    def _tokens_of(self, unit: int, records: Sequence[tuple[int, Record]]) -> list[Encoded | LeftOut]:
        """What the encoder makes of candidates: (number, record)."""
        reader = self._source.reader

        found = self._source.encoder.encode([record for _, record in records])
        for (number, _), content in zip(records, found, strict=True):
            if isinstance(content, LeftOut) and content.reason != EMPTY and reader.errors == "raise":
                raise UserError(
                    f"source {reader.name}: {reader.place(unit, number)}: {content.detail}; mend the record, "
                    "or set data.errors to skip"
                )
        return found
