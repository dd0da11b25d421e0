"""State as pieces, and pieces as state, for slices that are cut anywhere."""

from __future__ import annotations

from itertools import pairwise
from unittest.mock import patch

import torch
from hypothesis import given
from hypothesis import strategies as st

from llmkit.engine import state_shards
from llmkit.engine.state_shards import Source, StateShard, load_shards, share_out, to_pieces
from llmkit.parallel.mesh import Axis
from llmkit.parallel.slices import ParameterSlice

# A stored matrix of 7 rows of 5: rows 0-2 are all of "a", rows 2-5 rows 4-7 of "b" (9 rows), 5-7 padding.
A = ParameterSlice("a", (2, 5), ((0, 2), (0, 5)), 0, 2)
B = ParameterSlice("b", (9, 5), ((4, 7), (0, 5)), 2, 5)
PARTS = {"stack": [A, B]}


class Numbers(Source):
    """Element i of a tensor's flat storage is i, plus 1000 for "b"."""

    def names(self, kind):
        return {"master": ["a", "b"], "momentum_buffer": ["b"]}.get(kind, [])

    def read(self, name, kind, box=None, range=None):
        part = A if name == "a" else B
        full = torch.arange(float(torch.Size(part.shape).numel())).view(part.shape) + 1000.0 * (name == "b")
        return full[tuple(slice(lo, hi) for lo, hi in box)].reshape(-1)[slice(*range)]


def slots(cuts: list[int]) -> list[StateShard]:
    """The matrix's 35 elements, cut at these places."""
    edges = [0, *cuts, 35]
    return [
        StateShard("stack", "master", torch.full((hi - lo,), float("nan")), lo) for lo, hi in pairwise(edges)
    ]


CUTS = st.lists(st.integers(0, 35), max_size=5).map(sorted)


@given(CUTS)
def test_filling_gives_each_element_its_value_and_padding_zero(cuts):
    filled = slots(cuts)
    load_shards(filled, PARTS, Numbers())
    flat = torch.cat([slot.data for slot in filled])
    assert flat[:10].tolist() == list(range(10))
    assert flat[10:25].tolist() == [1020.0 + i for i in range(15)]
    assert flat[25:].eq(0.0).all()


def test_moments_that_the_source_has_not_are_zero_and_masters_are_read_whatever_it_says():
    moment = StateShard("stack", "momentum_buffer", torch.full((35,), float("nan")), 0)
    load_shards([moment], PARTS, Numbers())
    assert moment.data[:10].eq(0.0).all() and moment.data[10:25].tolist() == [1020.0 + i for i in range(15)]
    damaged = Numbers()
    damaged.names = lambda kind: []
    (master,) = slots([])
    load_shards([master], PARTS, damaged)
    assert master.data[:10].tolist() == list(range(10))


@given(CUTS)
def test_pieces_hold_each_element_of_the_parts_once(cuts):
    filled = slots(cuts)
    load_shards(filled, PARTS, Numbers())
    found: dict[tuple[str, int], float] = {}
    for piece in to_pieces(filled, PARTS):
        for index, value in zip(range(*piece.range), piece.data.tolist(), strict=True):
            assert (piece.name, index) not in found
            found[piece.name, index] = value
    assert found == {("a", i): float(i) for i in range(10)} | {("b", i): 1020.0 + i for i in range(15)}


def test_what_the_source_does_not_have_starts_at_zero():
    slot = StateShard("stack", "exp_avg", torch.ones(35), 0)
    load_shards([slot], PARTS, Numbers())
    assert slot.data.eq(0.0).all()


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(1, 5))
def test_ranks_that_hold_the_same_share_it_out(sizes, ranks):
    """Every element is one rank's; none writes much more than another, and parts are not small."""
    with patch.object(state_shards, "PART", 8):
        shares = [
            share_out({str(number): (size, Axis(rank, ranks)) for number, size in enumerate(sizes)})
            for rank in range(ranks)
        ]
    for number, size in enumerate(sizes):
        ranges = sorted(share[str(number)] for share in shares if str(number) in share)
        assert ranges[0][0] == 0 and ranges[-1][1] == size
        assert all(one[1] == two[0] for one, two in pairwise(ranges))
        assert all(hi - lo >= min(8, size) for lo, hi in ranges)


def test_one_large_parameter_is_no_load_of_one_rank():
    sizes = {"embedding.weight": 2**28, **{f"blocks.{number}": 2**22 for number in range(32)}}
    for ranks in (2, 8, 64):
        held = [{name: (size, Axis(rank, ranks)) for name, size in sizes.items()} for rank in range(ranks)]
        shares = list(map(share_out, held))
        written = [sum(hi - lo for lo, hi in share.values()) for share in shares]
        assert sum(written) == sum(sizes.values()) and max(written) <= 1.1 * sum(written) / ranks


def test_a_shard_has_the_elements_of_a_range_that_it_holds():
    shard = StateShard("stack", "master", torch.arange(10.0, 20.0), 10)
    assert shard.within(12, 15).data.tolist() == [12.0, 13.0, 14.0] and shard.within(12, 15).start == 12
    assert len(shard.within(0, 10).data) == len(shard.within(20, 35).data) == 0
    assert shard.within(0, 35).data.equal(shard.data)
