"""Makes the parts of a source: records to tokens, with the held-out documents set apart.

What a part holds depends on the source and the part's number alone, so that parts can be made by any
number of processes in any order, and one that is there need not be made again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llmkit.data.building.part_file import PartWriter, join
from llmkit.data.shuffle import key, permute
from llmkit.data.sources.files import File
from llmkit.data.sources.reader import RawRecord, SourceReader
from llmkit.data.sources.records import EMPTY, REPAIRED, SPELLED_END, Ids, Record, Skipped
from llmkit.data.sources.splits import Split
from llmkit.data.tokens.encode import Encoded, RecordEncoder, text_of
from llmkit.data.tokens.text_encoder import TIKTOKEN_AFTER
from llmkit.data.tokens.tokenizer import utf8_size
from llmkit.errors import UserError

PART_BYTES = (1 << 20, 16 << 20)
"""Bounds of the bytes that a part stands for: enough to make its overhead small, few enough to balance."""
PARTS = 64
"""Parts, about, of a source of middling size."""
GROUP_TEXT = 1 << 20
"""Characters that are tokenized at a time."""
BLOCK_SIZE = 64 << 20
"""Bytes of tokens, or of text where that is more, that are held in memory and shuffled."""
_HELDOUT_STREAM, _SHUFFLE_STREAM = 11, 12
"""Words that keep these keys apart from each other and from those of the order of the rows."""


def part_bytes_of(files: Sequence[File]) -> int:
    """Bytes that a part of a source with these files should have."""
    low, high = PART_BYTES
    return min(max(sum(file.size for file in files) // PARTS, low), high)


def group_units(units: Sequence[Split], part_bytes: int) -> list[tuple[int, ...]]:
    """Numbers of neighbouring units, in groups of at least `part_bytes`; the last may be smaller."""
    groups: list[tuple[int, ...]] = []
    group: list[int] = []
    size = 0
    for number, unit in enumerate(units):
        group.append(number)
        size += unit.size
        if size >= part_bytes:
            groups.append(tuple(group))
            group, size = [], 0
    return [*groups, tuple(group)] if group else groups


def held_out(part: int, numbers: np.ndarray, every: int) -> np.ndarray:
    """Which candidates of a part are held out: one of each `every` neighbours, drawn by a key; (count,) bool.

    So nobody has to know how many there are. The very first candidate of a source is never held out, so
    that one document is one to train on. `every` 0: none.
    """
    if every == 0:
        return np.zeros(numbers.shape, dtype=bool)
    group, place = np.divmod(numbers, every)
    chosen = (key(_HELDOUT_STREAM, part, group) % np.uint64(every)).astype(np.int64)
    if part == 0:
        chosen[(group == 0) & (chosen == 0)] = every - 1
    return chosen == place


class HeldOutChoice:
    """`held_out` for candidates one after the other."""

    def __init__(self, part: int, every: int) -> None:
        self._part, self._every = part, every
        self._known = np.zeros(0, dtype=bool)

    def __call__(self, number: int) -> bool:
        """Whether candidate `number` is held out."""
        if number >= self._known.size:
            self._known = held_out(self._part, np.arange(max(1024, 2 * number)), self._every)
        return bool(self._known[number])


@dataclass(frozen=True)
class PartMaker:
    """All that a process needs to make the parts of a source.

    reader: of the source. encoder: to tokens. parts: the units of each part. heldout_every: one candidate
    in so many is held out. dtype: of the tokens on disk. folder: where part files lie. threads: tokenize
    with all cores.
    """

    reader: SourceReader
    encoder: RecordEncoder
    parts: list[tuple[int, ...]]
    heldout_every: int
    dtype: str
    folder: Path
    threads: bool = False

    def path(self, part: int) -> Path:
        """Where a part lies once it is made."""
        return self.folder / f"part-v2-{part:06d}"  # of an older llmkit none is taken

    def make(self, part: int) -> None:
        """Read, tokenize and write a part.

        Raises UserError for the user's mistakes in the source, RunFault where it cannot be read.
        """
        choose = HeldOutChoice(part, self.heldout_every)
        with PartWriter(self.path(part)) as writer:
            block = _Block(part, np.dtype(self.dtype))
            group = Group(self.reader, self.encoder, writer.left_out, self.threads)
            for unit in self.parts[part]:
                for candidate in self.reader.read(unit):
                    group.add(candidate, unit, choose(writer.candidates))
                    writer.candidates += 1
                    if group.size >= GROUP_TEXT:
                        block.take(group.encode())
                        if block.size >= BLOCK_SIZE:
                            block.write(writer)
            block.take(group.encode())
            block.write(writer)
            writer.text_bytes = group.text_bytes
            if group.text >= TIKTOKEN_AFTER:  # before that nothing is known
                writer.slow_reason = self.encoder.tokenizer.tiktoken_disabled_because


def training_records(
    reader: SourceReader, units: tuple[int, ...], part: int, heldout_every: int
) -> Iterator[Record]:
    """What a part of these units holds to train on, as it is before tokenization."""
    choose = HeldOutChoice(part, heldout_every)
    candidates = (candidate for unit in units for candidate in reader.read(unit))
    for number, candidate in enumerate(candidates):
        if not choose(number) and not isinstance(candidate.record, Skipped):
            yield candidate.record


@dataclass
class Group:
    """Candidates that are tokenized together. size: their characters. text: those of all before, too.

    text_bytes: UTF-8 bytes of all the text so far, also of that which is not to be learned.
    """

    reader: SourceReader
    encoder: RecordEncoder
    left_out: Counter[str]
    threads: bool
    size: int = 0
    text: int = 0
    text_bytes: int = 0
    _records: list[Record] = field(default_factory=list)
    _places: list[tuple[int, int, bool]] = field(default_factory=list)

    def add(self, candidate: RawRecord, unit: int, heldout: bool) -> None:
        """Take a candidate of a unit; what it lacks is counted."""
        record = candidate.record
        if isinstance(record, Skipped):
            self.left_out[record.reason] += 1
            return
        if candidate.repaired:
            self.left_out[REPAIRED] += 1
        self._records.append(record)
        self._places.append((unit, candidate.number, heldout))
        self.size += 4 * int(record.ids.size) if isinstance(record, Ids) else len(text_of(record))

    def encode(self) -> list[tuple[Encoded, bool]]:
        """The documents, and whether each is held out; the group is empty afterwards."""
        found = []
        encoded = self.encoder.encode(self._records, self.threads) if self._records else []
        for index, (document, (_, _, heldout)) in enumerate(zip(encoded, self._places, strict=True)):
            if not isinstance(document, Skipped):
                found.append((document, heldout))
                record = self._records[index]
                if self.encoder.spells_end(record):
                    self.left_out[SPELLED_END] += 1
                is_text = not isinstance(record, Ids)
                self.text_bytes += utf8_size(text_of(record)) if is_text else document.text_bytes
            elif self.reader.errors == "raise" and document.reason != EMPTY:
                raise UserError(
                    f"{self._place(index)}: {document.detail}; mend the record, or set data.errors to skip"
                )
            else:
                self.left_out[document.reason] += 1
        self.text += sum(len(text_of(record)) for record in self._records)
        self._records, self._places, self.size = [], [], 0
        return found

    def _place(self, index: int) -> str:
        """Where a record of the group comes from, for messages."""
        unit, number, _ = self._places[index]
        return self.reader.location(unit, number)


class _Block:
    """Documents that are shuffled among each other. size: bytes of tokens, or text where that is more."""

    def __init__(self, part: int, dtype: np.dtype) -> None:
        self.size = 0
        self._part, self._dtype, self._number = part, dtype, 0
        self._splits: tuple[list[Encoded], list[Encoded]] = ([], [])

    def take(self, documents: list[tuple[Encoded, bool]]) -> None:
        for encoded, heldout in documents:
            tokens = encoded.tokens.astype(self._dtype)
            self._splits[heldout].append(encoded._replace(tokens=tokens))
            self.size += max(tokens.nbytes, encoded.text_bytes)  # of a chat only the answers are text

    def write(self, writer: PartWriter) -> None:
        shuffled = []
        for split, documents in enumerate(self._splits):
            keys = key(_SHUFFLE_STREAM, self._part, self._number, split)
            order = permute(np.arange(len(documents)), len(documents), keys)
            shuffled.append(join([documents[number] for number in order.tolist()], self._dtype))
        writer.add_block(*shuffled)
        self.size, self._splits, self._number = 0, ([], []), self._number + 1
