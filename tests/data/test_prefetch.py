from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator

import pytest

from llmkit.data import prefetch as module
from llmkit.data.prefetch import Interrupted, Prefetch
from llmkit.errors import RunFault
from tests.limits import HANG


def test_items_come_in_order_and_end() -> None:
    ahead = Prefetch(iter(range(100)), depth=2)
    assert list(ahead) == list(range(100))
    assert list(ahead) == []


def test_the_thread_stays_within_its_depth() -> None:
    made: list[int] = []
    third = threading.Event()

    def items() -> Iterator[int]:
        for i in range(10):
            made.append(i)
            if i == 2:
                third.set()
            yield i

    ahead = Prefetch(items(), depth=2)
    assert third.wait(HANG)  # two in the queue, the third at hand: the thread waits
    assert made == [0, 1, 2]
    assert next(ahead) == 0
    ahead.close()


def test_a_fault_comes_after_what_was_made_before_it_and_stays() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    ahead = Prefetch(items(), depth=4)
    assert next(ahead) == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            next(ahead)


def test_close_ends_a_thread_that_waits_for_room() -> None:
    ahead = Prefetch(iter(int, 1), depth=1)  # endless
    assert next(ahead) == 0
    ahead.close()
    assert not ahead._thread.is_alive()
    assert list(ahead) == []
    ahead.close()


def test_a_process_can_end_without_close() -> None:
    ahead = Prefetch(iter(int, 1), depth=1)
    assert ahead._thread.daemon
    ahead.close()


class Stalled:
    """An item that comes when `release` is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "POLL_SECONDS", 0.001)
        self._released = threading.Event()
        self.release: Callable[[], None] = self._released.set

    def items(self) -> Iterator[str]:
        assert self._released.wait(HANG)
        yield "late"


def test_who_waits_too_long_is_told_for_what(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Stalled(monkeypatch)
    ahead = Prefetch(source.items(), 2, stall_seconds=0.002, describe=lambda: "source web")
    with pytest.raises(RunFault, match=r"nothing came from source web for 0.002 seconds"):
        next(ahead)
    source.release()
    ahead.close()


def test_what_takes_long_but_gets_on_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    source, asked = Stalled(monkeypatch), itertools.count()

    def progress() -> int:
        count = next(asked)
        if count == 20:
            source.release()
        return count

    ahead = Prefetch(source.items(), 2, stall_seconds=0.001, heartbeat=progress)
    assert list(ahead) == ["late"]


def test_who_waits_can_give_up_and_wait_again(monkeypatch: pytest.MonkeyPatch) -> None:
    source, answers = Stalled(monkeypatch), iter([0, 0, 3])
    ahead = Prefetch(source.items(), 2, stall_seconds=HANG, give_up=lambda: next(answers, 0))
    with pytest.raises(Interrupted) as error:
        next(ahead)
    assert error.value.why == 3
    source.release()
    assert list(ahead) == ["late"]
