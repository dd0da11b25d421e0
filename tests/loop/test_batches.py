"""What a rank does where another, or itself, has no batch for the next step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from llmkit.data.loader import TrainLoader
from llmkit.data.prefetch import GaveUp
from llmkit.errors import RunFault, SourceDryError, UserError
from llmkit.loop.batches import FAILED, next_batch
from llmkit.loop.control import NOTHING, Wishes
from llmkit.parallel.mesh import Mesh
from tests.data.live.fakes import live
from tests.data.toy import toy

STEPS, BATCH_ROWS = 3, 2


class Others:
    """A run of two ranks of which this is the first; `others` is why the other one has no batch, `told` the
    error that it then gives."""

    def __init__(
        self,
        others: int,
        told: Exception | None = None,
        save_fails: bool = False,
        lanes_left: int | None = None,
    ) -> None:
        data = toy({"web": live([["abcdefgh"] * 20] * 2)})
        if lanes_left is not None:  # of the other one, where those of this one are at their end
            data = toy({"web": live([["abc"]] * 2, max_epochs=1)}, max_epochs={"web": 1})
        self.loader = TrainLoader(*data, 5, BATCH_ROWS, 1, 0, 2)
        for _ in range(STEPS):
            next(self.loader)
        self.before = self.loader.state()
        self.done: list[Any] = []
        self.run: Any = SimpleNamespace(
            loader=self.loader,
            clock=SimpleNamespace(waiting=lambda: self.loader),  # closes it, too
            control=SimpleNamespace(
                largest=lambda value, *left: [max(value, others), *(max(n, lanes_left or 0) for n in left)],
                close=lambda: self.done.append("control"),
            ),
            mesh=Mesh(),
            console=SimpleNamespace(note=lambda text: self.done.append("told")),
            save=self.save,
            unsaved_steps=3,
            agreed=NOTHING,
        )
        self.told, self.save_fails = told, save_fails
        self.log: Any = SimpleNamespace(flush=lambda run: self.done.append("log"))

    def save(self) -> str:
        if self.save_fails:
            raise RunFault("the disk is full")
        self.done.append(self.loader.state())
        return "step-00000003"

    def next(self) -> Any:
        """The next batch, where errors of the other rank are this one's, as if gathered."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("llmkit.loop.ends.fail_together", self.together)
            return next_batch(self.run, self.log, self.loader)

    @contextmanager
    def together(self, mesh: Mesh) -> Iterator[None]:
        yield
        if self.told is not None:
            raise self.told


def test_a_batch_is_given_where_all_have_one() -> None:
    case = Others(0)
    batch = next_batch(case.run, case.log, case.loader)
    assert batch is not None
    assert (batch.first, case.loader.position, case.done) == (6, 8, [])


@pytest.mark.parametrize("error", [SourceDryError("web has run dry."), UserError("line 3 of web is broken")])
def test_where_the_data_of_another_rank_fail_the_state_before_this_step_is_saved(error: Exception) -> None:
    case = Others(FAILED, error)
    with pytest.raises(type(error), match=str(error).rstrip(".") + r"\. Saved step-00000003"):
        case.next()
    assert case.done == ["control", "log", case.before, "told"]


def test_a_save_that_fails_does_not_hide_why_the_run_ends() -> None:
    case = Others(FAILED, UserError("line 3 of web is broken"), save_fails=True)
    with pytest.raises(UserError, match=r"line 3 of web is broken\. NOT SAVED: the disk is full"):
        case.next()


def test_where_nothing_was_trained_nothing_is_saved() -> None:
    case = Others(FAILED, UserError("line 3 of web is broken"))
    case.run.unsaved_steps = 0
    with pytest.raises(UserError, match=r"is broken$"):
        case.next()
    assert case.done == ["control", "log"]


@pytest.mark.parametrize("lanes_left", [0, 1])
def test_a_live_source_has_run_dry_where_the_lanes_of_all_ranks_are_at_their_end(lanes_left: int) -> None:
    case = Others(0, lanes_left=lanes_left)
    assert not case.loader.ready(1), "the ranks have to agree"
    if lanes_left:
        assert next_batch(case.run, case.log, case.loader) is not None
        return
    with pytest.raises(SourceDryError, match=r"source web has run dry: .*\. Saved step-00000003"):
        case.next()
    assert case.done == ["control", "log", case.before, "told"]


def test_ranks_that_said_that_they_have_a_batch_do_not_wait_for_each_other() -> None:
    case = Others(2)
    case.run.agreed = Wishes(unready=0)
    assert next_batch(case.run, case.log, case.loader) is not None


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
