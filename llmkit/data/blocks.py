"""Rows of the order, gathered from their sources into blocks of steps, on the way to batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from xxhash import xxh64_intdigest

from llmkit.config import schema
from llmkit.data.live.lanes import Cursors
from llmkit.data.live.schedule import LaneSchedule
from llmkit.data.live.source import LiveSource
from llmkit.data.live.workers import LiveRows
from llmkit.data.omitted import Omitted
from llmkit.data.order import Order
from llmkit.data.prepared import Prepared, TrainSource
from llmkit.errors import SourceDryError

ORDER_ROWS = 4096
"""Rows, at least, whose order is computed at a time: a call alone costs as much as some hundred rows."""
BLOCK_TOKENS = 1 << 19
"""Tokens gathered at a time, unless a step has more: handing a block over costs as much as gathering some."""
LIVE_BLOCK_TOKENS = 1 << 16
"""The same where text is tokenized on the way: who waits for a block waits for its last document."""


def round_up(count: int, multiple: int) -> int:
    """The next multiple that is not less than `count`."""
    return -(-count // multiple) * multiple


def run_dry(source: TrainSource, index: int) -> SourceDryError:
    """What to raise where a source was read as often as it may be; index: of the source in the settings."""
    often = "once" if source.max_epochs == 1 else f"{source.max_epochs} times"
    return SourceDryError(
        f"source {source.name} has run dry: it was read {often} "
        f"(data.sources.{index}.max_epochs); the newest checkpoint goes on with a larger max_epochs "
        "or other weights (--allow-data-change)"
    )


@dataclass(frozen=True)
class RowsOfBlock:
    """Some steps of one rank in one piece of memory.

    text: (steps * rows, T + 1) int32. is_target: (steps * rows, T) bool, None = all. sources: (steps, rows),
    -1 for a row that only fills. targets: (steps,), how many. has_masks: whether a source has tokens that are
    no targets. hashes: (steps, rows) uint64, 0 for rows that only fill. cursors: for each step, where the
    lanes of live sources stand after it (source, lane, cursor). left_out: for each step, what was
    left out of live sources (source, counts). notes: what the user should know. positions: (steps, rows) in
    the order, without meaning for rows that only fill. reference: of pairs, (steps * rows, 2) float32, the
    log-probabilities under the reference model. has_pairs: whether a row is a pair of sequences.
    """

    text: Tensor
    is_target: Tensor | None
    sources: np.ndarray
    targets: np.ndarray
    has_masks: bool
    hashes: np.ndarray | None
    cursors: list[list[tuple[int, int, list[int]]]]
    left_out: list[list[tuple[int, Counter[str]]]]
    notes: list[str]
    positions: np.ndarray
    reference: Tensor | None = None
    has_pairs: bool = False


@dataclass(frozen=True)
class _Plan:
    """What some steps of this rank are made of. positions, sources, epochs, rows: (steps, rows).

    begins: (steps + 1,), the position at which each step begins, and the next one behind them.
    """

    begins: np.ndarray
    positions: np.ndarray
    sources: np.ndarray
    epochs: np.ndarray
    rows: np.ndarray

    def part(self, steps: slice) -> _Plan:
        """Some of the steps."""
        begins = self.begins[steps.start : steps.stop + 1]
        every = self.positions, self.sources, self.epochs, self.rows
        return _Plan(begins, *(each[steps] for each in every))


class BlockMaker:
    """Gathers the rows of one rank, some steps at a time.

    position: where the first step begins. omitted: the positions that are left out. cursors: of the lanes of
    each live source; None for other sources. The rest as in `llmkit.data.loader.TrainLoader`. rows_made:
    grows as long as rows come.
    """

    def __init__(
        self,
        prepared: Prepared,
        config: schema.Data,
        order: Order,
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
        self._sources, self._length = prepared.train, config.row_length
        self._end_of_text = prepared.tokenizer.end_of_text_id
        self._order, self._position, self._omitted = order, position, omitted
        self._batch_rows, self._rank, self._world = batch_rows, rank, world_size
        self._rows = round_up(round_up(batch_rows, world_size) // world_size, micro_batch_size)
        self._hash_rows, self._workers, self._pin = hash_rows, workers, torch.cuda.is_available()
        self._may_run_dry = any(
            source.max_epochs is not None and not isinstance(source.rows, LiveSource)
            for source in prepared.train
        )
        self._has_masks = any(source.rows.has_mask for source in prepared.train)
        self._has_pairs = prepared.has_pairs
        self._has_reference = any(source.reference is not None for source in prepared.train)
        self.rows_made = 0
        live = {
            index: source.rows.keyed(order.numbers[index], order.seed)
            for index, source in enumerate(prepared.train)
            if isinstance(source.rows, LiveSource)
        }
        tables = {index: source.lane_table for index, source in live.items()}
        self._schedule = LaneSchedule(order, tables, rank, world_size, position)
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

    def blocks(self) -> Iterator[RowsOfBlock]:
        """Blocks of steps; the first ones are small, so that training starts at once. To be called once."""
        tokens = BLOCK_TOKENS if self._live is None else LIVE_BLOCK_TOKENS
        most = max(1, tokens // (self._rows * self._length))
        if self._may_run_dry:  # which must not be noticed before the step it concerns
            most = 1
        steps, number = 1, self._omitted.number(self._position)
        located = max(round_up(ORDER_ROWS, self._rows) // self._rows, 1)
        while True:
            starts = number + self._batch_rows * np.arange(located + 1)
            plan = self._locate(starts)
            done = 0
            while done < located:
                yield self._gather(plan.part(slice(done, min(done + steps, located))))
                done += steps
                steps = min(2 * steps, most)
            number = int(starts[-1])

    def _locate(self, starts: np.ndarray) -> _Plan:
        """The rows of this rank in steps that follow each other; starts: as `_Plan.begins`, but numbers of
        rows, without those that are left out."""
        first = starts[:-1] + (self._rank - starts[:-1]) % self._world
        numbers = first[:, None] + self._world * np.arange(self._rows)
        real = numbers < starts[1:, None]
        positions = self._omitted.positions(numbers)
        sources = np.full(numbers.shape, -1, dtype=np.int64)
        epochs, rows = np.zeros_like(sources), np.zeros_like(sources)
        sources[real], epochs[real], rows[real] = self._order.at(positions[real])
        return _Plan(self._omitted.positions(starts), positions, sources, epochs, rows)

    def _gather(self, plan: _Plan) -> RowsOfBlock:
        steps, rows = plan.sources.shape
        flat = plan.sources.ravel()
        filling = flat < 0
        # Gathered into pinned memory where there is a GPU: nothing is copied again on this side.
        text_memory = torch.empty((flat.size, self._length + 1), dtype=torch.int32, pin_memory=self._pin)
        text, is_target = text_memory.numpy(), None
        text[filling] = self._end_of_text
        target_memory = None
        if self._has_masks or filling.any():
            target_memory = torch.ones((flat.size, self._length), dtype=torch.bool, pin_memory=self._pin)
            is_target = target_memory.numpy()
            is_target[filling] = False
        reference = None
        if self._has_reference:
            reference = torch.zeros((flat.size, 2), dtype=torch.float32, pin_memory=self._pin)
        cursors: list[list[tuple[int, int, list[int]]]] = [[] for _ in range(steps)]
        left_out: list[list[tuple[int, Counter[str]]]] = [[] for _ in range(steps)]
        self._notes: list[str] = []
        for place in np.flatnonzero(np.bincount(flat[~filling])).tolist():
            if place not in self._schedule.served:
                self._read(place, flat == place, plan, text, is_target)
                self._read_reference(place, flat == place, plan, reference)
        if self._live is not None:
            self._take(self._live, plan, text, is_target, cursors, left_out)
        if self._has_pairs:
            targets = np.count_nonzero(plan.sources >= 0, axis=1)
        elif self._has_masks and is_target is not None:
            targets = np.count_nonzero(is_target.reshape(steps, -1), axis=1)
        else:
            targets = np.count_nonzero(plan.sources >= 0, axis=1) * self._length
        return RowsOfBlock(
            text=text_memory,
            is_target=target_memory,
            sources=plan.sources,
            targets=targets,
            has_masks=self._has_masks,
            hashes=_hashes(text, is_target, flat).reshape(steps, rows) if self._hash_rows else None,
            cursors=cursors,
            left_out=left_out,
            notes=self._notes,
            positions=plan.positions,
            reference=reference,
            has_pairs=self._has_pairs,
        )

    def _read(
        self, place: int, here: np.ndarray, plan: _Plan, text: np.ndarray, is_target: np.ndarray | None
    ) -> None:
        """Rows of a source whose rows are numbered, into their places."""
        source = self._sources[place]
        assert not isinstance(source.rows, LiveSource), place
        self._reading = f"source {source.name}"
        index = plan.rows.ravel()[here]
        if source.max_epochs is not None and plan.epochs.ravel()[here].max() >= source.max_epochs:
            raise run_dry(source, place)
        if here.all():
            source.rows.rows(index, self._length, out=text)
        else:
            text[here] = source.rows.rows(index, self._length)
        if is_target is not None:
            targets = source.rows.targets(index, self._length)
            if targets is not None:
                is_target[here] = targets

    def _read_reference(self, place: int, here: np.ndarray, plan: _Plan, reference: Tensor | None) -> None:
        """The reference's log-probabilities of the pairs of a source, into their places."""
        known = self._sources[place].reference
        if reference is not None and known is not None:
            reference.numpy()[here] = known[plan.rows.ravel()[here] % len(known)]

    def _take(
        self,
        live: LiveRows,
        plan: _Plan,
        text: np.ndarray,
        is_target: np.ndarray | None,
        cursors: list[list[tuple[int, int, list[int]]]],
        left_out: list[list[tuple[int, Counter[str]]]],
    ) -> None:
        """Rows of live sources, into their slots; the cursors of their lanes after each step."""
        self._reading = None
        begin, self._live_position = self._live_position, int(plan.begins[-1])
        due = self._schedule.between(begin, self._live_position)
        steps = np.searchsorted(plan.begins[1:-1], due.positions, side="right")
        flat = plan.sources.ravel()
        own = np.flatnonzero(flat >= 0)
        _, here, there = np.intersect1d(
            plan.positions.ravel()[own], due.positions, assume_unique=True, return_indices=True
        )
        slots = np.full(due.positions.shape, -1)  # -1: in a batch of another rank
        slots[there] = own[here]
        last: list[dict[tuple[int, int], list[int]]] = [{} for _ in cursors]
        rows = zip(*(each.tolist() for each in (due.sources, due.lanes, steps, slots)), strict=True)
        for source, lane, step, slot in rows:
            row = live.take(source, lane)
            self.rows_made += 1
            last[step][source, lane] = row.cursor
            self._notes += row.notes
            if row.left_out:
                left_out[step].append((source, Counter(row.left_out)))
            if slot >= 0:
                text[slot] = row.tokens
                if is_target is not None and row.targets is not None:
                    is_target[slot] = row.targets
        for step, known in enumerate(last):
            cursors[step] += [(source, lane, cursor) for (source, lane), cursor in known.items()]


def _hashes(text: np.ndarray, is_target: np.ndarray | None, sources: np.ndarray) -> np.ndarray:
    """xxh64 of each row's tokens, and of its targets where not all are, uint64; 0 for rows that only fill."""
    hashes = np.zeros(len(text), dtype=np.uint64)
    for row in np.flatnonzero(sources >= 0):
        hashes[row] = xxh64_intdigest(text[row].data)
        if is_target is not None and not is_target[row].all():
            hashes[row] = xxh64_intdigest(is_target[row].data, seed=int(hashes[row]))
    return hashes
