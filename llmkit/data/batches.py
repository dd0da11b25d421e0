"""Rows of the order, gathered from their sources, as the batches of one rank.

Some steps are gathered at a time into one piece of memory, of which their batches are views. With 6 rows in a
global batch, 2 ranks and micro-batches of 2 rows, rank 0 has of the first two steps

    positions   0 2 4 . | 6 8 10 .       . = a row that only fills: end-of-text, no target
    sources     0 1 0 -1| 0 0  1 -1      micro-batches 0 1 | 2 3 of the block
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from llmkit.config import schema
from llmkit.data.live.lanes import Cursors
from llmkit.data.live.schedule import LaneSchedule
from llmkit.data.live.workers import LiveRows
from llmkit.data.omitted import Omitted
from llmkit.data.prepared import PreparedData
from llmkit.data.rank_batch import Block, LiveProgress, RankBatch
from llmkit.data.sampler import MixtureSampler
from llmkit.data.source import Source
from llmkit.errors import SourceDryError

ORDER_ROWS = 4096
"""Rows, at least, whose order is computed at a time: a call alone costs as much as some hundred rows."""
BLOCK_TOKENS = 1 << 19
"""Tokens gathered at a time, unless a step has more: handing a block over costs as much as gathering some."""
LIVE_BLOCK_TOKENS = 1 << 16
"""Smaller for live sources: a block is ready only when its last document is tokenized."""


def round_up(count: int, multiple: int) -> int:
    """The next multiple that is not less than `count`."""
    return -(-count // multiple) * multiple


def run_dry(source: Source) -> SourceDryError:
    """What to raise where a source was read as often as it may be."""
    often = "once" if source.max_epochs == 1 else f"{source.max_epochs} times"
    return SourceDryError(
        f"source {source.name} has run dry: it was read {often} ({source.setting}.max_epochs); the newest "
        "checkpoint goes on with a larger max_epochs or other weights (--allow-data-change)"
    )


class RowIndex(NamedTuple):
    """Which rows some steps of this rank have. positions, sources, epochs, rows: (steps, rows of a step).

    begins: (steps + 1,), the position at which each step begins, and the next one behind them.
    """

    begins: np.ndarray
    positions: np.ndarray
    sources: np.ndarray
    epochs: np.ndarray
    rows: np.ndarray

    def of_steps(self, start: int, stop: int) -> RowIndex:
        """Some of the steps."""
        return RowIndex(self.begins[start : stop + 1], *(each[start:stop] for each in self[1:]))


class BatchReader:
    """Gathers the batches of one rank, some steps at a time.

    position: where the first step begins. omitted: the positions that are left out. cursors: of the lanes of
    each live source; None for other sources. The rest as in `llmkit.data.loader.TrainLoader`. rows_made:
    grows as long as rows come.
    """

    def __init__(
        self,
        prepared: PreparedData,
        config: schema.Data,
        sampler: MixtureSampler,
        position: int,
        omitted: Omitted,
        cursors: Sequence[Cursors | None],
        *,
        batch_rows: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        hash_rows: bool,
        workers: int,
    ) -> None:
        self._reading: str | None = "the order of the rows"  # None = whatever the live rows are
        self._prepared, self._sources, self._length = prepared, prepared.sources, config.row_length
        self._boundary = prepared.tokenizer.end_of_text_id if config.document_masks else None
        self._sampler, self._position, self._omitted = sampler, position, omitted
        self._batch_rows, self._micro = batch_rows, micro_batch_size
        self._rank, self._world = rank, world_size
        self._rows = round_up(round_up(batch_rows, world_size) // world_size, micro_batch_size)
        self._hash_rows, self._pin = hash_rows, torch.cuda.is_available()
        self._has_masks = any(source.has_mask for source in self._sources)
        self.rows_made = 0
        live = {
            index: source.live.keyed(sampler.shuffle_ids[index], sampler.seed)
            for index, source in enumerate(self._sources)
            if source.live is not None
        }
        tables = {index: source.lane_table for index, source in live.items()}
        self._schedule = LaneSchedule(sampler, tables, rank, world_size, position)
        self._live_position = position  # the live rows before it were taken
        self._live: LiveRows | None = None
        if live:
            served = {
                (index, lane): (cursors[index] or {}).get(str(lane))
                for index, lanes in self._schedule.served.items()
                for lane in lanes
            }
            self._live = LiveRows(live, served, self._schedule, workers, config.stall_seconds)

    @property
    def activity(self) -> str:
        """What is being read."""
        return self._reading or (self._live.activity if self._live is not None else "the data")

    def close(self) -> None:
        """End the processes that tokenize, if there are any."""
        if self._live is not None:
            self._live.close()

    def blocks(self) -> Iterator[list[RankBatch]]:
        """The batches, some steps at a time; first one: training starts at once. To be called once."""
        tokens = BLOCK_TOKENS if self._live is None else LIVE_BLOCK_TOKENS
        most = max(1, tokens // (self._rows * self._length))
        if any(source.max_epochs is not None and source.live is None for source in self._sources):
            most = 1  # that one has run dry must not be noticed before the step it concerns
        steps, number = 1, self._omitted.number(self._position)
        located = max(round_up(ORDER_ROWS, self._rows) // self._rows, 1)
        while True:
            starts = number + self._batch_rows * np.arange(located + 1)
            index = self._locate(starts)
            done = 0
            while done < located:
                yield self._gather(index.of_steps(done, min(done + steps, located)))
                done += steps
                steps = min(2 * steps, most)
            number = int(starts[-1])

    def _locate(self, starts: np.ndarray) -> RowIndex:
        """The rows of this rank in steps that follow each other; starts: as `RowIndex.begins`, but numbers of
        rows, without those that are left out."""
        first = starts[:-1] + (self._rank - starts[:-1]) % self._world
        numbers = first[:, None] + self._world * np.arange(self._rows)
        real = numbers < starts[1:, None]
        positions = self._omitted.positions(numbers)
        sources = np.full(numbers.shape, -1, dtype=np.int64)
        epochs, rows = np.zeros_like(sources), np.zeros_like(sources)
        sources[real], epochs[real], rows[real] = self._sampler.at(positions[real])
        return RowIndex(self._omitted.positions(starts), positions, sources, epochs, rows)

    def _gather(self, index: RowIndex) -> list[RankBatch]:
        """The batches of these steps."""
        block = self._new_block(index.sources.ravel())
        for source in np.flatnonzero(np.bincount(block.sources[block.sources >= 0])).tolist():
            if source not in self._schedule.served:
                self._fill_stored(source, index, block)
        steps, rows = index.sources.shape
        progress = [RankBatch._field_defaults["progress"]] * steps
        if self._live is not None:
            progress = self._fill_live(self._live, index, block)
        pairs, boundary = self._prepared.has_pairs, self._boundary
        micro_batches = block.micro_batches(self._micro, len(self._sources), boundary, pairs=pairs)
        hashes = block.hashes().reshape(steps, rows) if self._hash_rows else None
        own, everything = self._targets(index, block)
        count = rows // self._micro
        return [
            RankBatch(
                micro_batches[step * count : (step + 1) * count], own[step], everything, self._batch_rows,
                int(index.begins[step]), index.sources[step].reshape(count, self._micro),
                None if hashes is None else hashes[step], index.positions[step], progress[step],
            )
            for step in range(steps)
        ]  # fmt: skip

    def _new_block(self, sources: np.ndarray) -> Block:
        """A block of rows of these sources, of which only the rows that fill are written."""
        count, length, filling = sources.size, self._length, sources < 0
        text = torch.empty((count, length + 1), dtype=torch.int32, pin_memory=self._pin)
        text.numpy()[filling] = self._prepared.tokenizer.end_of_text_id
        is_target = reference = None
        if self._has_masks or filling.any():
            is_target = torch.ones((count, length), dtype=torch.bool, pin_memory=self._pin)
            is_target.numpy()[filling] = False
        if any(source.reference is not None for source in self._sources):
            reference = torch.zeros((count, 2), dtype=torch.float32, pin_memory=self._pin)
        return Block(text, is_target, reference, sources)

    def _targets(self, index: RowIndex, block: Block) -> tuple[list[int], int | None]:
        """Targets of this rank in each step, and of all ranks in any step: see `RankBatch.targets`."""
        rows = np.count_nonzero(index.sources >= 0, axis=1)
        if self._prepared.has_pairs:
            return rows.tolist(), self._batch_rows
        if self._has_masks and block.is_target is not None:
            return np.count_nonzero(block.is_target.numpy().reshape(len(rows), -1), axis=1).tolist(), None
        return (rows * self._length).tolist(), self._batch_rows * self._length

    def _fill_stored(self, number: int, index: RowIndex, block: Block) -> None:
        """Rows of a source whose tokens are on disk, and of pairs what the reference model gives."""
        source = self._sources[number]
        stored, here = source.stored, block.sources == number
        assert stored is not None, source.name
        self._reading = f"source {source.name}"
        rows, text = index.rows.ravel()[here], block.text.numpy()
        if source.max_epochs is not None and index.epochs.ravel()[here].max() >= source.max_epochs:
            raise run_dry(source)
        if here.all():
            stored.rows(rows, self._length, out=text)
        else:
            text[here] = stored.rows(rows, self._length)
        if block.is_target is not None and (targets := stored.targets(rows, self._length)) is not None:
            block.is_target.numpy()[here] = targets
        if block.reference is not None and source.reference is not None:
            block.reference.numpy()[here] = source.reference[rows % len(source.reference)]

    def _fill_live(self, live: LiveRows, index: RowIndex, block: Block) -> list[LiveProgress]:
        """Rows of live sources, and what each step has read of them, rows of other ranks included."""
        self._reading = None
        begin, self._live_position = self._live_position, int(index.begins[-1])
        due = self._schedule.between(begin, self._live_position)
        steps = np.searchsorted(index.begins[1:-1], due.positions, side="right")
        own_rows = np.flatnonzero(block.sources >= 0)
        own = index.positions.ravel()[own_rows]  # ascending
        is_own = np.isin(due.positions, own)
        row_of = np.full(due.positions.size, -1)
        row_of[is_own] = own_rows[np.searchsorted(own, due.positions[is_own])]
        text = block.text.numpy()
        is_target = None if block.is_target is None else block.is_target.numpy()
        progress = [LiveProgress({}, {}, []) for _ in index.sources]
        due_rows = (due.sources.tolist(), due.lanes.tolist(), steps.tolist(), row_of.tolist())
        for source, lane, step, row in zip(*due_rows, strict=True):
            made, now = live.take(source, lane), progress[step]
            self.rows_made += 1
            now.cursors[source, lane] = made.cursor
            now.notes.extend(made.notes)
            if made.left_out:
                now.left_out.setdefault(source, Counter()).update(made.left_out)
            if row >= 0:
                text[row] = made.tokens
                if is_target is not None and made.targets is not None:
                    is_target[row] = made.targets
        return progress
