"""Which parameters share a bucket, and where in it each begins."""

from __future__ import annotations

from itertools import pairwise

import pytest

from llmkit.plan.buckets import (
    BucketSizes,
    deepspeed_bucket,
    fill,
    most_alive,
    offsets,
    reduce_bucket,
)


def test_the_last_parameters_fill_the_first_bucket() -> None:
    parameters = [(10, 0), (10, 0), (25, 0), (10, 0), (10, 0)]
    assert fill(parameters, 4 * 20, 2) == [[4, 3], [2], [1, 0]]
    assert fill(parameters, 4 * 1000, 2) == [[4, 3, 2, 1, 0]]


def test_numbers_do_not_share_a_bucket_and_what_is_complete_first_comes_first() -> None:
    parameters = [(1, 0), (1, 1), (1, 0), (1, 1), (1, 1)]
    assert fill(parameters, 4 * 100, 2) == [[4, 3, 1], [2, 0]]
    assert fill(parameters, 4 * 2, 2) == [[4, 3], [2, 0], [1]]


def test_of_many_ranks_buckets_grow_with_their_number() -> None:
    parameters = [(1, 0)] * 8
    assert [len(fill(parameters, 4 * 2, ranks)) for ranks in (1, 63, 64, 128)] == [4, 4, 2, 1]


@pytest.mark.parametrize(
    ("partitioned", "ranks", "wanted"),
    [(False, 4, ([0, 100, 101], 301)), (True, 1, ([0, 128, 192], 448)), (True, 4, ([0, 128, 192], 512))],
)
def test_slices_of_a_bucket_are_equally_long(
    partitioned: bool, ranks: int, wanted: tuple[list[int], int]
) -> None:
    assert offsets([100, 1, 200], ranks, partitioned=partitioned) == wanted


def test_buffers_of_a_small_model_stay_small_and_at_stage_2_hold_the_largest_parameter() -> None:
    assert deepspeed_bucket(8_000) == 1024 and deepspeed_bucket(10**10) == 2**25
    assert deepspeed_bucket(10**10, BucketSizes(deepspeed=3000)) == 3000
    assert [reduce_bucket(stage, 10**10, 2**26 + 1) for stage in (1, 2, 3)] == [2**25, 2**26 + 2, 2**25]


def test_at_stage_2_the_bucket_that_fills_and_the_one_before_are_in_memory() -> None:
    assert most_alive([]) == 0
    assert most_alive([[([1, 0], 30)]]) == 30
    assert most_alive([[([3], 10), ([2], 20), ([1], 40), ([0], 5)]]) == 20 + 40
    # The second, complete before the first is, waits for it: buckets are sent in their order.
    assert most_alive([[([4, 0], 10), ([3], 20), ([2, 1], 40)]]) == 10 + 20 + 40
    # Of two sets of ranks each has its own.
    assert most_alive([[([4], 10), ([2], 20)], [([3], 1), ([1], 2), ([0], 4)]]) == 10 + 20 + 1


@pytest.mark.parametrize("ranks", [2, 8])
def test_at_stage_2_a_model_has_few_of_its_gradients_in_memory(ranks: int) -> None:
    """The head and the embedding, and between them layers of three matrices."""
    parameters = [(50_000, 0), *[(1000, 0), (2000, 0), (3000, 0)] * 8, (50_000, 0)]
    buckets = fill(parameters, 4 * 8000, ranks)
    sizes = [offsets([parameters[i][0] for i in each], ranks, partitioned=True)[1] for each in buckets]
    found = most_alive([list(zip(buckets, sizes, strict=True))])
    assert found == max(a + b for a, b in pairwise(sizes)) < sum(sizes) / 2
