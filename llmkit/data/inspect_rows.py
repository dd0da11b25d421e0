"""The rows of a step, or at a position of the order, and the documents that they are made of.

A row of a source whose tokens are stored is read where it lies; one of a live source takes its lane from the
beginning on (`llmkit.data.inspect_live`).

Positions, rows and lanes are counted from 0; documents, lines and steps from 1, as messages do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import JsonValue

from llmkit.config.schema import Config
from llmkit.data.batches import run_dry
from llmkit.data.inspect import marks, show_row, target_ranges
from llmkit.data.inspect_live import TracedRow, make_rows, rows_of_lanes
from llmkit.data.inspect_pairs import sequences
from llmkit.data.live.source import LiveSource
from llmkit.data.loader import TrainLoader
from llmkit.data.prepared import PreparedData
from llmkit.data.shards.dataset import TokenDataset
from llmkit.data.source import Source
from llmkit.errors import UserError

LAST_POSITION = 1 << 40
"""Rows that no run has: with more, their tokens could not be counted in 64 bits."""
LIVE_SECONDS = 300.0
"""How long live sources may be tokenized to come to the rows that are asked for."""


@dataclass(frozen=True)
class DocumentAt:
    """A document in a row. number: in its source; None of a live one, where documents are not counted.

    location: of a live source the record in its file, as messages say it; else the document in its shard, as
    nothing tells which record that was. start, stop: its tokens in the row, end-of-text included. offset:
    tokens of it that lie before the row.
    """

    number: int | None
    location: str
    start: int
    stop: int
    offset: int


@dataclass(frozen=True)
class RowAt:
    """A row of the order.

    index: of the source. epoch: of the source, or of the lane. row: in the source, or in its lane. lane: None
    where the tokens are stored. tokens: (T+1,). is_target: (T,) bool, which labels are targets; None = all.
    """

    position: int
    source: str
    index: int
    epoch: int
    row: int
    lane: int | None
    tokens: np.ndarray
    is_target: np.ndarray | None
    documents: tuple[DocumentAt, ...]

    @property
    def title(self) -> str:
        """Where it stands."""
        lane = "" if self.lane is None else f" of lane {self.lane}"
        return f"position {self.position}: {self.source}, epoch {self.epoch}, row {self.row}{lane}"

    def document_lines(self) -> Iterator[str]:
        """Its documents, a line each."""
        for one in self.documents:
            number = "" if one.number is None else f"document {one.number:,}: "
            before = f", {one.offset:,} tokens of it lie before" if one.offset else ""
            yield f"  tokens {one.start}-{one.stop - 1}: {number}{one.location}{before}"
        if not self.documents:
            yield "  no document: its lane is at its end, and there is nothing to learn"

    def as_json(self) -> dict[str, JsonValue]:
        """All of it but the text. targets: half-open ranges of `tokens` that the loss counts as labels."""
        return {
            "position": self.position,
            "source": self.source,
            "epoch": self.epoch,
            "row": self.row,
            "lane": self.lane,
            "documents": [dict(vars(one)) for one in self.documents],
            "tokens": self.tokens.tolist(),
            "targets": target_ranges(self.tokens.size, self.is_target),
        }


class Rows:
    """Finds rows of the order that a run of these settings has from its first step on.

    live_seconds: how long live sources may be tokenized. report: gets lines about that.
    """

    def __init__(
        self,
        config: Config,
        prepared: PreparedData,
        report: Callable[[str], None],
        live_seconds: float = LIVE_SECONDS,
    ) -> None:
        self._prepared, self._steps, self._length = prepared, config.train.max_steps, config.data.row_length
        self._report, self._live_seconds = report, live_seconds
        batch = config.train.global_batch_size
        with TrainLoader(prepared, config.data, config.run.seed, batch, micro_batch_size=1) as loader:
            self._sampler, self._begin_of = loader.sampler, loader.begin_of

    def of_step(self, step: int) -> list[RowAt]:
        """The rows of the global batch of a step, counted from 1, in the order of their positions.

        Raises UserError for a step that the run does not have, and as `at`.
        """
        if self._steps is not None and step > self._steps:
            raise UserError(f"--step {step}: the run has {self._steps:,} steps (train.max_steps)")
        _check(self._begin_of(step + 1) - 1)
        return self.at(range(self._begin_of(step), self._begin_of(step + 1)))

    def at(self, positions: Sequence[int]) -> list[RowAt]:
        """The rows at these positions, which ascend.

        Raises UserError where a source has run dry there, and where a live source would have to be tokenized
        for too long.
        """
        _check(max(positions))
        indices, epochs, rows = self._sampler.at(np.array(positions, dtype=np.int64))
        found: dict[int, RowAt] = {}
        for index in np.unique(indices).tolist():
            here = np.flatnonzero(indices == index)
            where = [positions[k] for k in here.tolist()]
            source = self._prepared.sources[index]
            if source.live is not None:
                live = source.live.keyed(self._sampler.shuffle_ids[index], self._sampler.seed)
                found |= self._live(source, live, where)
            else:
                found |= self._stored(source, where, epochs[here], rows[here])
        return [found[position] for position in positions]

    def _stored(
        self, source: Source, positions: Sequence[int], epochs: np.ndarray, rows: np.ndarray
    ) -> dict[int, RowAt]:
        stored = source.stored
        assert stored is not None, source.name
        if source.max_epochs is not None and int(epochs.max()) >= source.max_epochs:
            raise run_dry(source)
        tokens, targets = stored.rows(rows, self._length), stored.targets(rows, self._length)
        return {
            position: RowAt(
                position, source.name, source.index, int(epochs[k]), int(rows[k]), None, tokens[k],
                None if targets is None else targets[k],
                tuple(documents_of(stored, int(rows[k]) * self._length % stored.period, self._length)),
            )
            for k, position in enumerate(positions)
        }  # fmt: skip

    def _live(self, source: Source, live: LiveSource, positions: Sequence[int]) -> dict[int, RowAt]:
        keys = rows_of_lanes(live, source.index, self._sampler, positions)
        wanted: dict[int, set[int]] = {}
        for lane, row in keys:
            wanted.setdefault(lane, set()).add(row)
        made = make_rows(live, wanted, self._live_seconds, self._report)
        # From the beginnings of files on, as each location is counted from the one before.
        records = sorted({(one.split, one.record) for each in made.values() for one in each.documents})
        locations = {record: live.reader.location(*record) for record in records}
        return {
            position: _live_row(source, position, key, made[key], locations)
            for position, key in zip(positions, keys, strict=True)
        }


def _live_row(
    source: Source,
    position: int,
    key: tuple[int, int],
    traced: TracedRow,
    locations: dict[tuple[int, int], str],
) -> RowAt:
    size = traced.row.tokens.size
    documents = tuple(
        DocumentAt(
            None, locations[one.split, one.record], max(0, one.start - traced.start),
            min(size, one.stop - traced.start), max(0, traced.start - one.start),
        )
        for one in traced.documents
    )  # fmt: skip
    epoch = traced.documents[0].epoch if traced.documents else traced.row.cursor[0]
    return RowAt(
        position, source.name, source.index, epoch, key[1], key[0], traced.row.tokens, traced.row.targets,
        documents,
    )  # fmt: skip


def documents_of(stored: TokenDataset, start: int, length: int) -> Iterator[DocumentAt]:
    """The documents of the row of so many inputs that begins at token `start` of a stream, which may go on at
    its beginning; without one of which the row has nothing but the end-of-text that it begins with."""
    done = 0
    while done <= length:
        stop = min(start + length + 1 - done, stored.tokens)  # of this pass through the stream
        for part in stored.document_bounds_between(start, stop):
            begins, ends = part.bounds[:-1], part.bounds[1:]
            low = int(np.searchsorted(ends, start + (done == 0), side="right"))
            for k in range(low, int(np.searchsorted(begins, stop, side="left"))):
                begin, end = int(begins[k]), int(ends[k])
                if begin < end:  # Megatron's files may have documents without a token
                    yield DocumentAt(
                        part.before + k + 1, f"{part.file}, document {part.before_in_file + k + 1}",
                        done + max(0, begin - start), done + min(stop, end) - start, max(0, start - begin),
                    )  # fmt: skip
        done, start = done + stop - start, stored.tokens - stored.period


def _check(position: int) -> None:
    if position >= LAST_POSITION:
        raise UserError(f"position {position} lies behind the {LAST_POSITION:,} rows that can be shown")


def row_lines(rows: Iterable[RowAt], prepared: PreparedData, color: bool) -> Iterator[str]:
    """The rows as the model sees them, each with its documents. color: mark them by colours."""
    how = marks(prepared.tokenizer.end_of_text, color)
    yield f"{how.off}no target of the loss{how.on}, a document's end: {how.end}"
    for row in rows:
        yield f"\n=== {row.title} ==="
        yield from row.document_lines()
        if prepared.has_pairs and row.is_target is not None:
            for side, (tokens, is_target) in sequences(row.tokens, row.is_target):
                yield f"--- {side} ---"
                yield show_row(tokens, is_target, prepared.tokenizer, how)
        else:
            yield show_row(row.tokens, row.is_target, prepared.tokenizer, how)


def rows_json(rows: Iterable[RowAt], prepared: PreparedData) -> list[JsonValue]:
    """The rows with their text, control tokens and ends of text spelled out."""
    return [row.as_json() | {"text": prepared.tokenizer.decode(row.tokens)} for row in rows]
