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
from llmkit.data.live.dealing import served_lanes
from llmkit.data.live.demand import Cursors, demands
from llmkit.data.live.serve import LaneServer
from llmkit.data.live.source import LiveSource
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
    """What some steps of this rank are made of. numbers, positions, sources, epochs, rows: (steps, rows).

    numbers: of the rows without those that are left out (`llmkit.data.omitted`), the first of them `start`.
    live: for each live source, its rows in these steps that may be taken from a lane that this rank meets,
    whichever rank they belong to, ascending: their numbers, the lane of each, and whether it is left out;
    such a row has the number of the one before it.
    """

    start: int
    numbers: np.ndarray
    positions: np.ndarray
    sources: np.ndarray
    epochs: np.ndarray
    rows: np.ndarray
    live: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]


class BlockMaker:
    """Gathers the rows of one rank, some steps at a time.

    omitted: the positions that are left out. cursors: where the lanes of each live source stand; None for
    other sources. The rest as in
    `llmkit.data.loader.TrainLoader`. rows_made: grows as long as rows come.
    """

    def __init__(
        self,
        prepared: Prepared,
        config: schema.Data,
        order: Order,
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
        self._reading: str | None = "the order of the rows"  # None = whatever the server of lanes does
        self._sources, self._length = prepared.train, config.row_length
        self._end_of_text = prepared.tokenizer.end_of_text_id
        self._order, self._omitted = order, omitted
        self._batch_rows, self._rank, self._world = batch_rows, rank, world_size
        self._rows = round_up(round_up(batch_rows, world_size) // world_size, micro_batch_size)
        self._hash_rows, self._workers, self._pin = hash_rows, workers, torch.cuda.is_available()
        self._may_run_dry = any(
            source.max_epochs is not None and not isinstance(source.rows, LiveSource)
            for source in prepared.train
        )
        self._has_masks = any(source.rows.has_targets for source in prepared.train)
        self._has_pairs = prepared.has_pairs
        self._has_reference = any(source.reference is not None for source in prepared.train)
        live = [(place, each.rows) for place, each in enumerate(prepared.train)]
        self._tables = {place: rows.lane_table for place, rows in live if isinstance(rows, LiveSource)}
        self._served = {place: served_lanes(table, rank, world_size) for place, table in self._tables.items()}
        self._server = self._serve(config, cursors) if self._tables else None
        self.rows_made = 0

    def _serve(self, config: schema.Data, cursors: Sequence[Cursors | None]) -> LaneServer:
        served = {}
        for place, lanes in self._served.items():
            known = cursors[place] or {}
            for lane in lanes:
                served[place, lane] = known.get(str(lane))
        sources = {
            place: source.rows.numbered(self._order.numbers[place], self._order.seed)
            for place, source in enumerate(self._sources)
            if isinstance(source.rows, LiveSource)
        }
        return LaneServer(sources, served, self._workers, config.stall_seconds)

    @property
    def activity(self) -> str:
        """What is being read."""
        return self._reading or (self._server.activity if self._server is not None else "the data")

    def close(self) -> None:
        """End the processes that tokenize, if there are any."""
        if self._server is not None:
            self._server.close()

    def blocks(self, position: int) -> Iterator[RowsOfBlock]:
        """Blocks of steps from `position` on; the first ones are small, so that training starts at once."""
        tokens = LIVE_BLOCK_TOKENS if self._tables else BLOCK_TOKENS
        most = max(1, tokens // (self._rows * self._length))
        if self._may_run_dry:  # which must not be noticed before the step it concerns
            most = 1
        steps = 1
        while True:
            located = max(round_up(ORDER_ROWS, self._rows) // self._rows, 1)
            starts = self._omitted.number(position) + self._batch_rows * np.arange(located)
            plan = self._locate(starts, position)
            done = 0
            while done < located:
                part = slice(done, done + steps)
                yield self._gather(_part_of(plan, part, starts, self._batch_rows))
                done += steps
                steps = min(2 * steps, most)
            position = self._omitted.after(position, self._batch_rows * located)

    def _locate(self, starts: np.ndarray, position: int) -> _Plan:
        """The rows of this rank in steps that follow each other; starts: the numbers of their first rows.

        position: where the first step begins; rows that are left out may come first.
        """
        first = starts + (self._rank - starts) % self._world
        numbers = first[:, None] + self._world * np.arange(self._rows)
        real = numbers < starts[:, None] + self._batch_rows
        positions = self._omitted.positions(numbers)
        sources = np.full(numbers.shape, -1, dtype=np.int64)
        epochs, rows = np.zeros_like(sources), np.zeros_like(sources)
        sources[real], epochs[real], rows[real] = self._order.at(positions[real])
        live: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        for place, table in self._tables.items():  # what other ranks take from a lane moves it, too
            met = np.arange(position, self._omitted.position(int(starts[-1]) + self._batch_rows))
            rounds, columns = table.shape
            is_met = np.asarray(np.isin(table, self._served[place]).any(axis=0))
            met = met[is_met[met % columns]]
            met = met[self._order.sources(met) == place]
            turn = self._order.in_column(place, met) % rounds
            lanes, is_omitted = table[turn, met % columns], self._omitted.contains(met)
            live[place] = self._numbers(met, is_omitted, int(starts[0])), lanes, is_omitted
        return _Plan(int(starts[0]), numbers, positions, sources, epochs, rows, live)

    def _numbers(self, positions: np.ndarray, is_omitted: np.ndarray, least: int) -> np.ndarray:
        """See `_Plan.live`; least: the smallest."""
        found = positions.copy()
        for start, stop in self._omitted.windows:
            found -= np.clip(positions - start, 0, stop - start)
        return np.maximum(found - is_omitted, least)

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
            if place not in self._tables:
                self._read(place, flat == place, plan, text, is_target)
                self._read_reference(place, flat == place, plan, reference)
        for place in self._tables:
            self._take(place, plan, text, is_target, cursors, left_out)
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
        place: int,
        plan: _Plan,
        text: np.ndarray,
        is_target: np.ndarray | None,
        cursors: list[list[tuple[int, int, list[int]]]],
        left_out: list[list[tuple[int, Counter[str]]]],
    ) -> None:
        """Rows of a live source, into their places; where its lanes stand after each step."""
        assert self._server is not None
        self._reading = None
        slots = np.flatnonzero(plan.sources.ravel() == place)
        slot_of = dict(zip(plan.numbers.ravel()[slots].tolist(), slots.tolist(), strict=True))
        for demand in demands(*plan.live[place], self._served[place], self._rank, self._world):
            last: dict[int, list[int]] = {}
            for number, wanted in zip(demand.numbers.tolist(), demand.wanted.tolist(), strict=True):
                (row,) = self._server.take(place, demand.lane, [wanted])
                self.rows_made += 1
                step = (number - plan.start) // self._batch_rows
                last[step] = row.cursor
                self._notes += row.notes
                if row.left_out:
                    left_out[step].append((place, Counter(row.left_out)))
                if wanted:
                    slot = slot_of[number]
                    text[slot] = row.tokens
                    if is_target is not None and row.targets is not None:
                        is_target[slot] = row.targets
            for step, cursor in last.items():
                cursors[step].append((place, demand.lane, cursor))


def _part_of(plan: _Plan, part: slice, starts: np.ndarray, batch_rows: int) -> _Plan:
    """Some of the steps of a plan."""
    begins = starts[part]
    low, high = int(begins[0]), int(begins[-1]) + batch_rows
    live = {}
    for place, (numbers, lanes, is_omitted) in plan.live.items():
        here = slice(*np.searchsorted(numbers, [low, high]))
        live[place] = numbers[here], lanes[here], is_omitted[here]
    return _Plan(
        low, plan.numbers[part], plan.positions[part], plan.sources[part], plan.epochs[part],
        plan.rows[part], live,
    )  # fmt: skip


def _hashes(text: np.ndarray, is_target: np.ndarray | None, sources: np.ndarray) -> np.ndarray:
    """xxh64 of each row's tokens, and of its targets where not all are, uint64; 0 for rows that only fill."""
    hashes = np.zeros(len(text), dtype=np.uint64)
    for row in np.flatnonzero(sources >= 0):
        hashes[row] = xxh64_intdigest(text[row].data)
        if is_target is not None and not is_target[row].all():
            hashes[row] = xxh64_intdigest(is_target[row].data, seed=int(hashes[row]))
    return hashes
