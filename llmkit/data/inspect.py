"""Shows what a model will be trained on: figures of the sources, the mixture, rows as the model sees them."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from pydantic import JsonValue

from llmkit.config.schema import Config
from llmkit.data.inspect_figures import LengthFigures, MixtureFigures, SourceFigures, TokenFigures
from llmkit.data.inspect_pairs import pair_lines, sequences
from llmkit.data.live.source import LiveSource
from llmkit.data.live.stream import Lane
from llmkit.data.prepared import PreparedData, shown_size
from llmkit.data.sampler import MixtureSampler, rows_before
from llmkit.data.source import Source
from llmkit.data.tokens.tokenizer import Tokenizer

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


def print_lines(lines: Iterable[str]) -> None:
    """Prints them; a terminal that lacks a character shows a mark for it."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    for line in lines:
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
    for source in prepared.sources:
        for title, row in sample_rows(config, source, count):
            yield f"\n=== {source.name}: {title} ==="
            yield row if isinstance(row, str) else show_row(*row, prepared.tokenizer, how)


def inspect_json(config: Config, prepared: PreparedData, count: int) -> dict[str, JsonValue]:
    """The same as JSON: figures of the sources and of the mixture, and the first rows of each source."""
    rows: list[JsonValue] = []
    for source in prepared.sources:
        for title, row in sample_rows(config, source, count):
            found: dict[str, JsonValue] = {"source": source.name, "title": title}
            if isinstance(row, str):
                found["missing"] = row
            else:
                tokens, is_target = row
                found |= {
                    "tokens": tokens.tolist(),
                    "targets": target_ranges(tokens.size, is_target),
                    "text": prepared.tokenizer.decode(tokens),
                }
            rows.append(found)
    sources = [SourceFigures.of(each, prepared, config.data.row_length) for each in prepared.sources]
    return {
        "sources": [figures.as_json() for figures in sources],
        "mixture": MixtureFigures.of(config, prepared).as_json(),
        "rows": rows,
    }


def target_ranges(tokens: int, is_target: np.ndarray | None) -> list[JsonValue]:
    """Half-open ranges of a row's tokens that the loss counts as labels.

    is_target: (tokens - 1,) bool, of the labels; None = all.

    >>> target_ranges(6, np.array([True, True, False, False, True]))
    [[1, 3], [5, 6]]
    """
    learned = np.zeros(tokens + 2, dtype=bool)  # a token further, and one more that is none
    learned[2:-1] = True if is_target is None else is_target
    edges = np.flatnonzero(learned[1:] != learned[:-1]).reshape(-1, 2)
    return [[int(start), int(stop)] for start, stop in edges]


def source_lines(source: Source, prepared: PreparedData, row_length: int) -> Iterator[str]:
    """What there is of a source, which is cut into rows of `row_length`."""
    figures = SourceFigures.of(source, prepared, row_length)
    yield f"source {figures.name} ({figures.kind})"
    if source.heldout is not None:
        yield f"  held out: {figures.heldout_documents:,} documents, {figures.heldout_tokens:,} tokens"
    if figures.left_out:
        counts = (f"{count:,} {why}" for why, count in figures.left_out.items())
        yield "  left out or mended: " + ", ".join(counts)
    if figures.bytes is not None:
        yield (
            f"  tokenized while training: {figures.files:,} files, {shown_size(figures.bytes)} as stored, in "
            f"{figures.lanes} lanes; documents and tokens are not counted"
        )
        return
    stored = source.stored
    assert stored is not None, source.name
    if prepared.has_pairs:
        yield from pair_lines(stored, row_length)
        return
    size_told = ""
    if text := stored.text_bytes:  # that of a chat is only what is to be learned
        size_told = f", {shown_size(text)}"
        size_told += " to learn" if stored.has_mask else f" ({text / stored.tokens:.2f} bytes a token)"
    yield f"  {stored.documents:,} documents, {stored.tokens:,} tokens{size_told}"
    if copies := figures.duplicates:
        yield f"  {copies:,} documents are exact copies of others, held-out ones included"
    if figures.folder is not None:
        yield f"  shards: {figures.folder}"
    part = "all" if figures.is_whole else "a sample"
    if figures.lengths is not None:
        yield from _length_lines(figures.lengths, part, row_length)
    if figures.frequencies is not None:
        yield from _frequency_lines(figures.frequencies, prepared.tokenizer, part)


def _length_lines(lengths: LengthFigures, part: str, row_length: int) -> Iterator[str]:
    """Histogram of the documents' lengths, a bar for each power of two; how many are cut by rows."""
    yield (
        f"  tokens of a document ({part}, {lengths.documents:,}): median {lengths.median:,}, "
        f"mean {lengths.mean:,.0f}, longest {lengths.longest:,}"
    )
    most = max(lengths.up_to.values())
    for size, count in lengths.up_to.items():
        bar = "█" * -(-BAR * count // most)
        yield f"    up to {size:>9,}  {count / lengths.documents:6.1%}  {bar}".rstrip()
    yield (
        f"  rows of {row_length:,} cut {lengths.cut:,} of the {lengths.fitting:,} documents that would fit "
        f"({part})"
    )


def _frequency_lines(frequencies: TokenFigures, tokenizer: Tokenizer, part: str) -> Iterator[str]:
    """The tokens that come most often."""
    counted = frequencies.counted
    yield (
        f"  most frequent tokens ({part}, {counted:,}; {frequencies.ids:,} of {tokenizer.vocab_size:,} ids "
        "occur):"
    )
    shown = (f"{_name(tokenizer, token)} {count / counted:.1%}" for token, count in frequencies.frequent)
    yield "    " + "  ".join(shown)


def _name(tokenizer: Tokenizer, token: int) -> str:
    if token == tokenizer.end_of_text_id:
        return printable(tokenizer.end_of_text)
    text = tokenizer.decode([token])
    return f"#{token}" if "\ufffd" in text else repr(text)  # a part of a character has no text


def mixture_lines(config: Config, prepared: PreparedData) -> Iterator[str]:
    """The weights of the sources, and how often the run reads each, as far as that is known."""
    figures = MixtureFigures.of(config, prepared)
    for stage in figures.stages:
        listed = ", ".join(
            f"{name} {weight:g} ({stage.shares[name]:.1%})" for name, weight in stage.weights.items()
        )
        yield f"mixture from step {stage.step}: {listed}"
    for source in figures.sources:
        line = f"  {source.name}: "
        line += "rows are not counted" if source.rows is None else f"{source.rows:,} rows"
        if source.read is not None:
            line += f", the run of {figures.steps:,} steps reads {source.read:,}"
            if source.epochs is not None:
                line += f" = {source.epochs:.2f} epochs"
        if source.max_epochs is not None:
            line += f", at most {source.max_epochs} epochs are allowed"
        yield line


def sample_rows(
    config: Config, source: Source, count: int
) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray | None] | str]]:
    """Titles and contents of the first rows that a run takes of a source.

    A content is tokens (T+1,) and label targets (T,) or None, or, of a lane that has no row, why.
    """
    length = config.data.row_length
    if source.live is not None:
        for lane in range(min(count, source.live.lanes)):
            yield f"first row of lane {lane}", _first_row(source.live, lane)
        return
    stored = source.stored
    assert stored is not None, source.name
    size = stored.period
    sampler = MixtureSampler(config.run.seed, [size], [1.0], shuffle_ids=[source.index], length=length)
    _, _, numbers = sampler.rows(0, min(count, int(rows_before(1, size, length))))
    targets = stored.targets(numbers, length)
    for k, tokens in enumerate(stored.rows(numbers, length)):
        known = None if targets is None else targets[k]
        if config.data.has_pairs and known is not None:
            for side, content in sequences(tokens, known):
                yield f"pair {numbers[k]}, {side}", content
        else:
            yield f"row {numbers[k]}", (tokens, known)


def _first_row(source: LiveSource, lane: int) -> tuple[np.ndarray, np.ndarray | None] | str:
    with contextlib.closing(Lane(source, lane)) as rows:
        row = next(rows)
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
