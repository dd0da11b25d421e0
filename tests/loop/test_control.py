"""Agreed of a process alone; those of many ranks are exchanged in tests/parallel/test_world.py."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llmkit.loop import control as module
from llmkit.loop.control import NOTHING, Agreed, Control, Poll
from llmkit.parallel.mesh import Mesh


def test_a_process_alone_gets_what_it_wishes_at_once():
    control = Control(Mesh())
    for wishes in (Agreed(save=1), NOTHING, Agreed(stop=2, max_steps=50)):
        assert control.exchange(wishes) == wishes
    assert control.largest(3, 7) == [3, 7]
    control.close()


def test_a_long_phase_is_asked_about_as_often_as_is_cheap(monkeypatch):
    now, asked = [0.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def parts(count: int, seconds: float) -> list[float]:
        """When a phase of so many parts, each of so many seconds, was asked about."""
        poll = Poll(Control(Mesh()), lambda: asked.append(now[0]) or 0)
        asked.clear()
        for _ in range(count):
            assert poll() == 0
            now[0] += seconds
        return [after - before for before, after in itertools.pairwise(asked)]

    fast, slow = parts(2000, 0.01), parts(5, 3.0)
    assert fast[:3] == pytest.approx([0.01, 0.02, 0.04])
    assert set(np.round(fast[6:], 2)) <= {0.49, 0.5}
    assert slow == pytest.approx([3.0] * 4)


def test_a_phase_is_given_up_with_the_reason():
    wishes = iter([0, 3])
    poll = Poll(Control(Mesh()), lambda: next(wishes))
    assert [poll(), poll()] == [0, 3]


def test_an_exchange_that_was_waited_for_still_gives_its_result():
    waited = []
    control = Control(Mesh(0, 2))
    control.settle()
    values = torch.cat([torch.tensor(Agreed(save=1), dtype=torch.int64), torch.zeros(4, dtype=torch.int64)])
    control._sent = values, SimpleNamespace(wait=lambda: waited.append(1))
    control.settle()
    assert waited == [1]
    assert control.close() == Agreed(save=1)
