"""Parts of a loss, against sums that are taken token by token."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
import torch

from llmkit.batch import IGNORE, Batch
from llmkit.engine.loss_parts import (
    position_ranges,
    positions_in_documents,
    sums_by_position,
    sums_by_source,
)


@pytest.mark.parametrize(
    ("length", "ranges"),
    [
        (1, [(0, 1)]),
        (16, [(0, 16)]),
        (33, [(0, 16), (16, 32), (32, 33)]),
        (200, [(0, 16), (16, 32), (32, 64), (64, 128), (128, 200)]),
    ],
)
def test_ranges_of_positions_double_and_end_with_the_row(length: int, ranges: list[tuple[int, int]]) -> None:
    assert position_ranges(length) == ranges


@pytest.mark.parametrize("masked", [False, True])
def test_each_target_counts_where_it_is_in_its_document(masked: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(9, (3, 150), generator=draw)
    labels[torch.rand(labels.shape, generator=draw) < 0.2] = IGNORE
    nats = torch.rand(labels.shape, generator=draw)
    documents = (torch.rand(labels.shape, generator=draw) < 0.02).cumsum(1).int() if masked else None
    expected: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for row in range(3):
        position = -1
        for t in range(150):
            starts = documents is not None and (t == 0 or documents[row, t] != documents[row, t - 1])
            position = 0 if starts else position + 1
            if labels[row, t] != IGNORE:
                part = expected[int(math.log2(position / 16)) + 1 if position >= 16 else 0]
                part[0] += float(nats[row, t])
                part[1] += 1
    found = sums_by_position(nats, Batch(labels, labels, documents))
    assert found.shape == (5, 2) and found.dtype == torch.float64
    torch.testing.assert_close(found, torch.tensor([expected[k] for k in range(5)], dtype=torch.float64))


def test_positions_begin_anew_with_each_document() -> None:
    documents = torch.tensor([[0, 0, 1, 1, 1, 2], [3, 3, 3, 3, 4, 5]], dtype=torch.int32)
    assert positions_in_documents(documents).tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 0, 0]]


def test_a_row_that_is_not_finite_spoils_its_own_source_only() -> None:
    of = torch.tensor([[True, False], [False, True], [False, False], [True, False]])
    nats, targets = torch.tensor([1.0, math.nan, 0.0, 2.5]), torch.tensor([3, 4, 0, 5])
    found = sums_by_source([(nats[:1], targets[:1], of[:1]), (nats[1:], targets[1:], of[1:])])
    assert found[0].tolist() == [3.5, 8.0]
    assert math.isnan(found[1, 0]) and found[1, 1] == 4.0
