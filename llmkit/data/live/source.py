"""A source that is tokenized while the model trains on it."""

from __future__ import annotations

import dataclasses
import json
import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import urlsplit

import numpy as np
from pydantic import JsonValue
from xxhash import xxh64_hexdigest

from llmkit.config import schema
from llmkit.data.live.heldout import heldout_candidates, heldout_units
from llmkit.data.live.lanes import deal, lane_table, largest_share, loads_of
from llmkit.data.shuffle import Word, key
from llmkit.data.sources.formats import format_of
from llmkit.data.sources.listing import File
from llmkit.data.sources.reader import SourceReader
from llmkit.data.sources.units import Unit, cut_into_units
from llmkit.data.sources.urls import shown
from llmkit.data.tokens.encode import RecordEncoder

VERSION = 2
"""Changes with anything that makes the same files give other rows."""
UNITS_PER_LANE = 4
"""Units, about, that a lane has at least where the files are large enough: they are read in random order."""
UNIT_BYTES = (256 << 10, 64 << 20)
"""Bounds of a unit's size: what is opened on the way to a row, and what is read in file order."""
UNIT_STREAM, WINDOW_STREAM, WHOLE = 21, 22, 1
"""Words that keep these keys apart from each other and from those of the rows' order and of building."""


def open_reader(
    spec: schema.Source,
    name: str,
    place: str,
    config: schema.Data,
    files: Sequence[File],
    units: Sequence[Unit] | None = None,
) -> SourceReader:
    """Reads a live source, whose files are cut here if `units` are not known; place: key of its settings."""
    if units is None:
        low, high = UNIT_BYTES
        wanted = -(-sum(file.size for file in files) // (UNITS_PER_LANE * config.stream_shards))
        units = cut_into_units(spec, files, min(max(wanted, low), high), place)
    return SourceReader(spec, name, place, config.errors, files, units)


@dataclass(frozen=True)
class LiveSource:
    """All that a process needs to make any row of the source; picklable.

    reader: of the files. encoder: records to tokens. sequence_length: inputs a row. lane_limit: lanes, at
    most. window: candidates that are shuffled among each other. heldout_every: of the settings. number:
    stands for the source in keys. seed: of the run. columns: of the run's order (`llmkit.data.mixing`).
    """

    reader: SourceReader
    encoder: RecordEncoder
    sequence_length: int
    lane_limit: int
    columns: int
    window: int
    heldout_every: int
    number: int = 0
    seed: int = 0

    @classmethod
    def of(cls, reader: SourceReader, config: schema.Data, encoder: RecordEncoder) -> LiveSource:
        """A source with the settings of `config`; `numbered` gives it number and seed."""
        return cls(
            reader=reader,
            encoder=encoder,
            sequence_length=config.sequence_length,
            lane_limit=config.stream_shards,
            columns=config.stream_shards,
            window=config.shuffle_window,
            heldout_every=config.heldout_every,
        )

    def numbered(self, number: int, seed: int | None = None) -> LiveSource:
        """The same source under another number, and seed, in its keys."""
        if number == self.number and seed in (None, self.seed):
            return self  # with all that was found of it
        return dataclasses.replace(self, number=number, seed=self.seed if seed is None else seed)

    @property
    def name(self) -> str:
        return self.reader.name

    @property
    def max_epochs(self) -> int | None:
        return self.reader.spec.max_epochs

    @property
    def has_targets(self) -> bool:
        """Whether rows may have labels that are no targets; those behind the end of a lane are none."""
        return self.reader.spec.record != "text" or self.max_epochs is not None

    @property
    def lanes(self) -> int:
        """Number of lanes."""
        return len(self.lane_units)

    @cached_property
    def lane_units(self) -> list[list[int]]:
        """Numbers of the units of each lane, ascending."""
        return deal(self._sizes, min(self.lane_limit, self._most_lanes), self.columns)

    @cached_property
    def lane_loads(self) -> list[int]:
        """Size of each lane, in the bytes of its files."""
        return loads_of(self.lane_units, self._sizes)

    @cached_property
    def lane_table(self) -> np.ndarray:
        """Which lane gives each row: see `llmkit.data.live.lanes.lane_table`."""
        return lane_table(self.lane_loads, self.columns)

    def largest_share(self, ranks: int) -> float:
        """Share of the source's text that the busiest of so many data-parallel processes tokenizes."""
        return largest_share(self.lane_table, self.lane_loads, ranks)

    @property
    def _sizes(self) -> list[int]:
        return [unit.size for unit in self.reader.units]

    @property
    def _most_lanes(self) -> int:
        """How many lanes can have a record each.

        A file that is cut at any byte has units without a record where one record is long: each
        UNITS_PER_LANE of them are enough for one lane only.
        """
        spec, files = self.reader.spec, self.reader.files
        most = 0
        for number, count in Counter(unit.file for unit in self.reader.units if unit.size).items():
            form = format_of(spec, files[number].path)
            at_any_byte = form.kind == "lines" and form.compression is None
            most += -(-count // UNITS_PER_LANE) if at_any_byte else count
        return most

    @cached_property
    def digest(self) -> str:
        """What decides the rows, beside the sequence length, the number and the seed."""
        return self._digest_of(self._content(self.reader.errors))

    @cached_property
    def strict_digest(self) -> str:
        """The digest under data.errors: raise, whose rows are the same for as long as there are any."""
        return self._digest_of(self._content("raise"))

    def _digest_of(self, content: JsonValue) -> str:
        table = self.lane_table if len(self.lane_table) > 1 else self.lane_table[:, : self.lanes]
        return _hash([content, self.lanes, self.window, table.ravel().tolist()])

    def _content(self, errors: str) -> JsonValue:
        """What decides the documents, with this setting of data.errors."""
        spec = self.reader.spec
        record = spec.model_dump(
            mode="json",
            include={
                *("type", "record", "separator"),
                *("text_field", "messages_field", "prompt_field", "completion_field", "ids_field"),
            },
        )
        return [
            VERSION,
            self.encoder.key_of(spec.record),
            record,
            errors,
            self.heldout_every,
            [list(file) for file in known_files(self.reader.files)],
            [list(unit) for unit in self.reader.units],
        ]

    def heldout_of(self, unit: int) -> range:
        """Numbers of a unit's candidates that are for evaluation, so that no row has them."""
        return heldout_candidates(self.heldout_every if unit in self._heldout_units else 0)

    @cached_property
    def _heldout_units(self) -> frozenset[int]:
        return frozenset(heldout_units(len(self.reader.units), self.heldout_every))

    def file_of(self, unit: int) -> str:
        """The file that a unit is a part of, for messages."""
        return shown(self.reader.files[self.reader.units[unit].file].path)

    def reading(self, lane: int, unit: int) -> str:
        """Where a lane is, for messages."""
        return f"source {self.name}: lane {lane} of {self.lanes}, which reads {self.file_of(unit)}"

    def unit_order(self, lane: int, epoch: int, place: int = 0) -> list[int]:
        """Numbers of the units that an epoch of a lane reads, in order.

        place: in this order, where the lane is. After its own units come those of the whole source: only a
        lane that has no document gets there.
        """
        units = self.lane_units[lane]
        words = (self.seed, UNIT_STREAM, self.number, lane, epoch)
        own = [units[k] for k in shuffled(len(units), *words)]
        return own if place < len(own) else own + shuffled(len(self.reader.units), *words, WHOLE)

    def window_order(self, count: int, lane: int, epoch: int, unit: int, first: int) -> list[int]:
        """The order in which the `count` candidates of the window that begins at `first` are taken."""
        return shuffled(count, self.seed, WINDOW_STREAM, self.number, lane, epoch, unit, first)


def shuffled(count: int, *words: Word) -> list[int]:
    """The numbers below `count` in an order that the words decide."""
    return np.argsort(key(*words, np.arange(count)), kind="stable").tolist()


def known_files(files: Sequence[File]) -> list[tuple[str, int, str]]:
    """Name below the common folder, size and tag of files: the same where the folder has moved.

    Of a URL neither what gives access counts nor, for it is part of the folder, the commit of a dataset.
    The name of a file without a tag is its whole path.
    """
    paths = [_without_access(file.path) if "://" in file.path else file.path for file in files]
    common = posixpath.commonpath([posixpath.dirname(path) for path in paths]) if paths else ""
    names = [posixpath.relpath(path, common or ".") for path in paths]
    return [(name if file.tag else file.path, file.size, file.tag) for name, file in zip(names, files)]


def _without_access(url: str) -> str:
    """Host and path alone."""
    parts = urlsplit(url)
    return f"/{parts.hostname or ''}{parts.path}"


def _hash(content: JsonValue) -> str:
    return xxh64_hexdigest(json.dumps(content, sort_keys=True).encode())
