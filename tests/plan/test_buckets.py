"""Which parameters share a bucket, and where in it each begins."""

from __future__ import annotations

import pytest

from llmkit.plan.buckets import BucketSizes, deepspeed_bucket, fill, offsets, reduce_bucket


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
