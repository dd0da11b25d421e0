"""Boxes and flat ranges: cutting, meeting, taking away."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmkit.checkpoint.pieces import Piece, intersect, runs, subtract
from llmkit.parallel.slices import Box, box_size


def indices(box: Box) -> set[tuple[int, ...]]:
    """Every element of a box by its indices."""
    ranges = [torch.arange(lo, hi) for lo, hi in box]
    return {tuple(row) for row in torch.cartesian_prod(*ranges).view(-1, len(box)).tolist()} if box else {()}


def boxes(dimensions: int) -> st.SearchStrategy[Box]:
    side = st.tuples(st.integers(0, 4), st.integers(1, 4)).map(lambda pair: (pair[0], pair[0] + pair[1]))
    return st.tuples(*[side] * dimensions)


@given(data=st.data())
def test_runs_cover_a_flat_range_in_order_and_nothing_else(data: st.DataObject) -> None:
    box = data.draw(st.integers(0, 4).flatmap(boxes))
    lo = data.draw(st.integers(0, box_size(box)))
    hi = data.draw(st.integers(lo, box_size(box)))
    tensor = torch.arange(8 ** len(box)).view((8,) * len(box))
    expected = tensor[tuple(slice(a, b) for a, b in box)].reshape(-1)[lo:hi]
    cut = list(runs(box, (lo, hi)))
    found = [tensor[tuple(slice(a, b) for a, b in run.box)].reshape(-1) for run in cut]
    assert torch.equal(torch.cat([*found, expected[:0]]), expected)
    starts = [lo + sum(box_size(run.box) for run in cut[:i]) for i in range(len(cut))]
    assert [run.start for run in cut] == starts
    assert len(cut) <= max(1, 2 * len(box) - 1)


@given(data=st.data())
def test_taking_away_leaves_the_rest_in_disjoint_boxes(data: st.DataObject) -> None:
    dimensions = data.draw(st.integers(0, 3))
    a, b = data.draw(boxes(dimensions)), data.draw(boxes(dimensions))
    rest = subtract(a, b)
    shared = intersect(a, b)
    assert set().union(*map(indices, rest)) == indices(a) - indices(b)
    assert sum(map(box_size, rest)) == len(indices(a) - indices(b))
    assert (indices(shared) if shared is not None else set()) == indices(a) & indices(b)


def test_a_run_shows_a_box_inside_it() -> None:
    box = ((2, 6), (1, 4))
    flat = torch.arange(math.prod((4, 3)))
    (_, middle, _) = runs(box, (2, 10))
    assert middle.box == ((3, 5), (1, 4))
    assert middle.view(flat[2:10], 2, ((4, 5), (2, 4))).tolist() == [[7, 8]]


@pytest.mark.parametrize(
    ("box", "within", "count"),
    [
        (((0, 4), (0, 5)), (0, 20), 20),  # leaves the shape
        (((0, 4), (0, 4)), (0, 17), 17),  # leaves the box
        (((0, 4), (0, 4)), (3, 3), 0),  # empty
        (((0, 4), (0, 4)), (0, 16), 15),  # not as long as the data
    ],
)
def test_a_piece_that_does_not_fit_is_refused(box: Box, within: tuple[int, int], count: int) -> None:
    with pytest.raises(ValueError, match=r"box|range"):
        Piece("w", "master", (4, 4), box, within, torch.zeros(count))
