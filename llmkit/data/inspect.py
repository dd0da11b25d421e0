"""Shows what a model will be trained on: figures of the sources, the mixture, rows as the model sees them."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from llmkit.config.schema import Config
from llmkit.data.building.packing import are_cut
from llmkit.data.curriculum import Curriculum
from llmkit.data.inspect_pairs import pair_lines, sequences
from llmkit.data.live.source import LiveSource
from llmkit.data.live.stream import Lane
from llmkit.data.mixing import shares
from llmkit.data.prepared import PreparedData, shown_size
from llmkit.data.sampler import MixtureSampler, rows_before
from llmkit.data.shards.dataset import TokenDataset
from llmkit.data.source import Source
from llmkit.data.tokens.tokenizer import Tokenizer

SAMPLE_TOKENS = 1 << 22
"""Tokens of a source that are counted; all of them where it has no more."""
SAMPLE_PLACES = 64
"""Places, evenly spread over a source, at which they are taken otherwise."""
LONGEST = 1 << 20
"""Tokens up to which the end of a document is looked for behind a sample."""
FREQUENT = 12
"""Tokens that are named."""
BAR = 40
"""Characters of the longest bar."""


class Marks(NamedTuple):
    """How a row is marked: before and after text that is no target, and a document's end."""

    off: str
    on: str
    end: str
    end_off: str
    """A document's end that is no target."""


def marks(end_of_text: str, color: bool) -> Marks:
    """The marks for a terminal with colours, or for plain text."""
    name = printable(end_of_text)
    if color:
        return Marks("\x1b[2;36m", "\x1b[0m", f"\x1b[7;33m {name} \x1b[0m", f"\x1b[2;7;36m {name} \x1b[0m")
    return Marks("⟦", "⟧", f"──── {name} ────", f"──── ⟦{name}⟧ ────")


def inspect_command(config: Config, prepared: PreparedData, count: int, color: bool) -> None:
    """`llmkit data inspect`: prints `inspect`."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a character shows a mark for it
        sys.stdout.reconfigure(errors="replace")
    for line in inspect(config, prepared, count, color):
        print(line)


def inspect(config: Config, prepared: PreparedData, count: int, color: bool) -> Iterator[str]:
    """Lines that show the data of a run; of each source `count` rows. color: mark them by colours."""
    for source in prepared.sources:
        yield from source_lines(source, prepared, config.data.row_length)
        yield ""
    yield from mixture_lines(config, prepared)
    how = marks(prepared.tokenizer.end_of_text, color)
    if count:
        yield ""
        yield (
            f"rows as the model sees them; {how.off}no target of the loss{how.on}, "
            f"a document's end: {how.end}"
        )
    for place, source in enumerate(prepared.sources):
        for title, row in sample_rows(config, source, place, count):
            yield f"\n=== {source.name}: {title} ==="
            yield row if isinstance(row, str) else show_row(*row, prepared.tokenizer, how)


def source_lines(source: Source, prepared: PreparedData, row_length: int) -> Iterator[str]:
    """What there is of a source, which is cut into rows of `row_length`."""
    held = source.heldout
    yield f"source {source.name} ({source.kind})"
    if held is not None:
        yield f"  held out: {held.documents:,} documents, {held.tokens:,} tokens"
    if source.left_out:
        counts = (f"{count:,} {why}" for why, count in source.left_out.items())
        yield "  left out or mended: " + ", ".join(counts)
    if source.live is not None:
        files = source.live.reader.files
        size = sum(file.size for file in files)
        yield (
            f"  tokenized while training: {len(files):,} files, {shown_size(size)} as stored, in "
            f"{source.live.lanes} lanes; documents and tokens are not counted"
        )
        return
    stored = source.stored
    assert stored is not None, source.name
    text = stored.text_bytes
    size_told = f", {shown_size(text)}" if text else ""
    if text:  # that of a chat is only what is to be learned
        size_told += " to learn" if stored.has_mask else f" ({text / stored.tokens:.2f} bytes a token)"
    if prepared.has_pairs:
        yield from pair_lines(stored, row_length)
        return
    yield f"  {stored.documents:,} documents, {stored.tokens:,} tokens{size_told}"
    if copies := source.duplicates:
        yield f"  {copies:,} documents are exact copies of others, held-out ones included"
    end_of_text = prepared.tokenizer.end_of_text_id
    places = _sample_places(stored)
    part = "all" if places == [(0, stored.tokens)] else "a sample"
    yield from _length_lines(stored, places, end_of_text, part, row_length)
    yield from _frequency_lines(stored, places, prepared.tokenizer, part)


def _sample_places(stored: TokenDataset) -> list[tuple[int, int]]:
    """Ranges of tokens to look at."""
    if stored.tokens <= SAMPLE_TOKENS:
        return [(0, stored.tokens)]
    width = SAMPLE_TOKENS // SAMPLE_PLACES
    starts = (k * (stored.tokens - width) // (SAMPLE_PLACES - 1) for k in range(SAMPLE_PLACES))
    return [(start, start + width) for start in starts]


def _documents(
    stored: TokenDataset, places: list[tuple[int, int]], end_of_text: int
) -> tuple[np.ndarray, np.ndarray]:
    """Documents that begin in these places: where the end-of-text before each stands, and its tokens."""
    first, lengths = [], []
    for start, stop in places:
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


def _length_lines(
    stored: TokenDataset, places: list[tuple[int, int]], end_of_text: int, part: str, row_length: int
) -> Iterator[str]:
    """Histogram of the documents' lengths, a bar for each power of two; how many are cut by rows."""
    first, lengths = _documents(stored, places, end_of_text)
    if not lengths.size:
        return
    yield (
        f"  tokens of a document ({part}, {lengths.size:,}): median {int(np.median(lengths)):,}, "
        f"mean {lengths.mean():,.0f}, longest {lengths.max():,}"
    )
    powers = np.ceil(np.log2(np.maximum(lengths, 1))).astype(int)
    counts = np.bincount(powers)
    for power in range(int(powers.min()), counts.size):
        bar = "█" * int(-(-BAR * counts[power] // counts.max()))
        yield f"    up to {1 << power:>9,}  {counts[power] / lengths.size:6.1%}  {bar}".rstrip()
    fits = lengths < row_length  # with the end-of-text before it
    cut = are_cut(first, lengths + 1, row_length) & fits
    yield (
        f"  rows of {row_length:,} cut {np.count_nonzero(cut):,} of the {np.count_nonzero(fits):,} documents "
        f"that would fit ({part})"
    )


def _frequency_lines(
    stored: TokenDataset, places: list[tuple[int, int]], tokenizer: Tokenizer, part: str
) -> Iterator[str]:
    """The tokens that come most often."""
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for start, stop in places:
        counts += np.bincount(stored.read(start, stop), minlength=tokenizer.vocab_size)
    used = np.count_nonzero(counts)
    yield (
        f"  most frequent tokens ({part}, {counts.sum():,}; {used:,} of {tokenizer.vocab_size:,} ids occur):"
    )
    ranked = [number for number in np.argsort(-counts, kind="stable")[:FREQUENT].tolist() if counts[number]]
    shown = (f"{_name(tokenizer, number)} {counts[number] / counts.sum():.1%}" for number in ranked)
    yield "    " + "  ".join(shown)


def _name(tokenizer: Tokenizer, number: int) -> str:
    if number == tokenizer.end_of_text_id:
        return printable(tokenizer.end_of_text)
    text = tokenizer.decode([number])
    return f"#{number}" if "\ufffd" in text else repr(text)  # a part of a character has no text


def mixture_lines(config: Config, prepared: PreparedData) -> Iterator[str]:
    """The weights of the sources, and how often the run reads each, as far as that is known."""
    data, steps, batch = config.data, config.train.max_steps, config.train.global_batch_size
    names = [source.name for source in prepared.sources]
    curriculum = Curriculum.of(data, names)
    for step, weights in zip(curriculum.steps, curriculum.weights, strict=True):
        parts = zip(names, weights, shares(weights), strict=True)
        listed = ", ".join(f"{name} {weight:g} ({share:.1%})" for name, weight, share in parts)
        yield f"mixture from step {step}: {listed}"
    length = data.row_length
    sizes = [source.stored.period if source.stored else None for source in prepared.sources]
    needed = None
    if steps is not None:
        columns = prepared.fingerprint.lanes or 1
        sampler = MixtureSampler(config.run.seed, sizes, curriculum.at(1), length=length, columns=columns)
        curriculum.apply_to(sampler, 0, lambda step: (step - 1) * batch)
        needed = sampler.consumed(steps * batch)
    for place, source in enumerate(prepared.sources):
        size = sizes[place]
        line = f"  {source.name}: " + (
            "rows are not counted" if size is None else f"{rows_before(1, size, length):,} rows"
        )
        if needed is not None:
            line += f", the run of {steps:,} steps reads {needed[place]:,}"
            if size is not None:
                line += f" = {needed[place] * length / size:.2f} epochs"
        if source.max_epochs is not None:
            line += f", at most {source.max_epochs} epochs are allowed"
        yield line


def sample_rows(
    config: Config, source: Source, place: int, count: int
) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray | None] | str]]:
    """Titles and contents of the first rows that a run takes of a source.

    A content is tokens (T+1,) and label targets (T,) or None, or, of a lane that has no row, why.
    """
    length = config.data.row_length
    if source.live is not None:
        for number in range(min(count, source.live.lanes)):
            yield f"first row of lane {number}", _first_row(source.live, number)
        return
    stored = source.stored
    assert stored is not None, source.name
    size = stored.period
    sampler = MixtureSampler(config.run.seed, [size], [1.0], shuffle_ids=[place], length=length)
    _, _, numbers = sampler.rows(0, min(count, int(rows_before(1, size, length))))
    targets = stored.targets(numbers, length)
    for k, tokens in enumerate(stored.rows(numbers, length)):
        known = None if targets is None else targets[k]
        if config.data.has_pairs and known is not None:
            for side, content in sequences(tokens, known):
                yield f"pair {numbers[k]}, {side}", content
        else:
            yield f"row {numbers[k]}", (tokens, known)


def _first_row(source: LiveSource, number: int) -> tuple[np.ndarray, np.ndarray | None] | str:
    lane = Lane(source, number)
    try:
        row = next(lane)
    finally:
        lane.close()
    if row.targets is not None and not row.targets.any():
        return "no row: it has no document that can be used"
    return row.tokens, row.targets


def show_row(tokens: np.ndarray, is_target: np.ndarray | None, tokenizer: Tokenizer, how: Marks) -> str:
    """A row as text. Its first token is an input only; the marks say what the loss does not see."""
    learned = np.zeros(tokens.size, dtype=bool)
    learned[1:] = True if is_target is None else is_target
    ends = tokens == tokenizer.end_of_text_id
    # Pieces of tokens that are alike: text that is learned, text that is not, single ends of text.
    cuts = np.flatnonzero((learned[1:] != learned[:-1]) | ends[1:] | ends[:-1]) + 1
    pieces: list[str] = []
    for piece in np.split(np.arange(tokens.size), cuts):
        first = piece[0]
        if ends[first]:
            line_is_open = bool(pieces) and not pieces[-1].endswith("\n")
            pieces.append("\n" * line_is_open + (how.end if learned[first] else how.end_off) + "\n")
            continue
        text = printable(tokenizer.decode(tokens[piece]))
        pieces.append(text if learned[first] else f"{how.off}{text}{how.on}")
    return "".join(pieces).rstrip("\n")


def printable(text: str) -> str:
    """Text with its control characters made visible, so that none of them commands the terminal."""
    return "".join(
        char if char in "\n\t" or not _commands(char) else char.encode("unicode_escape").decode()
        for char in text
    )


def _commands(char: str) -> bool:
    """Control characters, and those that change the direction of writing."""
    code = ord(char)
    return code < 32 or 127 <= code < 160 or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069
