"""Training batches: the same global batch at every step for every number of ranks.

Position g of the global order belongs to the rank g % world_size. A step takes the next `batch_rows`
positions; where they do not divide evenly, ranks with fewer rows fill up with rows that hold no target.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from types import TracebackType
from typing import Any

from pydantic import JsonValue

from llmkit.config import schema
from llmkit.data.blocks import BlockMaker, RowsOfBlock, round_up, run_dry
from llmkit.data.curriculum import Curriculum, Shortage, check_supply, shortages, supplies
from llmkit.data.live.lanes import Cursors, merge_cursors
from llmkit.data.live.source import LiveSource
from llmkit.data.micro_batches import Step, micro_batches_of
from llmkit.data.omitted import Omitted, Window
from llmkit.data.order import VERSION, Order
from llmkit.data.position import (
    Change,
    Fingerprint,
    Position,
    begun_anew,
    carried_over,
    data_differences,
    mixture_difference,
    read_position,
    refusal,
    upgraded,
)
from llmkit.data.prefetch import Prefetch
from llmkit.data.prepared import Prepared
from llmkit.data.rank_lanes import RankLanes
from llmkit.errors import SourceDryError, UserError

BLOCKS_AHEAD = 2
ENDLESS = 1 << 36
"""Steps that no run has."""

Gather = Callable[[str], list[str]]
"""What every rank gives, in the order of the ranks."""


class TrainLoader:
    """An endless iterator of steps; epochs of each source follow each other.

    batch_rows: rows of a global batch. micro_batch_size: rows of a micro-batch, per rank. rank,
    world_size: among the data-parallel ranks. hash_rows: make `Step.hashes`. workers: processes that
    tokenize live sources; 0 = the thread that reads ahead does it.

    `position` is at all times where the order stands after the steps handed out so far, `left_out` how many
    documents of each live source this rank has left out or mended since it started, by reason, `notes` what
    the user should know. `give_up` may be set: see `Prefetch`.
    """

    def __init__(
        self,
        prepared: Prepared,
        config: schema.Data,
        seed: int,
        batch_rows: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        hash_rows: bool = False,
        workers: int = 0,
    ) -> None:
        assert min(batch_rows, micro_batch_size) > 0, (batch_rows, micro_batch_size)
        assert 0 <= rank < world_size, (rank, world_size)
        assert config.row_length == prepared.sequence_length, "prepared with other settings"
        self.left_out: dict[str, Counter[str]] = {}
        self.notes: list[str] = []
        self.give_up: Callable[[], int] = lambda: 0
        self._prepared, self._config, self._seed = prepared, config, seed
        self._batch_rows, self._micro = batch_rows, micro_batch_size
        self._rank, self._world, self._hash_rows, self._workers = rank, world_size, hash_rows, workers
        self._boundary = prepared.tokenizer.end_of_text_id if config.document_masks else None
        self._lanes = RankLanes(prepared.train, rank, world_size)
        self._names = [source.name for source in prepared.train]
        self._curriculum = Curriculum.of(config, self._names)
        self._ahead: Prefetch[RowsOfBlock] | None = None
        self._maker: BlockMaker | None = None
        self._steps: Iterator[Step] = iter(())
        self._left = 0  # of them
        self._moved: list[tuple[Cursors, str, JsonValue]] = []  # by the newest step, and from where
        self.begin_anew(steps_done=0)

    def begin_anew(self, steps_done: int) -> None:
        """Reads all data from their beginning, with the weights of the step after `steps_done`; before the
        first step of this loader."""
        assert self._ahead is None, "begin_anew comes before the first step"
        sources = self._prepared.train
        live = [isinstance(source.rows, LiveSource) for source in sources]
        fingerprint = Fingerprint.model_validate(self._prepared.fingerprint)
        weights = self._curriculum.at(steps_done + 1)
        self._begin(Position.at_start(VERSION, self._seed, weights, live, fingerprint), steps_done)

    def _begin(self, position: Position, steps_done: int) -> None:
        """Go on from `position`, which is one in the data of now."""
        self.__dict__.pop("first_shortage", None)  # depends on what is left out
        sizes = [self._size(place, position.version) for place in range(len(self._names))]
        self._order, self._omitted = self._order_of(position, sizes), Omitted(position.omitted)
        self.position, self._steps_done, self._changes = position.rows, steps_done, position.changes
        self._before = position.rows
        self._next_number = position.next_number
        self._cursors = [None if each is None else dict(each) for each in position.cursors]
        fixed = max(0, self._omitted.number(self._omitted.end) - self._omitted.number(position.rows))
        fixed_steps = -(-fixed // self._batch_rows)
        self._curriculum.continue_order(self._order, steps_done + fixed_steps, self.begin_of)

    def begin_of(self, step: int) -> int:
        """Where a step begins; steps are counted from 1, and this one is not behind."""
        return self._omitted.after(self.position, (step - 1 - self._steps_done) * self._batch_rows)

    def _size(self, place: int, version: int) -> int | None:
        """Tokens of an epoch of a source; None for a live one."""
        rows, length = self._prepared.train[place].rows, self._config.row_length
        if isinstance(rows, LiveSource):
            return None
        if version == 2:  # which left out what did not fill a row
            return (rows.tokens - 1) // length * length
        # Where documents were laid to fit into rows, the rows of all epochs have to be the same ones.
        return rows.period if self._config.packing == "concatenate" else round_up(rows.period, length)

    def _order_of(self, position: Position, sizes: Sequence[int | None]) -> Order:
        (start, weights), *later = position.segments
        order = Order(
            self._seed, sizes, weights, position.numbers, start, position.carry,
            length=position.fingerprint.sequence_length, columns=position.fingerprint.lanes or 1,
            version=position.version,
        )  # fmt: skip
        for start, weights in later:
            order.reweight(start, weights)
        return order

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        step = next(self._steps, None)
        if step is None:
            self._steps = self._cut(next(self.start()))
            step = next(self._steps)
        self._before, self.position = self.position, self._omitted.after(self.position, self._batch_rows)
        self._steps_done += 1
        self._left -= 1
        return step

    def seen(self) -> dict[str, tuple[int, int]]:
        """Of each stored source by name: its tokens in the steps handed out so far, and those of an epoch."""
        rows = self._order.consumed(self.position) * self._config.row_length
        counts = zip(self._names, rows.tolist(), self._order.sizes, strict=True)
        return {name: (tokens, size) for name, tokens, size in counts if size is not None}

    def ready(self, steps: int) -> bool:
        """Whether so many steps can be had without waiting, and surely.

        Never of live sources with `max_epochs`: it takes all ranks to know when they have run dry.
        """
        blocks = 0 if self._ahead is None else self._ahead.ready  # of one step or more
        return not self.lanes_left and self._left + blocks >= steps

    def put_back(self) -> None:
        """Undo the newest step, which was not trained on: `state` is as before it. No step may follow."""
        for cursors, lane, before in self._moved:
            if before is None:
                del cursors[lane]
            else:
                cursors[lane] = before
        self.position = self._before
        self._steps_done -= 1

    def start(self) -> Prefetch[RowsOfBlock]:
        """Begin to read ahead, unless that was done: processes that tokenize take a moment to start."""
        if self._ahead is not None:
            return self._ahead
        maker = self._maker = BlockMaker(
            self._prepared, self._config, self._order, self.position, self._omitted, self._cursors,
            batch_rows=self._batch_rows, micro_batch_size=self._micro,
            rank=self._rank, world_size=self._world, hash_rows=self._hash_rows, workers=self._workers,
        )  # fmt: skip
        self._ahead = Prefetch(
            maker.blocks(),
            BLOCKS_AHEAD,
            stall_seconds=self._config.stall_seconds,
            activity=lambda: maker.activity,
            progress=lambda: maker.rows_made,
            give_up=lambda: self.give_up(),
        )
        return self._ahead

    @property
    def source_names(self) -> list[str]:
        """Of the sources, in the order of `Rows.sources`."""
        return self._names

    @property
    def lanes_left(self) -> dict[int, int]:
        """Of each live source with `max_epochs`, by index: the lanes of this rank that are not at their end.

        Where none is on any rank, the source has run dry: see `run_dry`.
        """
        return self._lanes.left(self._cursors)

    def run_dry(self, index: int) -> SourceDryError:
        """What to raise where a source has run dry."""
        return run_dry(self._prepared.train[index], index)

    def check_supply(self, max_steps: int) -> None:
        """Raises UserError if a source with `max_epochs` runs dry before the step `max_steps`.

        Of live sources nobody knows the size: those run dry in mid-run.
        """
        steps = range(self._steps_done + 1, max_steps + 1)
        check_supply(self._order, supplies(self._prepared.train, self._order), steps, self.begin_of)

    def rows_to_come(self, steps: int) -> list[int]:
        """Rows of each source that the next `steps` steps take."""
        begin, end = self.position, self.begin_of(self._steps_done + 1 + steps)
        return [int(rows) for rows in self._order.consumed(end) - self._order.consumed(begin)]

    @cached_property
    def first_shortage(self) -> Shortage | None:
        """The stored source with `max_epochs` that is the first to run dry; None if none ever does."""
        steps = range(self._steps_done + 1, self._steps_done + ENDLESS)
        short = shortages(self._order, supplies(self._prepared.train, self._order), steps, self.begin_of)
        return min(short, key=lambda each: each.last_step, default=None)

    def state(self, gather: Gather = lambda text: [text]) -> dict[str, Any]:
        """Where the order stands, as JSON; equal on all ranks, which must all call it with live sources."""
        cursors = self._cursors
        if any(each is not None for each in cursors):
            cursors = merge_cursors(self._lanes.own(self._cursors), self._names, gather)
        position = Position(
            version=self._order.version,
            rows=self.position,
            seed=self._seed,
            start=self._order.start,
            carry=list(self._order.carry),
            numbers=list(self._order.numbers),
            next_number=self._next_number,
            segments=[
                (segment.start, list(segment.weights))
                for segment in self._order.segments
                if segment.start <= self.position or segment.start < self._omitted.end
            ],
            cursors=cursors,
            fingerprint=Fingerprint.model_validate(self._prepared.fingerprint),
            changes=self._changes,
            omitted=self._omitted.windows,
        )
        return position.model_dump(mode="json")

    def load_state(
        self,
        state: dict[str, Any],
        steps_done: int,
        allow_change: bool = False,
        other_settings: Sequence[str] = (),
    ) -> list[str]:
        """Go on after `state`, that of a run after `steps_done` steps; no row is lost or repeated.

        allow_change: data or weights that differ from those of `state` hold from here on; sources that did
        not change go on where they stood. other_settings: settings of the data that are not those of then,
        to be recorded too. Returns what differed.
        Raises UserError that names each difference otherwise, and always for another seed.
        """
        assert self._ahead is None, "load_state comes before the first step"
        position = read_position(state)
        if position.seed != self._seed:
            raise UserError(refusal([f"run.seed was {position.seed}, is {self._seed}"]))
        now = Fingerprint.model_validate(self._prepared.fingerprint)
        position = upgraded(position, now)
        differences = data_differences(position, now)
        weights = list(self._curriculum.at(steps_done + 1))
        other_data = bool(differences)
        differences += mixture_difference(position, self._names, weights)
        if differences and not allow_change:
            raise UserError(refusal(differences))
        differences += other_settings
        if differences:
            change = Change(rows=position.rows, differences=differences, fingerprint=position.fingerprint)
            position = position.model_copy(update={"changes": [*position.changes, change]})
        if differences:
            position = position.without_plans()
        if other_data:
            then, position = position, carried_over(position, now, self._consumed(position), weights)
            differences += begun_anew(then, position)
        self._begin(position, steps_done)
        return differences

    def has_data_of(self, state: dict[str, Any]) -> bool:
        """Whether no data have changed since `state`, an earlier one of this run."""
        return read_position(state).changes == self._changes

    def rewind(self, state: dict[str, Any], steps_done: int) -> None:
        """Go back to `state`, an earlier one of this run with the same data, after `steps_done` steps."""
        self.close()
        self._ahead = self._maker = None
        self._steps, self._left = iter(()), 0
        self._moved.clear()
        now = Fingerprint.model_validate(self._prepared.fingerprint)
        self._begin(upgraded(read_position(state), now), steps_done)

    def omit(self, window: Window) -> Window:
        """Leave out these positions, none of which was passed yet; returns the window with what had to be
        left out behind it: of live sources whole turns of all their columns.

        The rows in it are what they would have been: the weights that hold there stay.
        """
        assert self._ahead is None and window[0] >= self.position, window
        unit = self._order.columns if any(each is not None for each in self._cursors) else 1
        omitted, found = self._omitted.with_window(window, unit)
        position = Position.model_validate(self.state())
        fixed = [
            (segment.start, list(segment.weights))
            for segment in self._order.segments
            if segment.start <= self.position or segment.start < omitted.end
        ]
        changed = {"segments": fixed, "omitted": omitted.windows, "cursors": self._cursors}
        self._begin(position.model_copy(update=changed), self._steps_done)
        return found

    def _consumed(self, position: Position) -> list[int]:
        """Rows of each source of then that lie before `position`."""
        order = self._order_of(position, [None] * len(position.carry))
        return [int(count) for count in order.consumed(position.rows)]

    def close(self) -> None:
        """Stop reading ahead."""
        if self._maker is not None:
            self._maker.close()  # first: the thread that reads ahead may wait for it
        if self._ahead is not None:
            self._ahead.close()

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cut(self, block: RowsOfBlock) -> Iterator[Step]:
        """The steps of a block; what the block knows of live sources is taken over step by step.

        What can be done for all steps at once is: a step on the host must cost next to nothing.
        """
        steps, rows = block.sources.shape
        self._left, count = steps, rows // self._micro
        micro_batches = micro_batches_of(block, self._micro, len(self._names), self._boundary)
        own, sources = block.targets.tolist(), block.sources.reshape(steps, count, self._micro)
        everything: int | None = self._batch_rows * self._config.sequence_length
        if self._prepared.has_pairs:
            everything = self._batch_rows
        elif block.has_masks:
            everything = None
        self.notes += block.notes
        for step in range(steps):
            self._moved.clear()
            for source, lane, cursor in block.cursors[step]:
                cursors = self._cursors[source]
                assert cursors is not None, source
                self._moved.append((cursors, str(lane), cursors.get(str(lane))))
                cursors[str(lane)] = list(cursor)
                self.notes += self._lanes.end_of(source, lane, cursor)
            for source, counts in block.left_out[step]:
                self.left_out.setdefault(self._names[source], Counter()).update(counts)
            yield Step(
                micro_batches[step * count : (step + 1) * count], own[step], everything,
                self._batch_rows, self._omitted.after(self.position, 0), sources[step],
                None if block.hashes is None else block.hashes[step], block.positions[step],
            )  # fmt: skip
