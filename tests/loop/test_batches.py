"""What a rank does where another, or itself, has no batch for the next step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from llmkit.data.loader import TrainLoader
from llmkit.data.prefetch import GaveUp
from llmkit.errors import SourceDryError
from llmkit.loop.batches import DRY, next_batch
from llmkit.loop.control import NOTHING
from tests.data.live.fakes import live
from tests.data.toy import toy

STEPS, BATCH_ROWS = 3, 2


class Others:
    """A run of two ranks of which this is the first; `others` is why the other one has no batch."""

    def __init__(self, others: int) -> None:
        data = toy({"web": live([["abcdefgh"] * 20] * 2)})
        self.loader = TrainLoader(*data, 5, BATCH_ROWS, 1, 0, 2)
        for _ in range(STEPS):
            next(self.loader)
        self.before = self.loader.state()
        self.done: list[Any] = []
        self.run: Any = SimpleNamespace(
            loader=self.loader,
            clock=SimpleNamespace(waiting=lambda: self.loader),  # closes it, too
            control=SimpleNamespace(
                largest=lambda value: [max(value, others)], close=lambda: self.done.append("control")
            ),
            mesh=SimpleNamespace(gather_texts=lambda text: [text, "source web has run dry"]),
            save=lambda: self.done.append(self.loader.state()) or "step-00000003",
            agreed=NOTHING,
        )
        self.log: Any = SimpleNamespace(flush=lambda run: self.done.append("log"))


def test_a_batch_is_given_where_all_have_one() -> None:
    case = Others(0)
    batch = next_batch(case.run, case.log, case.loader)
    assert batch is not None
    assert (batch.first, case.loader.position, case.done) == (6, 8, [])


def test_where_another_rank_has_run_dry_the_state_before_this_step_is_saved() -> None:
    case = Others(DRY)
    with pytest.raises(SourceDryError, match=r"source web has run dry\. Saved step-00000003"):
        next_batch(case.run, case.log, case.loader)
    assert case.done == ["control", "log", case.before]


def test_where_another_rank_was_asked_to_stop_as_it_waited_nothing_was_taken() -> None:
    case = Others(2)
    assert next_batch(case.run, case.log, case.loader) is None
    assert (case.run.agreed.stop, case.loader.state()) == (2, case.before)


def test_who_gives_up_waiting_takes_nothing_and_says_why() -> None:
    case = Others(0)

    def awaited() -> Any:
        raise GaveUp(1)
        yield

    assert next_batch(case.run, case.log, awaited()) is None
    assert (case.run.agreed.stop, case.loader.state()) == (1, case.before)
