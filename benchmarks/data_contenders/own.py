"""llmkit's loader over token shards, and over text that it tokenizes while training."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.data_contenders import Contender, Open, Pair
from benchmarks.data_corpus import END_OF_TEXT, LENGTH, ROWS, read_facts, stream
from llmkit.config import schema
from llmkit.data.building.given import open_given
from llmkit.data.loader import TrainLoader
from llmkit.data.prepared import PreparedData
from llmkit.data.shards.writer import ShardWriter
from llmkit.data.source import Source
from llmkit.data.tokens.tokenizer import Tokenizer


def write_shards(corpus: Path, place: Path) -> None:
    """The whole stream as token shards."""
    tokens, end = stream(corpus), read_facts(corpus).end_of_text_id
    _write(corpus, place, _documents(tokens, end))


def write_size(passes: int, corpus: Path, place: Path) -> None:
    """The text's tokens once or more often."""
    tokens = stream(corpus)[: read_facts(corpus).text_tokens]
    once = list(_documents(tokens, read_facts(corpus).end_of_text_id))
    _write(corpus, place, itertools.chain.from_iterable(itertools.repeat(once, passes)))


def _documents(tokens: np.ndarray, end: int) -> Iterator[np.ndarray]:
    for first, last in itertools.pairwise(np.flatnonzero(tokens == end)):
        yield tokens[first + 1 : last]


def _write(corpus: Path, place: Path, documents: Iterator[np.ndarray]) -> None:
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    size, end = tokenizer.vocab_size, tokenizer.end_of_text_id
    writer = ShardWriter(place / "shards", "text", tokenizer.hash, size, end)
    for ids in documents:
        writer.add(ids, 0)
    writer.finish()


def load_shards(masks: bool, corpus: Path, place: Path) -> Open:
    """The tokenizer, which readers of tokens do without, is loaded before the clock starts."""
    tokenizer = Tokenizer.load(corpus / "tokenizer")

    def batches() -> Iterator[Pair]:
        source = schema.Source(type="shards", path=str(place / "shards"), name="text")
        config = schema.Data(sources=[source], sequence_length=LENGTH, document_masks=masks)
        opened = open_given(Source(0, source), tokenizer)
        yield from _batches(PreparedData.of(config, tokenizer, [opened]), config)

    return batches


def write_zst(corpus: Path, place: Path) -> None:
    """The JSON lines in zstandard frames of a megabyte of text."""
    import zstandard

    for path in sorted((corpus / "text").iterdir()):
        compressor, frame = zstandard.ZstdCompressor(), bytearray()
        with path.open("rb") as lines, (place / f"{path.name}.zst").open("wb") as file:
            for line in lines:
                frame += line
                if len(frame) >= 1 << 20:
                    file.write(compressor.compress(bytes(frame)))
                    frame.clear()
            file.write(compressor.compress(bytes(frame)))


def load_live(workers: int, compressed: bool, corpus: Path, place: Path) -> Open:
    from llmkit.data.building.prepare import prepare

    def batches() -> Iterator[Pair]:
        text = place / "*.jsonl.zst" if compressed else corpus / "text" / "*.jsonl"
        config = schema.Data(
            tokenizer=schema.Tokenizer(
                type="file", path=str(corpus / "tokenizer" / "tokenizer.json"), end_of_text=END_OF_TEXT
            ),
            sources=[schema.Source(type="jsonl", path=str(text), live=True)],
            sequence_length=LENGTH,
            validation_fraction=0.0,
            cache_dir=tempfile.mkdtemp(),
            workers=workers,
        )
        prepared = prepare(config, lambda line: None)
        assert prepared.sources[0].kind == "live", prepared.sources
        yield from _batches(prepared, config, workers)

    return batches


def _batches(prepared: PreparedData, config: schema.Data, workers: int = 0) -> Iterator[Pair]:
    with TrainLoader(prepared, config, 0, ROWS, ROWS, workers=workers) as loader:
        for step in loader:
            (rows,) = step.micro_batches
            if config.document_masks:  # as the model gets it, made on this processor
                batch = rows.to(torch.device("cpu"))
                yield batch.tokens, batch.labels
            else:
                yield rows.tokens[:, :-1], rows.tokens[:, 1:]


ORDER = "global, O(1)"
LANES = "files over lanes, windows"
CONTENDERS = {
    "own": Contender(
        "**llmkit**, token shards", "reading", "token shards", ORDER,
        write_shards, partial(load_shards, False),
    ),
    "own-masks": Contender(
        "**llmkit**, as the model takes it (int64), with document masks", "reading", "token shards", ORDER,
        write_shards, partial(load_shards, True),
    ),
    "own-1x": Contender(
        "the text's tokens once", "size", "shards-1x", ORDER,
        partial(write_size, 1), partial(load_shards, False),
    ),
    "own-10x": Contender(
        "ten times", "size", "shards-10x", ORDER,
        partial(write_size, 10), partial(load_shards, False),
    ),
    "own-live": Contender(
        "**llmkit** live", "live", "jsonl", LANES, None, partial(load_live, 0, False)
    ),
    "own-live-2": Contender(
        "**llmkit** live, 2 workers", "live", "jsonl", LANES, None, partial(load_live, 2, False)
    ),
    "own-live-zst": Contender(
        "**llmkit** live, compressed", "live", "jsonl.zst", LANES, write_zst, partial(load_live, 0, True),
        ("zstandard",),
    ),
}  # fmt: skip
