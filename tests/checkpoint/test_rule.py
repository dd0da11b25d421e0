from __future__ import annotations

import pytest

from llmkit.checkpoint.rule import is_kept


@pytest.mark.parametrize(
    ("step", "every", "best", "kept"),
    [
        (10, 0, None, False), (10, 5, None, True), (10, 4, None, False), (0, 4, None, True),
        (10, 0, 10, True), (10, 4, 9, False), (None, 1, None, False), (None, 0, None, False),
    ],
)  # fmt: skip
def test_what_is_kept_for_good(step: int | None, every: int, best: int | None, kept: bool) -> None:
    assert is_kept(step, every, best) is kept
