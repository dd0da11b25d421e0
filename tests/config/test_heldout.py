"""Why nothing is held out: the reason fits the settings."""

from __future__ import annotations

import pytest

from llmkit.config.heldout import may_hold_out, nothing_held_out
from llmkit.config.load import Loaded
from llmkit.config.schema import Config

SHARDS = {"type": "shards", "path": "a"}
TEXT = {"type": "text", "path": "a"}


def config(*sources: dict[str, str], fraction: float = 0.1) -> Config:
    return Config.model_validate({"data": {"sources": list(sources), "validation_fraction": fraction}})


@pytest.mark.parametrize(
    ("sources", "fraction", "may"),
    [
        ([TEXT], 0.1, True),
        ([TEXT], 0.0, False),
        ([SHARDS], 0.1, False),
        ([SHARDS, TEXT], 0.1, True),
        ([{**SHARDS, "heldout_path": "b"}], 0.0, True),
    ],
)
def test_whether_documents_may_be_held_out(sources: list[dict[str, str]], fraction: float, may: bool) -> None:
    assert may_hold_out(config(*sources, fraction=fraction).data) == may


@pytest.mark.parametrize(
    ("sources", "fraction", "why"),
    [
        ([SHARDS], 0.1, "name held-out shards in heldout_path"),
        ([TEXT], 0.0, "data.validation_fraction 0.0 (here) holds nothing out"),
        ([TEXT, SHARDS], 0.1, "data.validation_fraction 0.1 (here) holds none out that has tokens to learn"),
    ],
)
def test_the_reason_names_the_setting_that_changes_it(
    sources: list[dict[str, str]], fraction: float, why: str
) -> None:
    assert why in nothing_held_out(Loaded.of(config(*sources, fraction=fraction), "here").settings)
