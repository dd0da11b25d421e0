"""How often the data have been seen."""

from __future__ import annotations

from typing import Any, cast

import pytest

from llmkit.data.loader import TrainLoader
from llmkit.loop.epochs import epoch_columns


class Loader:
    def __init__(self, **seen: tuple[int, int]) -> None:
        self._seen = seen

    def seen(self) -> dict[str, tuple[int, int]]:
        return self._seen


def columns(**seen: tuple[int, int]) -> dict[str, Any]:
    return epoch_columns(cast(TrainLoader, Loader(**seen)))


def test_epochs_are_tokens_over_those_of_an_epoch() -> None:
    assert columns(books=(300, 200)) == {"epochs": 1.5}
    assert columns(books=(300, 200), code=(100, 800)) == {
        "epochs": pytest.approx(0.4), "epochs/books": 1.5, "epochs/code": 0.125
    }  # fmt: skip


def test_live_sources_have_no_epochs() -> None:
    assert columns() == {}
