"""Lists whose entries choose registered components."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import Field

from llmkit.config.entries import chosen, make, make_all
from llmkit.config.load import load
from llmkit.config.registered import components, config_class
from llmkit.config.schema import Config, Section
from llmkit.errors import UserError
from llmkit.registry import find, register
from tests.examples.project import forgotten


class Every:
    """A hook that does something each so many steps."""

    class Config(Section):
        """How often."""

        every: Annotated[int, Field(ge=1)] = 100
        """Steps between two times."""
        name: str
        """What it is called."""

    def __init__(self, config):
        self.config = config


class Plain:
    """Without settings."""


@pytest.fixture(autouse=True)
def registered():
    with forgotten():
        register("hook", "every")(Every)
        register("hook", "plain")(Plain)
        register("sink", "plain")(Plain)
        yield


def test_hooks_are_made_in_their_order_with_their_settings(base, write):
    text = (
        base + "hooks:\n  - {type: plain}\n  - {type: every, name: a}\n  - {type: every, name: b, every: 3}\n"
    )
    loaded = load(write(text))
    first, second, third = make_all(loaded.config, "hook")
    assert isinstance(first, Plain)
    assert (second.config.name, second.config.every) == ("a", 100)
    assert (third.config.name, third.config.every) == ("b", 3)
    assert make_all(loaded.config, "sink") == []
    assert [path for path, _, _ in chosen(loaded.config)] == ["hooks.0", "hooks.1", "hooks.2"]
    assert [component.name for component in components(loaded.config)] == ["plain", "every", "every"]
    assert loaded.origins["hooks.2.every"].startswith("c.yaml:")


def test_mistakes_in_entries_are_named_with_their_lines(base, write):
    text = (
        base + "hooks:\n  - {type: every, name: a, every: 0}\n  - {type: evry}\n  - {type: every, nme: c}\n"
    )
    with pytest.raises(UserError) as refused:
        load(write(text))
    message = str(refused.value)
    assert "hooks.0.every must be a whole number of at least 1, or null; it is 0" in message
    assert "hooks.1.type must be one of every, plain" in message
    assert "hooks.2.nme is an unknown key; did you mean hooks.2.name?" in message


def test_what_is_missing_and_what_belongs_to_another_is_named(base, write):
    text = base + "hooks:\n  - {type: every}\n  - {type: plain, every: 3}\n"
    with pytest.raises(UserError) as refused:
        load(write(text))
    message = str(refused.value)
    assert 'hooks.0.type "every" (c.yaml:' in message and "the hook every needs name" in message
    assert "hooks.1.every 3 (c.yaml:" in message and "does not belong to hooks.1.type" in message


def test_an_entry_that_nothing_is_registered_for_is_refused(base, write):
    with forgotten():
        from llmkit import registry

        registry._components.clear()
        with pytest.raises(UserError, match=r'monitor.sinks.0.type "csv" .*names no registered sink'):
            load(write(base.replace("monitor:\n", "monitor:\n  sinks: [{type: csv}]\n")))


def test_two_components_may_share_a_setting_of_one_type(base, write):
    class Other(Every):
        """Another, with another default."""

        class Config(Section):
            """How often."""

            every: Annotated[int, Field(ge=1)] = 7
            """Steps between two times."""

    register("hook", "other")(Other)
    text = base + "hooks: [{type: every, name: a}, {type: other}, {type: other, every: 3}]\n"
    hooks = make_all(load(write(text)).config, "hook")
    assert [hook.config.every for hook in hooks] == [100, 7, 3]


def test_two_components_with_different_settings_of_one_name_cannot_be_used_together(base, write):
    class Other:
        """Another meaning."""

        class Config(Section):
            """What."""

            every: str
            """A text."""

    register("hook", "other")(Other)
    text = base + "hooks: [{type: every, name: a}, {type: other, every: b}]\n"
    where = f"c.yaml:{len(text.splitlines())}: "
    with pytest.raises(UserError, match=f"{where}.*Other: its setting every is another one in .*Every; "):
        load(write(text))


def test_settings_must_be_a_section(base, write):
    class Wrong:
        """Its settings are no Section."""

        class Config:
            pass

    register("sink", "wrong")(Wrong)
    with pytest.raises(UserError, match=r"Wrong: its Config must be a subclass of llmkit\.Section"):
        config_class({"monitor": {"sinks": [{"type": "wrong"}]}})
    text = base.replace("monitor:\n", "monitor:\n  sinks:\n    - {type: wrong}\n")
    line = text.splitlines().index("    - {type: wrong}") + 1
    with pytest.raises(UserError, match=rf"c\.yaml:{line}: .*its Config must be"):
        load(write(text))


def test_without_anything_registered_the_class_is_ours():
    with forgotten():
        from llmkit import registry

        registry._components.clear()
        assert config_class({"hooks": [{"type": "every"}]}) is Config


def test_a_component_without_settings_takes_none():
    class Entry(Section):
        type: str = "plain"

    assert isinstance(make(Entry(), find("hook", "plain")), Plain)
