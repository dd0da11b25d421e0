"""What a rank does where another, or itself, has no batch for the next step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from llmkit.data.loader import TrainLoader
from llmkit.data.prefetch import Interrupted
from llmkit.data.rank_batch import RankBatch
from llmkit.errors import SourceDryError, UserError
from llmkit.loop.batches import Batches, NoBatch
from llmkit.loop.control import Control
from llmkit.parallel.mesh import Mesh
from tests.data.live.fakes import live
from tests.data.toy import toy

STEPS, BATCH_ROWS = 3, 2


class OneOfTwo(Control):
    """The first of two ranks; the other one gives `others`: why it stops, whether it has failed, and how
    many lanes its sources have left."""

    def __init__(self, *others: int) -> None:
        super().__init__(Mesh())
        self.others = (*others, 0, 0, 0)

    def largest(self, *values: int) -> list[int]:
        return [max(pair) for pair in zip(values, self.others, strict=False)]


@pytest.fixture
def loader() -> Iterator[TrainLoader]:
    yield from after_some_steps(toy({"web": live([["abcdefgh"] * 20] * 2)}))


@pytest.fixture
def at_its_end() -> Iterator[TrainLoader]:
    """A loader whose source has nothing left on this rank."""
    yield from after_some_steps(toy({"web": live([["abc"]] * 2, max_epochs=1)}, max_epochs={"web": 1}))


def after_some_steps(data: Any) -> Iterator[TrainLoader]:
    loader = TrainLoader(*data, 5, BATCH_ROWS, 1, 0, 2)
    for _ in range(STEPS):
        next(loader)
    yield loader
    loader.close()


def batches(loader: TrainLoader, *others: int) -> Batches:
    return Batches(loader, OneOfTwo(*others), lambda: 0)


def test_a_batch_is_given_where_all_have_one(loader: TrainLoader) -> None:
    batch = batches(loader).next(unready=True)
    assert isinstance(batch, RankBatch)
    assert (batch.first, loader.position) == (6, 8)


def test_where_the_data_of_another_rank_fail_nothing_was_taken(loader: TrainLoader) -> None:
    before = loader.state_dict()
    assert batches(loader, 0, 1).next(unready=True) == NoBatch(failed=True)
    assert loader.state_dict() == before


def test_the_error_of_this_rank_is_given(loader: TrainLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = UserError("line 3 of web is broken")

    def fails(loader: TrainLoader) -> RankBatch:
        raise broken

    monkeypatch.setattr(TrainLoader, "__next__", fails)
    assert batches(loader).next(unready=True) == NoBatch(failed=True, error=broken)
    with pytest.raises(UserError, match="line 3"):
        batches(loader).next(unready=False)  # the others train on theirs: nothing can be agreed on


def test_a_live_source_has_run_dry_where_the_lanes_of_all_ranks_are_at_their_end(
    at_its_end: TrainLoader,
) -> None:
    assert not at_its_end.ready(1), "the ranks have to agree"
    before = at_its_end.state_dict()
    dry = batches(at_its_end, 0, 0, 0).next(unready=True)
    assert isinstance(dry, NoBatch) and isinstance(dry.error, SourceDryError)
    assert "source web has run dry" in str(dry.error)
    assert at_its_end.state_dict() == before


def test_a_live_source_goes_on_where_another_rank_has_some_left(at_its_end: TrainLoader) -> None:
    assert isinstance(batches(at_its_end, 0, 0, 1).next(unready=True), RankBatch)


def test_ranks_that_said_that_they_have_a_batch_do_not_wait_for_each_other(loader: TrainLoader) -> None:
    assert isinstance(batches(loader, 2).next(unready=False), RankBatch)


def test_where_another_rank_was_asked_to_stop_as_it_waited_nothing_was_taken(loader: TrainLoader) -> None:
    before = loader.state_dict()
    assert batches(loader, 2).next(unready=True) == NoBatch(stop=2)
    assert loader.state_dict() == before


def test_who_gives_up_waiting_takes_nothing_and_says_why(
    loader: TrainLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def awaited(loader: TrainLoader) -> RankBatch:
        raise Interrupted(loader.give_up())

    before = loader.state_dict()
    monkeypatch.setattr(TrainLoader, "__next__", awaited)
    stopping = Batches(loader, OneOfTwo(), lambda: 1)
    assert stopping.next(unready=True) == NoBatch(stop=1)
    assert loader.state_dict() == before
