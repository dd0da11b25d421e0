"""Settings with their origins, as the checks see them."""

from __future__ import annotations

import pytest

from llmkit.config.schema import Config
from llmkit.config.settings import Facts, Settings

SOURCES = [{"type": "stdlib"}, {"type": "text", "path": "a", "weight": 2.0}]


def settings(facts: Facts | None = None, **parallel: int) -> Settings:
    config = Config.model_validate({"data": {"sources": SOURCES}, "parallel": parallel})
    return Settings(config, {"data.sources.1.weight": "c.yaml:7"}, facts or Facts())


def test_a_setting_is_described_with_value_and_origin() -> None:
    assert settings().value("data.sources.1.weight") == 2.0
    assert settings().describe("data.sources.1.weight") == "data.sources.1.weight 2.0 (c.yaml:7)"
    assert settings().describe("train.max_steps") == "train.max_steps null (default)"


def test_a_mistake_shows_the_settings_that_it_is_about() -> None:
    found = settings().mistake("{0} and {1}, {2} and {x}", "data.sources.1.weight", "run.seed", note="why")
    assert found.what == "data.sources.1.weight 2.0 (c.yaml:7) and run.seed 0 (default), {2} and {x}"
    assert (found.note, found.keys) == ("why", ("data.sources.1.weight", "run.seed"))


@pytest.mark.parametrize(
    ("joined", "asked", "tensor", "ranks"),
    [
        (None, None, 1, None),
        (None, 8, 2, 4),
        (6, None, 2, 3),
        (6, 8, 2, 3),
        (None, 6, 4, None),
        (3, None, 2, None),
    ],
)
def test_data_parallel_ranks(joined: int | None, asked: int | None, tensor: int, ranks: int | None) -> None:
    parallel = {"tensor_parallel_size": tensor} | ({} if asked is None else {"world_size": asked})
    assert settings(Facts(world_size=joined), **parallel).data_parallel_size == ranks
