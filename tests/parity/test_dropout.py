"""With dropout, layouts cannot equal each other; what must hold all the same, and that mistakes show."""

from __future__ import annotations

import pytest

from tests.chosen import chosen, few_at_every_commit
from tests.parity.dropout_cases import Findings
from tests.ranks import run_ranks

CAUGHT_BY = {
    "one_seed_for_all_data_ranks": ["data ranks draw differently"],
    "one_stream_for_a_group": [
        "heads on other ranks draw differently",
        "pieces of a sequence draw differently",
    ],
    "no_shared_keys": ["what a group holds alike is alike"],
    "nothing_replayed": ["full recomputation replays", "selective recomputation replays pieces"],
}


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> dict[str, Findings]:
    """Mistake -> findings; "" is without one."""
    return run_ranks(4, "tests.parity.dropout_cases:all_findings", mistakes=chosen(request, "mistake"))[0]


def test_what_is_held_alike_agrees_and_recomputation_replays(found):
    assert len(found[""]) == 24
    assert [what for what, well in found[""].items() if not well] == []


@pytest.mark.parametrize("mistake", few_at_every_commit(CAUGHT_BY, ["no_shared_keys"]))
def test_a_mistake_is_caught(found, mistake):
    wrong = [what for what, well in found[mistake].items() if not well]
    for what in CAUGHT_BY[mistake]:
        assert f"Z0: {what}" in wrong
