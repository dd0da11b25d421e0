"""All documents of a live source are read equally often, however rarely a mixture draws it."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest

from llmkit.config import schema
from llmkit.data.loader import TrainLoader
from tests.data.live.fakes import live
from tests.data.toy import T, ToyRows, toy

DOCUMENTS, CHARACTERS = 8, 16


def rare(lanes: int, units: int, weight: float, sizes: Any = 1, **more: Any) -> tuple[Any, schema.Data]:
    """A mixture with a live source of documents that each repeat a character of their own."""
    characters = (chr(0x4E00 + i) for i in itertools.count())
    counts = [DOCUMENTS * (1 + unit % sizes) for unit in range(units)]
    texts = [[next(characters) * CHARACTERS for _ in range(count)] for count in counts]
    sources = {"web": ToyRows(50_000), "rare": live(texts, lane_limit=lanes)}
    return toy(sources, {"web": 1 - weight, "rare": weight}, **more)


def times_read(data: tuple[Any, schema.Data], epochs: int, batch_rows: int) -> list[float]:
    """How often each document was read after so many epochs' worth of rows."""
    prepared, config = data
    documents = [one.text for unit in prepared.sources[1].live.reader.documents for one in unit]
    needed = epochs * sum(len(text) + 1 for text in documents)
    seen: Counter[int] = Counter()
    tokens = 0
    with TrainLoader(prepared, config, 0, batch_rows, 64) as loader:
        for step in loader:
            texts = np.concatenate([rows.tokens.numpy() for rows in step.micro_batches])
            taken = texts[step.sources.ravel() == 1][:, 1:]
            seen.update(taken.ravel().tolist())
            tokens += taken.size
            if tokens >= needed:
                return [seen[ord(text[0])] / CHARACTERS for text in documents]
    raise AssertionError("unreachable")


@pytest.mark.parametrize(
    ("lanes", "units", "weight", "sizes"),
    [(64, 64, 0.01, 1), (48, 96, 0.003, 1), (48, 20, 0.01, 1), (16, 60, 0.01, 5)],
)
def test_no_document_is_left_unread_or_read_far_more_often(
    lanes: int, units: int, weight: float, sizes: int
) -> None:
    epochs = 1 if sizes == 1 else 3
    times = times_read(rare(lanes, units, weight, sizes), epochs, 1024)
    assert min(times) > 0.3 * epochs
    assert max(times) <= 2 * epochs
    assert np.std(times) < 0.25 * epochs


def test_lanes_of_several_sizes_are_read_evenly_however_often_the_weights_change() -> None:
    stages = [{"step": 2 + number, "weights": {"rare": 0.3 + 0.1 * (number % 2)}} for number in range(150)]
    times = times_read(rare(16, 16, 0.3, 8, curriculum=stages), 2, 32)
    assert min(times) >= 1
    assert max(times) <= 3


def test_every_source_of_numbered_rows_reads_every_token_equally_often() -> None:
    """Tokens that do not fill a last row are read in the next epoch's first one, and so on."""
    data = toy({"a": ToyRows(20 * T + 6), "b": ToyRows(3 * T, 1000)})
    seen: Counter[int] = Counter()
    with TrainLoader(*data, 0, 8, 8) as loader:
        for step in itertools.islice(loader, 200):
            for rows in step.micro_batches:
                seen.update(rows.tokens[:, 1:].ravel().tolist())
    for first, count in ((2, 20 * T + 5), (1001, 3 * T - 1)):
        times = [seen[token] for token in range(first, first + count)]
        assert max(times) - min(times) <= 2
