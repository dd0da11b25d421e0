from __future__ import annotations

import pickle
from itertools import islice

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data.live.lanes import lane_table
from llmkit.data.live.schedule import LaneSchedule
from llmkit.data.sampler import MixtureSampler

COLUMNS = 12
loads = st.lists(st.integers(8, 40), min_size=1, max_size=15)


def sampler_of(sources: int, later: list[float] | None = None) -> MixtureSampler:
    """Of live sources and a stored one, which comes last; later: other weights from position 500 on."""
    sampler = MixtureSampler(5, [*[None] * sources, 900], [1.0] * (sources + 1), length=4, columns=COLUMNS)
    if later is not None:
        sampler.reweight(500, later)
    return sampler


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(loads, min_size=1, max_size=2), ranks=st.integers(1, 7),
    begin=st.integers(0, 700), count=st.integers(0, 200),
)  # fmt: skip
def test_every_row_is_taken_by_its_rank_and_all_ranks_move_a_lane_alike(
    sizes: list[list[int]], ranks: int, begin: int, count: int
) -> None:
    tables = {index: lane_table(each, COLUMNS) for index, each in enumerate(sizes)}
    sampler = sampler_of(len(sizes), [1.0, *[0.5] * len(sizes)])
    positions = np.arange(begin, begin + count)
    source_of = dict(zip(positions.tolist(), sampler.sources(positions).tolist(), strict=True))
    moved: dict[tuple[int, int], list[int]] = {}
    for rank in range(ranks):
        schedule = LaneSchedule(sampler, tables, rank, ranks)
        rows = schedule.between(begin, begin + count)
        assert (np.diff(rows.positions) > 0).all()
        own = {g for g in source_of if g % ranks == rank and source_of[g] in tables}
        assert own <= set(rows.positions.tolist())
        mine: dict[tuple[int, int], list[int]] = {}
        for position, source, lane in zip(*(each.tolist() for each in rows), strict=True):
            assert source_of[position] == source and lane in schedule.served[source]
            turn = int(sampler.in_column(source, np.array([position]))[0])
            assert lane == tables[source][turn % len(tables[source]), position % COLUMNS]
            mine.setdefault((source, lane), []).append(position)
        for key, taken in mine.items():
            assert moved.setdefault(key, taken) == taken


def test_iterating_gives_the_rows_from_the_start_on_whatever_the_pieces() -> None:
    sampler, tables = sampler_of(2), {0: lane_table([9] * 4, COLUMNS), 1: lane_table([5, 9], COLUMNS)}
    schedule = LaneSchedule(sampler, tables, 1, 3, start=777)
    _, sources, lanes = schedule.between(777, 12_000)
    keys = list(zip(sources.tolist(), lanes.tolist(), strict=True))
    assert len(keys) > 3000
    assert list(islice(pickle.loads(pickle.dumps(schedule)), len(keys))) == keys


def test_iterating_ends_where_no_live_source_is_drawn_any_more() -> None:
    schedule = LaneSchedule(sampler_of(1, [0.0, 1.0]), {0: lane_table([9] * 4, COLUMNS)}, 0, 1)
    assert len(list(schedule)) == schedule.between(0, 500)[0].size > 100
