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
from llmkit.data.live.heldout import heldout_records
from llmkit.data.live.lanes import assign_splits, lane_sizes, lane_table, largest_share
from llmkit.data.shuffle import HashWord, key
from llmkit.data.sources.files import File
from llmkit.data.sources.formats import format_of
from llmkit.data.sources.reader import SourceReader
from llmkit.data.sources.splits import Split, split_files
from llmkit.data.sources.urls import redact_url
from llmkit.data.tokens.encode import RecordEncoder

VERSION = 2
"""Changes with anything that makes the same files give other rows."""
SPLITS_PER_LANE = 4
"""Splits, about, that a lane has at least where the files are large enough: they are read in random order."""
SPLIT_BYTES = (256 << 10, 64 << 20)
"""Bounds of a split's size: what is opened on the way to a row, and what is read in file order."""
SPLIT_STREAM, WINDOW_STREAM, WHOLE = 21, 22, 1
"""Stream ids mixed into the keys, so that the random streams are independent."""


def open_reader(
    spec: schema.Source,
    name: str,
    setting: str,
    config: schema.Data,
    files: Sequence[File],
    splits: Sequence[Split] | None = None,
) -> SourceReader:
    """Reads a live source, whose files are split here unless `splits` are given; setting: its dotted key."""
    if splits is None:
        low, high = SPLIT_BYTES
        wanted = -(-sum(file.size for file in files) // (SPLITS_PER_LANE * config.stream_shards))
        splits = split_files(spec, files, min(max(wanted, low), high), setting)
    return SourceReader(spec, name, setting, config.errors, files, splits)


@dataclass(frozen=True)
class LiveSource:
    """All that a process needs to make any row of the source; picklable.

    reader: of the files. encoder: records to tokens. sequence_length: inputs a row. lane_limit: lanes, at
    most. columns: of the run's order (`llmkit.data.mixing`). window: records that are shuffled among each
    other. heldout_every: of the settings. stream_id: stands for the source in keys. seed: of the run.
    """

    reader: SourceReader
    encoder: RecordEncoder
    sequence_length: int
    lane_limit: int
    columns: int
    window: int
    heldout_every: int
    stream_id: int = 0
    seed: int = 0

    @classmethod
    def of(cls, reader: SourceReader, config: schema.Data, encoder: RecordEncoder) -> LiveSource:
        """A source with the settings of `config`; `keyed` gives it stream id and seed."""
        return cls(
            reader=reader,
            encoder=encoder,
            sequence_length=config.sequence_length,
            lane_limit=config.stream_shards,
            columns=config.stream_shards,
            window=config.shuffle_window,
            heldout_every=config.heldout_every,
        )

    def keyed(self, stream_id: int, seed: int) -> LiveSource:
        """The same source with other keys."""
        if (stream_id, seed) == (self.stream_id, self.seed):
            return self  # with its cached properties
        return dataclasses.replace(self, stream_id=stream_id, seed=seed)

    @property
    def name(self) -> str:
        return self.reader.name

    @property
    def max_epochs(self) -> int | None:
        return self.reader.spec.max_epochs

    @property
    def has_mask(self) -> bool:
        """Whether rows may have labels that are no targets; those behind the end of a lane are none."""
        return self.reader.spec.record != "text" or self.max_epochs is not None

    @property
    def lanes(self) -> int:
        """Number of lanes."""
        return len(self.lane_splits)

    @cached_property
    def lane_splits(self) -> list[list[int]]:
        """Indices of the splits of each lane, ascending."""
        sizes = [split.size for split in self.reader.splits]
        return assign_splits(sizes, min(self.lane_limit, self._most_lanes), self.columns)

    @cached_property
    def lane_sizes(self) -> list[int]:
        """Size of each lane, in the bytes of its files."""
        return lane_sizes(self.lane_splits, [split.size for split in self.reader.splits])

    @cached_property
    def lane_table(self) -> np.ndarray:
        """Which lane gives each row: see `llmkit.data.live.lanes.lane_table`."""
        return lane_table(self.lane_sizes, self.columns)

    def largest_share(self, ranks: int) -> float:
        """Share of the source's text that the busiest of so many data-parallel processes tokenizes."""
        return largest_share(self.lane_table, self.lane_sizes, ranks)

    @property
    def _most_lanes(self) -> int:
        """How many lanes can have a record each.

        A file that is split at any byte has splits without a record where one record is long: each
        SPLITS_PER_LANE of them are enough for one lane only.
        """
        spec, files = self.reader.spec, self.reader.files
        most = 0
        for file, count in Counter(split.file for split in self.reader.splits if split.size).items():
            form = format_of(spec, files[file].path)
            at_any_byte = form.kind == "lines" and form.compression is None
            most += -(-count // SPLITS_PER_LANE) if at_any_byte else count
        return most

    @cached_property
    def digest(self) -> str:
        """Hash of what decides the rows, beside the sequence length, the stream id and the seed."""
        return self._digest_with(self.reader.errors)

    @cached_property
    def strict_digest(self) -> str:
        """The digest under data.errors: raise, whose rows are the same for as long as there are any."""
        return self._digest_with("raise")

    def _digest_with(self, errors: str) -> str:
        spec = self.reader.spec
        fields = {
            *("type", "record", "separator"),
            *("text_field", "messages_field", "prompt_field", "completion_field", "ids_field"),
        }
        documents: JsonValue = [
            VERSION,
            self.encoder.key_of(spec.record),
            spec.model_dump(mode="json", include=fields),
            errors,
            self.heldout_every,
            [list(file) for file in known_files(self.reader.files)],
            [list(split) for split in self.reader.splits],
        ]
        table = self.lane_table if len(self.lane_table) > 1 else self.lane_table[:, : self.lanes]
        content = [documents, self.lanes, self.window, table.ravel().tolist()]
        return xxh64_hexdigest(json.dumps(content, sort_keys=True).encode())

    def heldout_of(self, split: int) -> range:
        """Indices of a split's records that are for evaluation, so that no row has them."""
        return self._heldout.get(split, range(0))

    @cached_property
    def _heldout(self) -> dict[int, range]:
        return heldout_records(len(self.reader.splits), self.heldout_every)

    def file_of(self, split: int) -> str:
        """The file of a split, for messages."""
        return redact_url(self.reader.files[self.reader.splits[split].file].path)

    def reading(self, lane: int, split: int) -> str:
        """What a lane is reading, for messages."""
        return f"source {self.name}: lane {lane} of {self.lanes}, which reads {self.file_of(split)}"

    def split_order(self, lane: int, epoch: int, index: int = 0) -> list[int]:
        """Indices of the splits that an epoch of a lane reads, in order.

        index: in this order, of the split at hand. After its own splits come those of the whole source: only
        a lane that has no document gets there.
        """
        splits = self.lane_splits[lane]
        words = (self.seed, SPLIT_STREAM, self.stream_id, lane, epoch)
        own = [splits[k] for k in shuffled(len(splits), *words)]
        return own if index < len(own) else own + shuffled(len(self.reader.splits), *words, WHOLE)

    def window_order(self, count: int, lane: int, epoch: int, split: int, first: int) -> list[int]:
        """The order in which the `count` records of the window that begins at `first` are taken."""
        return shuffled(count, self.seed, WINDOW_STREAM, self.stream_id, lane, epoch, split, first)


def shuffled(count: int, *words: HashWord) -> list[int]:
    """The integers below `count` in an order that the words decide."""
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
