"""Figures of sources and of their mixture, as `llmkit data inspect` prints them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np
from pydantic import JsonValue

from llmkit.config.schema import Config
from llmkit.data.building.packing import are_cut
from llmkit.data.curriculum import Curriculum
from llmkit.data.mixing import shares
from llmkit.data.prepared import PreparedData
from llmkit.data.sampler import MixtureSampler, rows_before
from llmkit.data.shards.dataset import TokenDataset
from llmkit.data.source import Source

SAMPLE_TOKENS = 1 << 22
"""Tokens of a source that are counted; all of them where it has no more."""
SAMPLE_PLACES = 64
"""Places, evenly spread over a source, at which they are taken otherwise."""
LONGEST = 1 << 20
"""Tokens up to which the end of a document is looked for behind a sample."""
FREQUENT = 12
"""Tokens that are named."""


@dataclass(frozen=True)
class LengthFigures:
    """Tokens of documents, without end-of-text.

    up_to: documents by the power of two that they have up to, and more than half of. fitting: those that
    would fit into a row, and cut: those of them that rows cut.
    """

    documents: int
    median: int
    mean: float
    longest: int
    up_to: dict[int, int]
    fitting: int
    cut: int


@dataclass(frozen=True)
class TokenFigures:
    """counted: tokens. ids: how many of the vocabulary occur. frequent: ids that come most often, and how
    often each."""

    counted: int
    ids: int
    frequent: list[tuple[int, int]]


@dataclass(frozen=True)
class SourceFigures:
    """What there is of a source. is_whole: whether lengths and frequencies are of all of it, not of a sample.

    files, bytes, lanes: of a live source, the bytes as stored. folder: where tokens of it lie. The others are
    None of a live source; lengths and frequencies also of pairs. text_bytes: of what is to be learned.
    """

    name: str
    kind: str
    left_out: dict[str, int]
    heldout_documents: int = 0
    heldout_tokens: int = 0
    files: int | None = None
    bytes: int | None = None
    lanes: int | None = None
    folder: str | None = None
    documents: int | None = None
    tokens: int | None = None
    text_bytes: int | None = None
    duplicates: int | None = None
    is_whole: bool | None = None
    lengths: LengthFigures | None = None
    frequencies: TokenFigures | None = None

    @classmethod
    def of(cls, source: Source, prepared: PreparedData, row_length: int) -> SourceFigures:
        """Counts a source, which is cut into rows of `row_length`."""
        held, live, stored = source.heldout, source.live, source.stored
        reader = None if live is None else live.reader
        ranges, lengths, frequencies = None, None, None
        if stored is not None and not prepared.has_pairs:
            ranges = sample_ranges(stored)
            lengths = _lengths(stored, ranges, prepared.tokenizer.end_of_text_id, row_length)
            frequencies = _frequencies(stored, ranges, prepared.tokenizer.vocab_size)
        return cls(
            name=source.name,
            kind=source.kind,
            left_out=dict(source.left_out),
            heldout_documents=0 if held is None else held.documents,
            heldout_tokens=0 if held is None else held.tokens,
            files=None if reader is None else len(reader.files),
            bytes=None if reader is None else sum(file.size for file in reader.files),
            lanes=None if live is None else live.lanes,
            folder=_folder(source),
            documents=None if stored is None else stored.documents,
            tokens=None if stored is None else stored.tokens,
            text_bytes=None if stored is None else stored.text_bytes,
            duplicates=source.duplicates,
            is_whole=None if stored is None or ranges is None else ranges == [(0, stored.tokens)],
            lengths=lengths,
            frequencies=frequencies,
        )

    def as_json(self) -> dict[str, JsonValue]:
        """Its fields."""
        return asdict(self)


def _folder(source: Source) -> str | None:
    """Where its tokens lie, or the held-out ones of a live source."""
    folder = source.spec.path if source.is_given else source.folder
    return None if folder is None else str(folder)


def sample_ranges(stored: TokenDataset) -> list[tuple[int, int]]:
    """Ranges of tokens to look at."""
    if stored.tokens <= SAMPLE_TOKENS:
        return [(0, stored.tokens)]
    width = SAMPLE_TOKENS // SAMPLE_PLACES
    starts = (k * (stored.tokens - width) // (SAMPLE_PLACES - 1) for k in range(SAMPLE_PLACES))
    return [(start, start + width) for start in starts]


def documents_in(
    stored: TokenDataset, ranges: list[tuple[int, int]], end_of_text: int
) -> tuple[np.ndarray, np.ndarray]:
    """Documents that begin in these ranges: where the end-of-text before each stands, and its tokens."""
    first, lengths = [], []
    for start, stop in ranges:
        ends = start + np.flatnonzero(stored.read(start, stop) == end_of_text)
        # The last one that begins here ends further on.
        while ends.size and stop < min(stored.tokens, int(ends[-1]) + LONGEST):
            further = min(stored.tokens, stop + (1 << 14))
            more = stop + np.flatnonzero(stored.read(stop, further) == end_of_text)
            stop = further
            if more.size:
                ends = np.append(ends, more[0])
                break
        first.append(ends[:-1])
        lengths.append(np.diff(ends) - 1)
    return np.concatenate(first), np.concatenate(lengths)


def _lengths(
    stored: TokenDataset, ranges: list[tuple[int, int]], end_of_text: int, row_length: int
) -> LengthFigures | None:
    first, lengths = documents_in(stored, ranges, end_of_text)
    if not lengths.size:
        return None
    powers = np.ceil(np.log2(np.maximum(lengths, 1))).astype(int)
    counts = np.bincount(powers)
    fits = lengths < row_length  # with the end-of-text before it
    cut = are_cut(first, lengths + 1, row_length) & fits
    return LengthFigures(
        documents=lengths.size,
        median=int(np.median(lengths)),
        mean=float(lengths.mean()),
        longest=int(lengths.max()),
        up_to={1 << power: int(counts[power]) for power in range(int(powers.min()), counts.size)},
        fitting=int(np.count_nonzero(fits)),
        cut=int(np.count_nonzero(cut)),
    )


def _frequencies(stored: TokenDataset, ranges: list[tuple[int, int]], vocab_size: int) -> TokenFigures:
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start, stop in ranges:
        counts += np.bincount(stored.read(start, stop), minlength=vocab_size)
    ranked = [number for number in np.argsort(-counts, kind="stable")[:FREQUENT].tolist() if counts[number]]
    return TokenFigures(
        counted=int(counts.sum()),
        ids=int(np.count_nonzero(counts)),
        frequent=[(number, int(counts[number])) for number in ranked],
    )


@dataclass(frozen=True)
class MixedSource:
    """rows: of the first epoch; None of a live source. read: rows that the run takes; None where its steps
    are not known. epochs: that these are; None of a live source."""

    name: str
    rows: int | None
    read: int | None
    epochs: float | None
    max_epochs: int | None


@dataclass(frozen=True)
class MixtureStage:
    """Weights of the sources from a step on, and the shares of the rows that they come to, both by source."""

    step: int
    weights: dict[str, float]
    shares: dict[str, float]


@dataclass(frozen=True)
class MixtureFigures:
    """steps: of the run, None where they are not known."""

    steps: int | None
    stages: list[MixtureStage] = field(default_factory=list)
    sources: list[MixedSource] = field(default_factory=list)

    @classmethod
    def of(cls, config: Config, prepared: PreparedData) -> MixtureFigures:
        """How often the run reads each source, as far as that is known."""
        data, steps, batch = config.data, config.train.max_steps, config.train.global_batch_size
        names, length = [source.name for source in prepared.sources], data.row_length
        curriculum = Curriculum.of(data, names)
        stages = [
            MixtureStage(step, dict(zip(names, weights)), dict(zip(names, map(float, shares(weights)))))
            for step, weights in zip(curriculum.steps, curriculum.weights, strict=True)
        ]
        sizes = [source.stored.period if source.stored else None for source in prepared.sources]
        needed: list[int] | None = None
        if steps is not None:
            columns = prepared.fingerprint.lanes or 1
            sampler = MixtureSampler(config.run.seed, sizes, curriculum.at(1), length=length, columns=columns)
            curriculum.apply_to(sampler, 0, lambda step: (step - 1) * batch)
            needed = sampler.consumed(steps * batch).tolist()
        sources = []
        for index, source in enumerate(prepared.sources):
            size, read = sizes[index], None if needed is None else needed[index]
            rows = None if size is None else int(rows_before(1, size, length))
            epochs = None if size is None or read is None else read * length / size
            sources.append(MixedSource(source.name, rows, read, epochs, source.max_epochs))
        return cls(steps, stages, sources)

    def as_json(self) -> dict[str, JsonValue]:
        """Its fields."""
        return asdict(self)
