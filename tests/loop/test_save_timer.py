"""Checkpoints by the clock."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llmkit.loop.hook import Request
from llmkit.loop.save_timer import SaveTimer
from llmkit.parallel.mesh import Mesh


def asked(timer: SaveTimer, seconds: float, rank: int = 0) -> bool:
    trainer: Any = SimpleNamespace(mesh=Mesh(rank, 2), clock=lambda: seconds)
    return timer.request(trainer) == Request(save=True)


def test_it_asks_once_after_its_minutes_since_the_last_save() -> None:
    timer = SaveTimer(2.0, now=10.0)
    assert not asked(timer, 129.0)
    assert asked(timer, 130.0)
    assert not asked(timer, 131.0), "a save that failed is tried again after as much time"
    trainer: Any = SimpleNamespace(clock=lambda: 200.0)
    timer.after_save(trainer, Path())
    assert not asked(timer, 319.0)
    assert asked(timer, 320.0)


def test_only_the_clock_of_rank_0_counts_and_0_minutes_are_never() -> None:
    assert not asked(SaveTimer(2.0, now=0.0), 1e9, rank=1)
    assert not asked(SaveTimer(0.0, now=0.0), 1e9)
