"""ZeRO as on a GPU, by the order of its calls: no memory is freed that a stream reads, no timer waits."""

from __future__ import annotations

import pytest

from tests.ranks import run_ranks


@pytest.fixture(scope="module")
def ranks() -> list[dict]:
    return run_ranks(2, "tests.engine.streams:steps", stages=[1, 2, 3])


def test_no_gradient_is_freed_that_the_reduction_stream_still_reads(ranks):
    for found in ranks:
        assert found["2"]["overlap"]
        assert found["2"]["unsafe"] == []
        # Large matrices were sent, and not all in one message.
        assert len(found["2"]["reduced"]) > 4 and max(found["2"]["reduced"]) >= found["2"]["largest"] > 3000


@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_no_timer_waits_for_the_device(ranks, stage):
    assert "timer.py" not in ranks[0][stage]["waits"]
