"""Training batches: the same global batch at every step for every number of ranks.

Position g of the global order belongs to the rank g % world_size. A step takes the next `batch_rows`
positions; where they do not divide evenly, ranks with fewer rows fill up with rows that hold no target.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from types import TracebackType
from typing import Any

from llmkit.config import schema
from llmkit.data.batches import BatchReader, round_up, run_dry
from llmkit.data.curriculum import Curriculum, Shortage, check_epochs, shortages
from llmkit.data.lane_cursors import LaneCursors
from llmkit.data.omitted import Omitted, Window
from llmkit.data.prefetch import Prefetch
from llmkit.data.prepared import PreparedData
from llmkit.data.rank_batch import RankBatch
from llmkit.data.sampler import MixtureSampler
from llmkit.data.source import Source
from llmkit.data.state import (
    Change,
    DataState,
    data_differences,
    mismatch_message,
    mixture_difference,
    read_data_state,
    rebase,
    restarted_sources,
    upgraded,
)
from llmkit.errors import SourceDryError, UserError

BLOCKS_AHEAD = 2
ENDLESS = 1 << 36
"""Steps that no run has."""

AllGather = Callable[[str], list[str]]
"""All-gather of strings, ordered by rank."""


class TrainLoader:
    """An endless iterator of steps; epochs of each source follow each other.

    batch_rows: rows of a global batch. micro_batch_size: rows of a micro-batch, per rank. rank,
    world_size: among the data-parallel ranks. hash_rows: make `RankBatch.hashes`. workers: processes that
    tokenize live sources; 0 = the thread that reads ahead does it.

    `position` is at all times where the order stands after the steps handed out so far, `left_out` how many
    documents of each live source this rank has left out or mended since it started, by reason, `notes` what
    the user should know. `give_up` may be set: see `Prefetch`.
    """

    def __init__(
        self,
        prepared: PreparedData,
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
        self._lanes = LaneCursors(prepared.sources, rank, world_size)
        self._names = [source.name for source in prepared.sources]
        self._curriculum = Curriculum.of(config, self._names)
        self._ahead: Prefetch[list[RankBatch]] | None = None
        self._reader: BatchReader | None = None
        self._batches: deque[RankBatch] = deque()  # read, and not handed out yet
        self.begin_anew(steps_done=0)

    def begin_anew(self, steps_done: int) -> None:
        """Reads all data from their beginning, with the weights of the step after `steps_done`; before the
        first step of this loader."""
        assert self._ahead is None, "begin_anew comes before the first step"
        weights = self._curriculum.at(steps_done + 1)
        self._begin(DataState.at_start(self._seed, weights, self._prepared.fingerprint), steps_done)

    def _begin(self, state: DataState, steps_done: int) -> None:
        """Start from `state`, already translated to the sources of now."""
        self.__dict__.pop("first_shortage", None)  # depends on what is left out
        sizes = [self._size(source, state.version) for source in self._prepared.sources]
        self._sampler, self._omitted = self._sampler_of(state, sizes), Omitted(state.omitted)
        self._began, self._steps_done = state, steps_done
        self.position = self._before = state.rows
        self._lanes.begin(state.cursors)
        fixed = max(0, self._omitted.number(self._omitted.end) - self._omitted.number(state.rows))
        fixed_steps = -(-fixed // self._batch_rows)
        self._curriculum.apply_to(self._sampler, steps_done + fixed_steps, self.begin_of)

    def begin_of(self, step: int) -> int:
        """Where a step begins; steps are counted from 1, and this one is not behind."""
        return self._omitted.after(self.position, (step - 1 - self._steps_done) * self._batch_rows)

    def _size(self, source: Source, version: int) -> int | None:
        """Tokens of an epoch of a source; None for a live one."""
        rows, length = source.stored, self._config.row_length
        if rows is None:
            return None
        if version == 2:  # which left out what did not fill a row
            return (rows.tokens - 1) // length * length
        # Where documents were laid to fit into rows, the rows of all epochs have to be the same ones.
        return rows.period if self._config.packing == "concatenate" else round_up(rows.period, length)

    def _sampler_of(self, state: DataState, sizes: Sequence[int | None]) -> MixtureSampler:
        (start, weights), *later = state.segments
        sampler = MixtureSampler(
            self._seed, sizes, weights, state.shuffle_ids, start, state.consumed_before,
            length=state.fingerprint.sequence_length, columns=state.fingerprint.lanes or 1,
            version=state.version,
        )  # fmt: skip
        for start, weights in later:
            sampler.reweight(start, weights)
        return sampler

    def __iter__(self) -> Iterator[RankBatch]:
        return self

    def __next__(self) -> RankBatch:
        if not self._batches:
            self._batches.extend(next(self.start()))
        batch = self._batches.popleft()
        self._before, self.position = self.position, self._omitted.after(self.position, self._batch_rows)
        self._steps_done += 1
        self.notes += self._lanes.move(batch.progress.cursors)
        for source, counts in batch.progress.left_out.items():
            self.left_out.setdefault(self._names[source], Counter()).update(counts)
        self.notes += batch.progress.notes
        return batch

    def seen(self) -> dict[str, tuple[int, int]]:
        """Of each stored source by name: its tokens in the steps handed out so far, and those of an epoch."""
        rows = self._sampler.consumed(self.position) * self._config.row_length
        counts = zip(self._names, rows.tolist(), self._sampler.sizes, strict=True)
        return {name: (tokens, size) for name, tokens, size in counts if size is not None}

    def ready(self, steps: int) -> bool:
        """Whether so many steps can be had without waiting, and surely.

        Never of live sources with `max_epochs`: it takes all ranks to know when they have run dry.
        """
        blocks = 0 if self._ahead is None else self._ahead.ready  # of one step or more
        return not self.lanes_left and len(self._batches) + blocks >= steps

    def undo_last(self) -> None:
        """Undo the newest step, which was not trained on: the state is as before it. No step may follow."""
        self._lanes.undo_last()
        self.position = self._before
        self._steps_done -= 1

    def start(self) -> Prefetch[list[RankBatch]]:
        """Begin to read ahead, unless that was done: processes that tokenize take a moment to start."""
        if self._ahead is not None:
            return self._ahead
        reader = self._reader = BatchReader(
            self._prepared, self._config, self._sampler, self.position, self._omitted, self._lanes.cursors,
            batch_rows=self._batch_rows, micro_batch_size=self._micro,
            rank=self._rank, world_size=self._world, hash_rows=self._hash_rows, workers=self._workers,
        )  # fmt: skip
        self._ahead = Prefetch(
            reader.blocks(),
            BLOCKS_AHEAD,
            stall_seconds=self._config.stall_seconds,
            describe=lambda: reader.activity,
            heartbeat=lambda: reader.rows_made,
            give_up=lambda: self.give_up(),
        )
        return self._ahead

    @property
    def sampler(self) -> MixtureSampler:
        """The order of the rows, those that are left out included."""
        return self._sampler

    @property
    def source_names(self) -> list[str]:
        """Of the sources, in the order of `Rows.sources`."""
        return self._names

    @property
    def lanes_left(self) -> dict[int, int]:
        """Of each live source with `max_epochs`, by index: the lanes of this rank that are not at their end.

        Where none is on any rank, the source has run dry: see `run_dry`.
        """
        return self._lanes.left

    def run_dry(self, index: int) -> SourceDryError:
        """What to raise where a source has run dry."""
        return run_dry(self._prepared.sources[index])

    def check_epochs(self, max_steps: int) -> None:
        """Raises UserError if a stored source with `max_epochs` runs dry before the step `max_steps`."""
        steps = range(self._steps_done + 1, max_steps + 1)
        check_epochs(self._sampler, self._prepared.sources, steps, self.begin_of)

    def rows_to_come(self, steps: int) -> list[int]:
        """Rows of each source that the next `steps` steps take."""
        begin, end = self.position, self.begin_of(self._steps_done + 1 + steps)
        return [int(rows) for rows in self._sampler.consumed(end) - self._sampler.consumed(begin)]

    @cached_property
    def first_shortage(self) -> Shortage | None:
        """The stored source with `max_epochs` that is the first to run dry; None if none ever does."""
        steps = range(self._steps_done + 1, self._steps_done + ENDLESS)
        short = shortages(self._sampler, self._prepared.sources, steps, self.begin_of)
        return min(short, key=lambda each: each.last_step, default=None)

    def state_dict(self, gather: AllGather = lambda text: [text]) -> dict[str, Any]:
        """Where the order stands, as JSON; equal on all ranks, which must all call it with live sources."""
        return self._state(self._omitted, self._lanes.merged(gather)).model_dump(mode="json")

    def _state(self, omitted: Omitted, cursors: Sequence[Any]) -> DataState:
        """Where the order stands, with other rows left out behind it."""
        fixed = [
            (segment.start, list(segment.weights))
            for segment in self._sampler.segments
            if segment.start <= self.position or segment.start < omitted.end
        ]
        now = {"rows": self.position, "segments": fixed, "cursors": cursors, "omitted": omitted.windows}
        return self._began.model_copy(update=now | {"fingerprint": self._prepared.fingerprint})

    def load_state_dict(
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
        assert self._ahead is None, "load_state_dict comes before the first step"
        read = read_data_state(state)
        if read.seed != self._seed:
            raise UserError(mismatch_message([f"run.seed was {read.seed}, is {self._seed}"]))
        now = self._prepared.fingerprint
        read = upgraded(read, now)
        differences = data_differences(read, now)
        weights = list(self._curriculum.at(steps_done + 1))
        other_data = bool(differences)
        differences += mixture_difference(read, self._names, weights)
        if differences and not allow_change:
            raise UserError(mismatch_message(differences))
        differences += other_settings
        if differences:
            change = Change(rows=read.rows, differences=differences, fingerprint=read.fingerprint)
            read = read.model_copy(update={"changes": [*read.changes, change]}).without_plans()
        if other_data:
            then, read = read, rebase(read, now, self._consumed(read), weights)
            differences += restarted_sources(then, read)
        self._begin(read, steps_done)
        return differences

    def has_data_of(self, state: dict[str, Any]) -> bool:
        """Whether no data have changed since `state`, an earlier one of this run."""
        return read_data_state(state).changes == self._began.changes

    def rewind(self, state: dict[str, Any], steps_done: int) -> None:
        """Go back to `state`, an earlier one of this run with the same data, after `steps_done` steps."""
        self.close()
        self._ahead = self._reader = None
        self._batches.clear()
        now = self._prepared.fingerprint
        self._begin(upgraded(read_data_state(state), now), steps_done)

    def omit(self, window: Window) -> Window:
        """Leave out these positions, none of which was passed yet; returns the window with what had to be
        left out behind it: of live sources whole turns of all their columns.

        The rows in it are what they would have been: the weights that hold there stay.
        """
        assert self._ahead is None and window[0] >= self.position, window
        unit = self._sampler.columns if self._prepared.fingerprint.has_live else 1
        omitted, found = self._omitted.with_window(window, unit)
        self._begin(self._state(omitted, self._lanes.cursors), self._steps_done)
        return found

    def _consumed(self, state: DataState) -> list[int]:
        """Rows of each source of then that lie before `state`."""
        sampler = self._sampler_of(state, [None] * len(state.consumed_before))
        return [int(count) for count in sampler.consumed(state.rows)]

    def close(self) -> None:
        """Stop reading ahead."""
        if self._reader is not None:
            self._reader.close()  # first: the thread that reads ahead may wait for it
        if self._ahead is not None:
            self._ahead.close()

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
