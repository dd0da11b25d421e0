from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data import mixing
from llmkit.data.mixing import MIX_PERIOD, quotas
from llmkit.data.sampler import MixtureSampler
from llmkit.data.shuffle import key, permute
from llmkit.errors import UserError

GOLDEN_PERMUTATION = [3555, 11789, 10822, 3579, 5706, 822]
GOLDEN_ROWS_2 = (
    [0, 2, 1, 0, 0, 1, 0, 0],
    [60, 1431, 749, 60, 60, 749, 60, 60],
    [89, 5, 35, 388, 872, 0, 303, 409],
)

GOLDEN_ROWS = (
    [2, 1, 1, 0, 2, 0, 1, 0],
    [1333, 744, 744, 59, 1333, 59, 744, 59],
    [10002, 30016, 30005, 59231, 10004, 59429, 30019, 59540],
)

SEEDS = st.integers(0, 2**64 - 1)


@given(n=st.integers(1, 3000), seed=SEEDS)
def test_permute_is_a_bijection(n: int, seed: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(n), n, key(seed))), np.arange(n))


@pytest.mark.parametrize("n", [65_536, 65_537, 1_000_003])
def test_permute_is_a_bijection_around_powers_of_two_and_for_many(n: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(n), n, key(5))), np.arange(n))


@given(n=st.integers(2, 10**15), seed=SEEDS, data=st.data())
@settings(max_examples=50)
def test_permute_of_a_huge_range_stays_inside_it_and_keeps_values_apart(
    n: int, seed: int, data: st.DataObject
) -> None:
    index = np.array(data.draw(st.lists(st.integers(0, n - 1), unique=True, min_size=1, max_size=50)))
    out = permute(index, n, key(seed))
    assert out.min() >= 0
    assert out.max() < n
    assert len(set(out.tolist())) == len(index)


def test_a_key_for_each_element_gives_what_each_key_gives_alone() -> None:
    index, words = np.array([0, 5, 5, 99]), np.array([7, 7, 8, 9])
    alone = [permute(index[i : i + 1], 100, key(3, int(words[i])))[0] for i in range(4)]
    assert permute(index, 100, key(3, words)).tolist() == alone


def test_permute_scatters_neighbours() -> None:
    n = 100_003
    jumps = np.abs(np.diff(permute(np.arange(n), n, key(1))))
    assert abs(jumps.mean() / n - 1 / 3) < 0.005  # 1/3 for a random permutation


def test_key_tells_the_order_of_its_words() -> None:
    assert key(1, 2)[0] != key(2, 1)[0]
    assert key(0)[0] != key(0, 0)[0]


def test_the_order_is_fixed_for_good() -> None:
    """Runs resumed with a later version read on in the same order: these numbers never change."""
    assert permute(np.arange(6), 11_992, key(5)).tolist() == GOLDEN_PERMUTATION
    source, epoch, row = MixtureSampler(11, [1000, 40, 7], [0.6, 0.3, 0.1], version=2).rows(99_995, 8)
    assert (source.tolist(), epoch.tolist(), row.tolist()) == GOLDEN_ROWS_2
    sampler = MixtureSampler(11, [10_003, 403, 75], [0.6, 0.3, 0.1], length=10, columns=48)
    source, epoch, row = sampler.rows(99_995, 8)
    assert (source.tolist(), epoch.tolist(), row.tolist()) == GOLDEN_ROWS
    assert sampler.in_column(0, np.arange(99_995, 100_003)).tolist() == [1250] * 3 + [1251] + [1250] * 4


@given(weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
def test_quotas_fill_the_block_and_are_within_a_slot_of_the_weights(weights: list[float]) -> None:
    count = quotas(weights)
    assert count.sum() == MIX_PERIOD
    assert np.abs(count - np.array(weights) / sum(weights) * MIX_PERIOD).max() < 1


def test_a_weight_without_a_slot_is_named() -> None:
    told = r"weight of data.sources.1, 1e-06, is 1e-06 of all weights, and .* 1/65537"
    with pytest.raises(UserError, match=told):
        quotas([1.0, 1e-6])


@pytest.mark.parametrize("weights", [[1e308, 1e308], [5e-324, 5e-324], [2e-310, 2e-310]])
def test_extreme_weights_are_shares_like_others(weights: list[float]) -> None:
    assert quotas(weights).tolist() == quotas([1.0, 1.0]).tolist()


@given(
    size=st.integers(1, 400), length=st.integers(1, 30), start=st.integers(0, 2000), count=st.integers(1, 300)
)
def test_rows_of_all_epochs_are_the_endless_repetition_in_pieces(
    size: int, length: int, start: int, count: int
) -> None:
    size = max(size, length)
    _, epoch, row = MixtureSampler(3, [size], [1.0], length=length).rows(0, start + count)
    epochs = int(epoch[-1])
    ends = [-(-e * size // length) for e in range(epochs + 2)]
    for e in range(epochs):
        assert sorted(row[ends[e] : ends[e + 1]]) == (
            list(range(ends[e], ends[e + 1])) if size % length else list(range(size // length))
        )
    assert (epoch == np.searchsorted(ends, np.arange(start + count), side="right") - 1).all()


def test_every_token_of_a_source_is_read_as_often_as_any_other() -> None:
    """Three documents of 100 tokens and rows of 160: nothing but whole rows would never reach the third."""
    _, _, row = MixtureSampler(0, [303], [1.0], length=160).rows(0, 303)
    tokens = (row[:, None] * 160 + np.arange(160)) % 303
    assert np.bincount(tokens.ravel(), minlength=303).tolist() == [160] * 303


@pytest.mark.parametrize("columns", [7, 48, 64, 96, 256, 1000])
@pytest.mark.parametrize("share", [0.3, 0.1, 0.01, 0.001, 0.00005])
def test_every_column_draws_a_source_as_often_as_every_other(columns: int, share: float) -> None:
    sampler = MixtureSampler(0, [None, None, None], [0.9 - share, 0.1, share], columns=columns)
    positions = np.arange(5 * MIX_PERIOD)
    drawn = positions[sampler.sources(positions) == 2]
    for stop in (MIX_PERIOD // 2, MIX_PERIOD, 5 * MIX_PERIOD):
        counts = np.bincount(drawn[drawn < stop] % columns, minlength=columns)
        assert counts.max() - counts.min() <= 3
    counts = sampler.in_column(2, drawn)
    for column in range(0, columns, columns // 7):
        own = counts[drawn % columns == column]
        assert own.tolist() == list(range(own.size))


@pytest.mark.parametrize("columns", [1, 7, 48, 64])
def test_rows_of_a_column_are_counted_over_all_changes_of_weights(columns: int) -> None:
    sampler = MixtureSampler(3, [None, None], [0.8, 0.2], start=5, columns=columns)
    for number, position in enumerate([9, 100, 101, 350, 1000, 1041]):
        sampler.reweight(position, [[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]][number % 3])
    positions = np.arange(5, 2000)
    source = sampler.sources(positions)
    drawn = [0] * columns
    expected = []
    for position in positions[source == 1].tolist():
        expected.append(drawn[position % columns])
        drawn[position % columns] += 1
    assert sampler.in_column(1, positions[source == 1]).tolist() == expected
    assert sampler.in_column(1, positions[source == 1][:9]).tolist() == expected[:9], "and backwards"


def test_memory_and_start_do_not_grow_with_the_number_of_changes() -> None:
    sampler = MixtureSampler(0, [1000, 1000], [1.0, 1.0], columns=48)
    mixing.slots_for.cache_clear()
    for stage in range(1, 300):
        sampler.reweight(stage * 100, [1.0, 1.0 + stage])
    assert mixing.slots_for.cache_info().currsize == 0, "built only where a position needs it"
    sampler.rows(450, 300)
    assert mixing.slots_for.cache_info().misses == 8
    assert sampler.consumed(29_900).sum() == 29_900
    assert mixing.slots_for.cache_info().currsize <= 4


def test_each_finished_epoch_holds_each_row_once_across_changes_of_weights() -> None:
    sizes = [1_000, 40_000, 7]
    sampler = MixtureSampler(11, sizes, [0.4, 0.5, 0.1])
    sampler.reweight(70_001, [0.1, 0.8, 0.1])
    sampler.reweight(140_000, [0.3, 0.3, 0.4])
    source, epoch, row = sampler.rows(0, 180_000)
    for i, size in enumerate(sizes):
        epochs = epoch[source == i]
        for e in range(epochs.max() + 1):
            rows = np.sort(row[(source == i) & (epoch == e)])
            if e < epochs.max():
                assert np.array_equal(rows, np.arange(size)), (i, e)
            else:
                assert len(np.unique(rows)) == len(rows), (i, e)


def test_a_change_of_weights_at_a_segments_start_replaces_it() -> None:
    sampler = MixtureSampler(3, [50, 60], [0.5, 0.5])
    sampler.reweight(0, [0.9, 0.1])
    fresh = MixtureSampler(3, [50, 60], [0.9, 0.1])
    assert len(sampler.segments) == 1
    assert all(np.array_equal(a, b) for a, b in zip(sampler.rows(0, 500), fresh.rows(0, 500)))


@given(start=st.integers(0, 150_000), count=st.integers(1, 300))
@settings(max_examples=30, deadline=None)
def test_any_window_is_a_part_of_the_whole(start: int, count: int) -> None:
    sampler = MixtureSampler(11, [1_000, 40_000, 7], [0.4, 0.5, 0.1])
    sampler.reweight(100_001, [0.1, 0.8, 0.1])
    around = sampler.rows(max(0, start - 20), count + 40)
    part = sampler.rows(start, count)
    offset = start - max(0, start - 20)
    assert all(np.array_equal(a, b[offset : offset + count]) for a, b in zip(part, around))
    assert np.array_equal(sampler.sources(np.arange(start, start + count, 3)), part[0][::3])


def test_epochs_and_seeds_give_other_orders() -> None:
    sampler = MixtureSampler(1, [500], [1.0])
    _, _, row = sampler.rows(0, 1000)
    assert not np.array_equal(row[:500], row[500:])
    assert not np.array_equal(row, MixtureSampler(2, [500], [1.0]).rows(0, 1000)[2])


def test_shares_follow_the_weights_in_every_stretch() -> None:
    source, _, _ = MixtureSampler(0, [10_000, 10_000], [3.0, 1.0]).rows(12_345, 4096)
    assert abs((source == 0).mean() - 0.75) < 0.03


def test_a_source_of_one_row_is_repeated() -> None:
    source, epoch, row = MixtureSampler(0, [1], [2.5]).rows(5, 3)
    assert (source.tolist(), epoch.tolist(), row.tolist()) == ([0, 0, 0], [5, 6, 7], [0, 0, 0])
