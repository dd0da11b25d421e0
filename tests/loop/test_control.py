"""Wishes of a process alone; those of many ranks are exchanged in tests/parallel/test_world.py."""

from __future__ import annotations

from llmkit.loop.control import NOTHING, Control, Wishes
from llmkit.parallel.mesh import Mesh


def test_a_process_alone_gets_what_it_wishes_at_once():
    control = Control(Mesh())
    for wishes in (Wishes(save=1), NOTHING, Wishes(stop=2, max_steps=50)):
        assert control.exchange(wishes) == wishes
    assert control.largest(3) == 3
    control.close()
