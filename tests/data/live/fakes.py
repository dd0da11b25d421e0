"""A source in memory, which counts what is read and tokenized of it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from llmkit.config import schema
from llmkit.data.live.source import LiveSource
from llmkit.data.live.stream import Lane, Row
from llmkit.data.sources.files import File
from llmkit.data.sources.reader import RawRecord
from llmkit.data.sources.records import EMPTY, PromptCompletion, Record, Skipped, Text
from llmkit.data.sources.splits import Split
from llmkit.data.tokens.encode import Encoded
from llmkit.errors import RunFault, UserError

END = 0
REFUSED = "refused by the chat template"
REFUSE, KILL, STALL, BROKEN, BUG = "!refuse", "!kill", "!stall", "!broken", "!bug"
"""Texts with which a document is refused, or kills, stalls or breaks who reads it."""
TELL_TORCH = "!torch"
"""A text that becomes "+" where torch is loaded, else "-"."""


@dataclass
class FakeReader:
    """Documents by unit and number; a file a unit."""

    documents: list[list[Record | Skipped]]
    spec: schema.Source
    errors: str = "skip"
    name: str = "toy"
    read_numbers: list[tuple[int, int]] = field(default_factory=list)
    opened: int = 0

    @property
    def files(self) -> list[File]:
        return [File(f"/files/{i}.jsonl", len(unit), "", 0) for i, unit in enumerate(self.documents)]

    @property
    def splits(self) -> list[Split]:
        return [Split(i, 0, len(unit), len(unit)) for i, unit in enumerate(self.documents)]

    def location(self, unit: int, number: int) -> str:
        return f"/files/{unit}.jsonl:{number + 1}"

    def read(self, unit: int, first: int = 0, hint: int = 0) -> Iterator[RawRecord]:
        assert hint in (0, 1000 + first), (first, hint)
        self.opened += 1
        for number in range(first, len(self.documents[unit])):
            self.read_numbers.append((unit, number))
            record = self.documents[unit][number]
            if record == Text(STALL):
                time.sleep(3600)
            if record == Text(KILL):
                os.kill(os.getpid(), 9)
            if record == Text(BROKEN):
                raise RunFault(f"{self.location(unit, number)}: cannot be read")
            if record == Text(BUG):
                raise ZeroDivisionError("a bug")
            yield RawRecord(
                number, 1000 + number, record, repaired=isinstance(record, Text) and "~" in record.text
            )


@dataclass
class FakeEncoder:
    """A token a character: its code. encoded: the texts so far."""

    key: str = "codes"
    encoded: list[str] = field(default_factory=list)

    @property
    def tokenizer(self) -> SimpleNamespace:
        return SimpleNamespace(end_of_text_id=END, hash=self.key)

    def key_of(self, record: str) -> str:
        return self.key

    def encode(self, records: Sequence[Record], threads: bool = False) -> list[Encoded | Skipped]:
        assert not threads
        return [self._encode(record) for record in records]

    def _encode(self, record: Record) -> Encoded | Skipped:
        prompt = record.prompt if isinstance(record, PromptCompletion) else ""
        text = prompt + record.completion if isinstance(record, PromptCompletion) else record.text  # type: ignore[union-attr]
        self.encoded.append(text)
        if text == TELL_TORCH:
            text = "+" if "torch" in sys.modules else "-"
        if text == REFUSE:
            return Skipped(REFUSED, "it ends too soon")
        if "\x00" in text:
            return Skipped("ids outside the vocabulary", "token id 0")
        if not text:
            return Skipped(EMPTY, "the text has no tokens")
        tokens = np.array([ord(character) for character in text], dtype=np.int32)
        if not isinstance(record, PromptCompletion):
            return Encoded(tokens, None, len(text))
        targets = np.arange(len(text)) >= len(prompt)
        return Encoded(tokens, targets, len(text), bool(record.completion))


def live(documents: list[list[Any]], **changes: Any) -> LiveSource:
    """A live source of documents, strings for short, with rows of 8 inputs in 2 lanes."""
    units = [[Text(one) if isinstance(one, str) else one for one in unit] for unit in documents]
    spec = {name: changes.pop(name) for name in ("max_epochs", "record") if name in changes}
    errors = changes.pop("errors", "skip")
    reader = FakeReader(units, schema.Source(type="jsonl", path="/files", **spec), errors)
    settings = {
        "sequence_length": 8,
        "lane_limit": 2,
        "window": 4,
        "heldout_every": 0,
        "stream_id": 3,
        "seed": 7,
    }
    settings |= {"columns": changes.get("lane_limit", 2)} | changes
    return LiveSource(reader, FakeEncoder(), **settings)  # type: ignore[arg-type]


def rows_to_end(lane: Lane) -> list[Row]:
    """Rows of a lane with `max_epochs` up to the one that its last token is in; none without a document."""
    most, rows = lane._source.max_epochs, []
    assert most is not None
    try:
        while not rows or rows[-1].cursor[0] < most:
            rows.append(next(lane))
    except UserError as error:
        assert "no document to train on" in str(error)
    if rows and (rows[-1].tokens == END).all():
        rows.pop()
    return rows


def plain(row: Row) -> list[Any]:
    """A row as lists."""
    targets = None if row.targets is None else row.targets.tolist()
    return [row.tokens.tolist(), targets, *row[2:]]
