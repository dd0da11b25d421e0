from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from llmkit.data.prefetch import Prefetch


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
    assert third.wait(10)  # two in the queue, the third at hand: the thread waits
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
