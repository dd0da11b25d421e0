"""A lane: some splits of a live source as an endless stream of tokens, cut into rows.

    splits of the lane, in another order each epoch
      -> windows: `window` records of a split at a time, shuffled
      -> documents: records with their tokens, made a few at a time
      -> rows: tokens [kT, kT + T] of end-of-text, document, end-of-text, document, end-of-text, ...

A row has T inputs and, one further, their labels, so that neighbouring rows share a token. With T = 4, one
token a character and "." for end-of-text:

    split     {"text": "defgh"}  {"text": "x" * 10 ** 9} (left out)  {"text": "abc"}
    window    abc, (left out), defgh
    stream    . a b c . d e f g h . ...
    rows      . a b c .    cursor: epoch 0, split 0, first 0, hint 0, documents 1, tokens 0
                      . d e f g    documents 2, tokens 4; left_out {"longer than ...": 1}

Of a source with `max_epochs` the stream ends: the row that its end lies in is filled up with end-of-text that
is no target, and so are all rows that follow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator
from itertools import islice
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field, JsonValue, TypeAdapter, ValidationError

from llmkit.data.live.source import LiveSource
from llmkit.data.sources.reader import RawRecord
from llmkit.data.sources.records import EMPTY, REPAIRED, Chat, Ids, PromptCompletion, Record, Skipped, Text
from llmkit.data.tokens.encode import Encoded
from llmkit.errors import RunFault, UserError

WINDOW_CHARACTERS = 2 << 20
"""A window ends with the record that reaches this size, however few it has: it is held in memory."""
ENCODE_CHARACTERS = 1 << 14
"""Characters tokenized at a time: enough to make calls cheap, few enough for the first row to come soon."""

_COUNTS = TypeAdapter(list[Annotated[int, Field(ge=0, strict=True)]])


class Cursor(NamedTuple):
    """State of a lane between two rows; each stage of the stream knows its own fields.

    epoch: how often the lane was read to its end; `max_epochs` there. split: index in the lane's order of
    splits of this epoch. first: number of the window's first record in its split. hint: what the reader gave
    with it. documents: records of the window, in shuffled order, that are consumed. tokens: of the next
    document that are consumed, too; the last of them, or end-of-text where it is 0, begins the next row.
    """

    epoch: int = 0
    split: int = 0
    first: int = 0
    hint: int = 0
    documents: int = 0
    tokens: int = 0

    @classmethod
    def of(cls, value: JsonValue, where: str) -> Cursor:
        """A cursor from JSON; raises UserError, naming `where`, for anything but six counts."""
        try:
            return cls._make(_COUNTS.validate_python(value))
        except (ValidationError, TypeError) as error:
            text = f"{where}: the checkpoint's cursor is not usable: {str(value)[:80]}"
            raise UserError(text) from error


class Row(NamedTuple):
    """A row of a lane, for a sequence length of T.

    tokens: (T+1,) int32, T inputs and the label of the last; it may not be written to. targets: (T,) bool,
    which labels are targets of the loss; None = all of them. cursor: of the lane after the row, JSON.
    left_out: documents that were left out or mended since the row before, by reason. notes: what the user
    should know, mostly nothing.
    """

    tokens: np.ndarray
    targets: np.ndarray | None
    cursor: list[int]
    left_out: dict[str, int]
    notes: tuple[str, ...] = ()


class _Window(NamedTuple):
    """Records of a split, in shuffled order. cursor: at its beginning."""

    cursor: Cursor
    split: int
    records: list[RawRecord]


class LaneDocument(NamedTuple):
    """tokens: with end-of-text behind them. targets: of them all; None = all. cursor: at its beginning."""

    tokens: np.ndarray
    targets: np.ndarray | None
    cursor: Cursor

    def cursor_at(self, count: int) -> Cursor:
        """The cursor behind so many of its tokens."""
        if count < self.tokens.size:
            return self.cursor._replace(tokens=count)
        return self.cursor._replace(documents=self.cursor.documents + 1, tokens=0)


class Lane(Iterator[Row]):
    """The rows of lane `lane` after a cursor; from the beginning if there is none.

    After a cursor at most one window is read again, and one document tokenized again. Raises UserError for
    the user's mistakes in the source, RunFault where it cannot be read; both name it.
    """

    def __init__(self, source: LiveSource, lane: int, cursor: JsonValue = None) -> None:
        self._source, self._lane = source, lane
        self._where = f"source {source.name}: lane {lane} of {source.lanes}"
        self._start = Cursor() if cursor is None else Cursor.of(cursor, self._where)
        self._end_of_text = np.int32(source.encoder.tokenizer.end_of_text_id)
        self._split: int | None = None  # at hand
        self._has_document = self._start != Cursor()  # in this epoch
        self._left_out: Counter[str] = Counter()
        self._notes: list[str] = []
        self._rows = self._cut()

    def __next__(self) -> Row:
        try:
            return next(self._rows)
        except (UserError, RunFault) as error:
            text, name = str(error), f"source {self._source.name}"
            raise type(error)(text if text.startswith(name) else f"{name}: {text}") from error

    @property
    def activity(self) -> str:
        """Source, lane and file of the row that is being made, for messages."""
        return self._where if self._split is None else self._source.reading(self._lane, self._split)

    def close(self) -> None:
        """Close the files."""
        self._rows.close()

    def _cut(self) -> Generator[Row]:
        """The documents end to end, cut into rows."""
        size = self._source.sequence_length + 1
        tokens, targets, filled = self._begin(self._end_of_text), None, 1
        for document in self._documents():
            done = document.cursor.tokens
            if done:
                tokens[0] = document.tokens[done - 1]
            while done < document.tokens.size:
                count = min(size - filled, document.tokens.size - done)
                here, there = slice(filled, filled + count), slice(done, done + count)
                tokens[here] = document.tokens[there]
                if document.targets is not None:
                    targets = np.ones(size, dtype=bool) if targets is None else targets
                    targets[here] = document.targets[there]
                filled, done = filled + count, done + count
                if filled == size:
                    yield self._row(tokens, targets, document.cursor_at(done))
                    tokens, targets, filled = self._begin(tokens[-1]), None, 1
        end = Cursor(epoch=max(self._source.max_epochs or 0, self._start.epoch))
        while True:
            targets = np.ones(size, dtype=bool) if targets is None else targets
            tokens[filled:], targets[filled:] = self._end_of_text, False
            yield self._row(tokens, targets, end)
            tokens, targets, filled = self._begin(self._end_of_text), None, 1

    def _begin(self, first: np.int32) -> np.ndarray:
        tokens = np.empty(self._source.sequence_length + 1, dtype=np.int32)
        tokens[0] = first
        return tokens

    def _row(self, tokens: np.ndarray, targets: np.ndarray | None, cursor: Cursor) -> Row:
        left_out, self._left_out = dict(self._left_out), Counter()
        notes, self._notes = tuple(self._notes), []
        return Row(tokens, None if targets is None else targets[1:], list(cursor), left_out, notes)

    def _documents(self) -> Iterator[LaneDocument]:
        """The documents of the windows; counts what is left out."""
        start = self._start
        for window in self._windows():
            cursor, is_inside = window.cursor, start.tokens > 0
            if start.documents or is_inside:
                if cursor[:3] != start[:3] or start.documents + is_inside > len(window.records):
                    raise self._does_not_fit()
                cursor = cursor._replace(documents=start.documents, tokens=start.tokens)
                del window.records[: start.documents]
            for record, content in self._encode(window.split, window.records):
                if isinstance(content, Encoded):
                    self._has_document = True
                    if record.repaired and not is_inside:  # else an earlier row has counted it
                        self._left_out[REPAIRED] += 1
                    document = self._with_end(content, cursor)
                    if cursor.tokens >= document.tokens.size:
                        raise self._does_not_fit()
                    yield document
                elif is_inside:
                    raise self._does_not_fit()
                elif content is not None:
                    self._left_out[content.reason] += 1
                cursor, is_inside = cursor._replace(documents=cursor.documents + 1, tokens=0), False
            start = Cursor()

    def _with_end(self, content: Encoded, cursor: Cursor) -> LaneDocument:
        size, targets = content.tokens.size, None
        tokens = np.empty(size + 1, dtype=np.int32)  # np.append takes three times as long
        tokens[:size], tokens[size] = content.tokens, self._end_of_text
        if content.targets is not None or not content.end_is_target:
            targets = np.ones(size + 1, dtype=bool)
            targets[size] = content.end_is_target
            if content.targets is not None:
                targets[:size] = content.targets
        return LaneDocument(tokens, targets, cursor)

    def _encode(
        self, split: int, records: list[RawRecord]
    ) -> Iterator[tuple[RawRecord, Encoded | Skipped | None]]:
        """Each record with its tokens, or why there are none; None where it is held out.

        Takes the records off the list, so that they do not stay in memory.
        """
        reader, heldout = self._source.reader, self._source.heldout_of(split)
        records.reverse()
        while records:
            chosen, size = [], 0
            while records and size < ENCODE_CHARACTERS:
                chosen.append(records.pop())
                size += _size(chosen[-1].record)
            usable = {
                each.number: each.record
                for each in chosen
                if each.number not in heldout and not isinstance(each.record, Skipped)
            }
            encoded = dict(zip(usable, self._source.encoder.encode(list(usable.values())), strict=True))
            for number, content in encoded.items():
                if isinstance(content, Skipped) and content.reason != EMPTY and reader.errors == "raise":
                    raise UserError(
                        f"source {reader.name}: {reader.location(split, number)}: {content.detail}; mend the "
                        "record, or set data.errors to skip"
                    )
            for each in chosen:
                if each.number in heldout:
                    yield each, None
                else:
                    yield each, each.record if isinstance(each.record, Skipped) else encoded[each.number]

    def _windows(self) -> Iterator[_Window]:
        """The windows of the lane's splits, epoch after epoch; ends behind the last one."""
        source, lane = self._source, self._lane
        own, most = len(source.lane_splits[lane]), source.max_epochs
        epoch, index, first, hint, *_ = self._start
        order = source.split_order(lane, epoch, index)
        if self._start != Cursor() and index >= own + len(source.reader.splits):
            raise self._does_not_fit()
        while most is None or epoch < most:
            while index < len(order):
                self._split = split = order[index]
                records = source.reader.read(split, first, hint)
                while window := self._next_window(records, Cursor(epoch, index), split):
                    yield window
                index, first, hint = index + 1, 0, 0
            if self._has_document:
                # A lane without documents of its own begins behind its own splits each time.
                epoch, index, self._has_document = epoch + 1, 0 if len(order) == own else own, False
            elif self._fall_back(order):
                index = own
            else:
                return
            order = source.split_order(lane, epoch, index)

    def _next_window(self, records: Iterator[RawRecord], cursor: Cursor, split: int) -> _Window | None:
        found = list(_take(records, self._source.window))
        if not found:
            return None
        cursor = cursor._replace(first=found[0].number, hint=found[0].seek_hint)
        order = self._source.window_order(len(found), self._lane, cursor.epoch, split, cursor.first)
        return _Window(cursor, split, [found[k] for k in order])

    def _fall_back(self, order: list[int]) -> bool:
        """There is no document in these splits: whether the lane reads the whole source from here on.

        So its rows are of all documents alike, in an order of its own. Where each document may be read so
        often only, the lane is at its end instead. Raises UserError where the whole source has none.
        """
        source = self._source
        files = sorted({source.file_of(split) for split in order})
        listed = ", ".join(files[:3]) + (", ..." if len(files) > 3 else "")
        nothing = f"{self._where} has no document to train on ({listed or 'empty files'})"
        if len(order) > len(source.lane_splits[self._lane]) or source.lanes == 1:
            raise UserError(f"{nothing}; give the source other files")
        may_repeat = source.max_epochs is None
        self._notes.append(f"{nothing}: it reads the whole source instead" if may_repeat else nothing)
        return may_repeat

    def _does_not_fit(self) -> UserError:
        return UserError(f"{self._where}: the checkpoint's cursor does not fit the files of the source")


def _take(records: Iterator[RawRecord], count: int) -> Iterator[RawRecord]:
    """The next records, as many as a window holds."""
    size = 0
    for record in islice(records, count):
        yield record
        size += _size(record.record)
        if size >= WINDOW_CHARACTERS:
            return


def _size(record: Record | Skipped) -> int:
    """About how many characters a record has."""
    match record:
        case Chat(messages):
            return sum(len(message["content"]) for message in messages)
        case PromptCompletion(prompt, completion):
            return len(prompt) + len(completion)
        case Ids(ids):
            return 4 * int(ids.size)
        case Text(text):
            return len(text)
    return 0
