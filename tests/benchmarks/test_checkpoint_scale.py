"""The benchmark of saving by many ranks does what it says, for few of them."""

from __future__ import annotations

import resource

import pytest

from benchmarks import checkpoint_scale


def test_a_checkpoint_of_a_few_ranks_is_committed_and_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resource, "setrlimit", lambda what, limits: None)
    checkpoint_scale.main(ranks=5, tensors=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines if line.endswith(" s")] == [
        "each rank: its index",
        "rank 0: merge, check, write, read back",
        "each rank: load",
        "each rank: find the pieces of its own slices",
        "one of 8 ranks: the same",
    ]
