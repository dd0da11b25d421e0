"""A part ties rows of a stored parameter to a box of a full tensor."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmkit.parallel.slices import ParameterSlice, box_shape, box_size, check_box, full_box, full_slice


def test_a_full_parameter_is_one_part_that_covers_all_of_it() -> None:
    part = full_slice("norm.weight", (6, 4))
    assert part == ParameterSlice("norm.weight", (6, 4), ((0, 6), (0, 4)), 0, 6)
    assert part.overlap(0, 24) == (0, 24)


def test_a_scalar_counts_as_one_row() -> None:
    assert full_slice("scale", ()).overlap(0, 1) == (0, 1)
    assert full_slice("scale", ()).overlap(1, 5) is None


def test_the_offset_is_where_the_box_starts_in_the_storage() -> None:
    keys = ParameterSlice("k", (8, 10), ((4, 8), (0, 10)), start=6, stop=10)
    assert keys.offset == 60
    assert keys.overlap(0, 60) is None
    assert keys.overlap(55, 65) == (0, 5)
    assert keys.overlap(99, 200) == (39, 40)
    assert keys.overlap(100, 200) is None


def test_padding_rows_belong_to_no_part() -> None:
    embedding = ParameterSlice(
        "embedding", (5, 3), ((4, 5), (0, 3)), start=0, stop=1
    )  # the rank stores rows 4 to 7
    assert embedding.overlap(0, 12) == (0, 3)
    only_padding = ParameterSlice("embedding", (5, 3), ((5, 5), (0, 3)), start=0, stop=0)
    assert only_padding.overlap(0, 12) is None


@given(data=st.data())
def test_any_flat_cut_of_a_fused_parameter_finds_each_element_once(data: st.DataObject) -> None:
    """q/k/v of one rank of two in one matrix, cut flat at random: put together, the pieces are the boxes."""
    head, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    q = torch.arange(4 * head * width).view(4 * head, width)
    k, v = 1000 + q[: 2 * head], 2000 + q[: 2 * head]
    stored = torch.cat([q[2 * head :], k[head:], v[head:]]).view(-1)
    parts = [
        ParameterSlice("q", (4 * head, width), ((2 * head, 4 * head), (0, width)), 0, 2 * head),
        ParameterSlice("k", (2 * head, width), ((head, 2 * head), (0, width)), 2 * head, 3 * head),
        ParameterSlice("v", (2 * head, width), ((head, 2 * head), (0, width)), 3 * head, 4 * head),
    ]
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, len(stored)), max_size=6))), len(stored)]
    for part, tensor in zip(parts, (q, k, v), strict=True):
        expected = tensor[tuple(slice(lo, hi) for lo, hi in part.box)].reshape(-1)
        found = torch.full_like(expected, -1)
        for lo, hi in pairwise(cuts):
            if (inside := part.overlap(lo, hi)) is not None:
                assert torch.all(found[slice(*inside)] == -1)
                found[slice(*inside)] = stored[part.offset + inside[0] : part.offset + inside[1]]
        assert torch.equal(found, expected)


@pytest.mark.parametrize("box", [((0, 3),), ((0, 5), (0, 4)), ((-1, 3), (0, 4)), ((3, 2), (0, 4))])
def test_a_box_outside_the_tensor_is_refused(box: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="box"):
        check_box((4, 4), box)


@pytest.mark.parametrize("rows", [(0, 3), (-1, 3), (2, 1)])
def test_rows_that_cannot_hold_the_box_are_refused(rows: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="cannot hold"):
        ParameterSlice("w", (4, 4), ((0, 4), (0, 4)), *rows)


def test_sizes_and_volume_of_a_box() -> None:
    assert box_shape(((2, 5), (1, 3))) == (3, 2)
    assert box_size(((2, 5), (1, 3))) == 6
    assert box_size(full_box(())) == 1
