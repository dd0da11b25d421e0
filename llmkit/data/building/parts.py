"""Makes the parts of a source: records to tokens, with the held-out documents set apart.

What a part holds depends on the source and the part's number alone, so that parts can be made by any
number of processes in any order, and one that is there need not be made again. A part is a folder of token
shards: blocks of shuffled documents, of each those to train on before those held out, and `BuildStats` as the
`extra` of its index.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmkit.data.building.batch import ShuffleBuffer, TokenizeBatch
from llmkit.data.building.cache import write_folder
from llmkit.data.building.stats import BuildStats
from llmkit.data.shards.documents import Documents
from llmkit.data.shards.reader import ShardReader
from llmkit.data.shards.writer import ShardWriter
from llmkit.data.shuffle import key
from llmkit.data.sources.files import File
from llmkit.data.sources.reader import SourceReader
from llmkit.data.sources.splits import Split
from llmkit.data.tokens.encode import RecordEncoder
from llmkit.data.tokens.text_encoder import TIKTOKEN_AFTER
from llmkit.errors import RunFault, UserError
from llmkit.files import NoAccessError

PART_BYTES = (1 << 20, 16 << 20)
"""Bounds of the bytes that a part stands for: enough to make its overhead small, few enough to balance."""
PARTS = 64
"""Parts, about, of a source of middling size."""
BATCH_TEXT = 1 << 20
"""Characters that are tokenized at a time."""
BUFFER_BYTES = 64 << 20
"""Bytes of tokens, or of text where that is more, that are held in memory and shuffled."""
HELDOUT_STREAM = 11
"""Stream id mixed into the keys of what is held out, so that it is independent of other random streams."""


def part_bytes_of(files: Sequence[File]) -> int:
    """Bytes that a part of a source with these files should have."""
    low, high = PART_BYTES
    return min(max(sum(file.size for file in files) // PARTS, low), high)


def group_splits(splits: Sequence[Split], part_bytes: int) -> list[tuple[int, ...]]:
    """Numbers of neighbouring splits, in groups of at least `part_bytes`; the last may be smaller."""
    groups: list[tuple[int, ...]] = []
    group: list[int] = []
    size = 0
    for number, split in enumerate(splits):
        group.append(number)
        size += split.size
        if size >= part_bytes:
            groups.append(tuple(group))
            group, size = [], 0
    return [*groups, tuple(group)] if group else groups


def held_out(part: int, numbers: np.ndarray, every: int) -> np.ndarray:
    """Which records of a part are held out: one of each `every` neighbours, drawn by a key; (count,) bool.

    So nobody has to know how many there are. The very first record of a source is never held out, so
    that one document is one to train on. `every` 0: none.
    """
    if every == 0:
        return np.zeros(numbers.shape, dtype=bool)
    group, offset = np.divmod(numbers, every)
    chosen = (key(HELDOUT_STREAM, part, group) % np.uint64(every)).astype(np.int64)
    if part == 0:
        chosen[(group == 0) & (chosen == 0)] = every - 1
    return chosen == offset


class HeldOutSampler:
    """`held_out` for records one after the other."""

    def __init__(self, part: int, every: int) -> None:
        self._part, self._every = part, every
        self._chosen = np.zeros(0, dtype=bool)

    def __call__(self, number: int) -> bool:
        """Whether record `number` is held out."""
        if number >= self._chosen.size:
            self._chosen = held_out(self._part, np.arange(max(1024, 2 * number)), self._every)
        return bool(self._chosen[number])


@dataclass(frozen=True)
class PartMaker:
    """All that a process needs to make the parts of a source.

    reader: of the source. encoder: to tokens. parts: the splits of each part. heldout_every: one record
    in so many is held out. folder: where the parts lie. threads: tokenize with all cores.
    """

    reader: SourceReader
    encoder: RecordEncoder
    parts: list[tuple[int, ...]]
    heldout_every: int
    folder: Path
    threads: bool = False

    def path(self, part: int) -> Path:
        """Where a part lies once it is made."""
        return self.folder / f"part-{part:06d}"

    def make(self, part: int) -> None:
        """Read, tokenize and write a part.

        Raises UserError for the user's mistakes in the source, RunFault where it cannot be read.
        """
        is_heldout = HeldOutSampler(part, self.heldout_every)
        # Under a name of its own: a process that outlives its parent for a moment disturbs nobody.
        tmp = self.folder / f".{self.path(part).name}-{uuid.uuid4().hex[:12]}"
        with write_folder(self.path(part), tmp):
            tokenizer = self.encoder.tokenizer
            writer = ShardWriter(tmp, "part", tokenizer.hash, tokenizer.vocab_size, tokenizer.end_of_text_id)
            stats = BuildStats()
            buffer = ShuffleBuffer(part, writer, stats)
            batch = TokenizeBatch(self.reader, self.encoder, stats, self.threads)
            for split in self.parts[part]:
                for record in self.reader.read(split):
                    batch.add(record, split, is_heldout(stats.records))
                    stats.records += 1
                    if batch.size >= BATCH_TEXT:
                        buffer.add(batch.encode())
                        if buffer.size >= BUFFER_BYTES:
                            buffer.write()
            buffer.add(batch.encode())
            buffer.write()
            if batch.text >= TIKTOKEN_AFTER:  # before that nothing is known
                stats.slow_reason = tokenizer.tiktoken_disabled_because
            writer.finish(stats.model_dump(mode="json"))


def read_part(path: Path) -> tuple[BuildStats, Iterator[tuple[Documents, Documents]]]:
    """What a part found, and of each of its blocks the documents to train on and those held out.

    Raises RunFault, and removes the part, where it is damaged: the next build makes it again.
    """
    with _removing(path):
        reader = ShardReader(path)
        stats = BuildStats.model_validate(reader.index.extra)
        return stats, _blocks(reader, stats)


def _blocks(reader: ShardReader, stats: BuildStats) -> Iterator[tuple[Documents, Documents]]:
    with _removing(reader.folder):
        lengths, first, start = reader.document_lengths(), 0, 1  # behind the first end-of-text
    for block in stats.blocks:
        pair = []
        for count, text_bytes in block:
            sizes = lengths[first : first + count]
            stop = start + int(sizes.sum())
            with _removing(reader.folder):
                tokens, targets = reader.read(start, stop), reader.read_targets(start, stop)
            pair.append(Documents(tokens, sizes, text_bytes, targets))
            first, start = first + count, stop
        yield pair[0], pair[1]


@contextlib.contextmanager
def _removing(part: Path) -> Iterator[None]:
    try:
        yield
    except NoAccessError:
        raise
    except UserError as error:
        shutil.rmtree(part)
        raise RunFault(f"{part}: was damaged and is removed; run the same command again") from error
