"""Every setting by its dotted path."""

from __future__ import annotations

from llmkit.config.schema import Config
from llmkit.config.walk import leaves, walk

CONFIG = Config.model_validate(
    {
        "data": {
            "sources": [{"type": "stdlib"}, {"type": "text", "path": ["a", "b"]}],
            "curriculum": [{"step": 3, "weights": {"stdlib-0": 1.0}}],
        }
    }
)


def test_sections_come_before_what_is_in_them() -> None:
    paths = [path for path, _ in walk(CONFIG)]
    assert len(paths) == len(set(paths))
    for path in paths:
        above = path.rpartition(".")[0]
        assert not above or paths.index(above) < paths.index(path)


def test_leaves_are_the_settings_alone() -> None:
    found = dict(leaves(CONFIG))
    assert found["data.sources.1.path"] == ["a", "b"]
    assert found["data.curriculum.0.weights"] == {"stdlib-0": 1.0}
    assert found["train.max_steps"] is None
    assert not {"data", "data.sources", "data.sources.0", "monitor.wandb"} & found.keys()


def test_an_empty_list_of_sections_is_a_setting() -> None:
    config = Config.model_validate({"data": {"sources": [{"type": "stdlib"}]}})
    assert dict(leaves(config))["data.curriculum"] == []
