"""A save and a restart of many ranks, simulated: what they cost one rank does not grow out of hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import checkpoint_scale


def test_sixty_four_ranks_save_and_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each reads what was saved; `restart` compares every element."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    found = checkpoint_scale.simulate(64, 9, tmp_path)
    assert list(found) == [
        "rank 0 commits, deletes the last one",
        "rank 0 starts again",
        "the last rank starts again",
        "rank 0 of 8 goes on from it",
    ]
    assert len(list((tmp_path / "step-00000002").glob("pieces-*"))) == 64
    assert all(cost.files < checkpoint_scale.OPEN_FILES and cost.megabytes < 100 for cost in found.values())


def test_a_line_is_printed_for_each_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        checkpoint_scale, "simulate", lambda *_: {"something": checkpoint_scale.Cost(1.234, 5.67, 8)}
    )
    checkpoint_scale.main("4,16")
    assert [line.split() for line in capsys.readouterr().out.splitlines()[1:]] == [
        f"{ranks} | something | 1.23 | 5.7 | 8".split() for ranks in (4, 16)
    ]
