from __future__ import annotations

import pytest

from llmkit.checkpoint.rule import count_for_good, is_kept
from llmkit.config.schema import Checkpoint


@pytest.mark.parametrize(
    ("step", "every", "best", "kept"),
    [
        (10, 0, None, False), (10, 5, None, True), (10, 4, None, False), (0, 4, None, True),
        (10, 0, 10, True), (10, 4, 9, False), (None, 1, None, False), (None, 0, None, False),
    ],
)  # fmt: skip
def test_what_is_kept_for_good(step: int | None, every: int, best: int | None, kept: bool) -> None:
    assert is_kept(step, every, best) is kept


@pytest.mark.parametrize(("after", "last"), [(0, 40), (0, 41), (7, 40), (12, 36), (40, 40)])
@pytest.mark.parametrize("every", [0, 1, 3, 4, 10])
def test_what_will_be_kept_for_good_is_counted(after: int, last: int, every: int) -> None:
    given = Checkpoint.model_validate({"every_steps": 2, "every_minutes": 0.0, "keep_every": every})
    saved = [step for step in range(2, last + 1, 2) if step > after]
    assert count_for_good(given, after, last) == sum(is_kept(step, every, None) for step in saved)
