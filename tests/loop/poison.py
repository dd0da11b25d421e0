"""Rows that do harm: noise at some positions of the order, in which no model could have learnt anything."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator
from unittest.mock import patch

import torch

from llmkit.batch import Rows
from llmkit.data.loader import TrainLoader
from llmkit.data.rank_batch import RankBatch


def _noise(rows: Rows, positions: list[int], bad: Container[int]) -> Rows:
    tokens = rows.tokens.clone()
    for index, position in enumerate(positions):
        if position in bad:
            draw = torch.Generator().manual_seed(position)
            tokens[index] = torch.randint(128, 256, tokens.shape[1:], generator=draw, dtype=tokens.dtype)
    return rows._replace(tokens=tokens)


@contextlib.contextmanager
def poisoned(bad: Container[int]) -> Iterator[None]:
    """In here the rows at these positions are noise, whichever rank reads them and whenever."""
    take = TrainLoader.__next__

    def next_step(loader: TrainLoader) -> RankBatch:
        step = take(loader)
        size = len(step.positions) // len(step.micro_batches)
        positions = step.positions.tolist()
        micro_batches = [
            _noise(rows, positions[number * size : (number + 1) * size], bad)
            for number, rows in enumerate(step.micro_batches)
        ]
        return step._replace(micro_batches=micro_batches)

    with patch.object(TrainLoader, "__next__", next_step):
        yield
