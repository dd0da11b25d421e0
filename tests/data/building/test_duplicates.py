from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmkit.data.building import duplicates
from llmkit.data.building.duplicates import Copies, DuplicateCounter
from llmkit.data.shards.documents import Documents


def documents(numbers: list[int]) -> Documents:
    """A document of two tokens for each number."""
    tokens = np.array([[number, number + 1, 0] for number in numbers], dtype="<u2").reshape(-1)
    return Documents(tokens, np.full(len(numbers), 3), 0)


@pytest.mark.parametrize("run", [1 << 22, 100, 7])
def test_copies_are_counted_as_by_comparing_all_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: int
) -> None:
    monkeypatch.setattr(duplicates, "RUN", run)
    draw = np.random.default_rng(0)
    counter, train, held = DuplicateCounter(tmp_path), list[int](), list[int]()
    for _ in range(40):
        some, others = draw.integers(0, 700, 30).tolist(), draw.integers(0, 700, 3).tolist()
        counter.add(documents(some), heldout=False)
        counter.add(documents(others), heldout=True)
        train, held = [*train, *some], [*held, *others]
    every = [*train, *held]
    wanted = Copies(len(every) - len(set(every)), sum(number in set(train) for number in held))
    assert counter.count() == wanted
    assert wanted.duplicates > 100
    assert wanted.heldout_in_train > 10
    assert list(tmp_path.iterdir()) == []


def test_no_documents_have_no_copies(tmp_path: Path) -> None:
    assert DuplicateCounter(tmp_path).count() == Copies(0, 0)


def test_lengths_tell_documents_apart_whose_tokens_follow_each_other(tmp_path: Path) -> None:
    counter = DuplicateCounter(tmp_path)
    tokens = np.array([5, 5, 0, 5, 0, 5, 5, 0, 0], dtype="<u2")
    counter.add(Documents(tokens, np.array([3, 2, 3, 1]), 0), heldout=False)
    assert counter.count() == Copies(1, 0)
