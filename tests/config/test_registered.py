"""Sections whose settings depend on the component that they name."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import Field, ValidationError

from llmkit.config.keys import all_keys, key_of, suggest
from llmkit.config.load import load
from llmkit.config.optimizer_section import Optimizer
from llmkit.config.registered import config_class
from llmkit.config.resume import compare
from llmkit.config.schema import Config, Section
from llmkit.config.show import show_keys, to_yaml
from llmkit.config.stored import read_stored
from llmkit.errors import UserError
from llmkit.registry import register
from tests.examples.project import forgotten


class Lion:
    """An optimizer."""

    class Config(Section):
        """The lion."""

        beta: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.99
        """Decay of the momentum."""
        pride: int = Field(3, json_schema_extra={"resume": "fixed"})
        """Lions in it."""


@pytest.fixture(autouse=True)
def registered():
    with forgotten():
        register("optimizer", "lion")(Lion)
        register("schedule", "flat")(lambda step, span, settings: 1.0)
        yield


LION = {"optimizer": {"name": "lion"}}


def test_the_section_has_the_common_settings_and_the_components():
    optimizer = config_class(LION).model_fields["optimizer"].annotation
    assert issubclass(optimizer, Optimizer) and issubclass(optimizer, Lion.Config)
    made = optimizer(beta=0.5)
    assert (made.name, made.beta, made.pride, made.weight_decay) == ("lion", 0.5, 3, 0.1)


def test_a_component_without_settings_has_the_common_ones():
    schedule = config_class({"schedule": {"name": "flat"}}).model_fields["schedule"].annotation
    assert schedule(warmup_steps=2).name == "flat"


def test_what_is_not_chosen_keeps_our_settings_and_may_be_named():
    schema = config_class({})
    assert "optimizer.beta" not in all_keys(schema)
    assert "lion" in all_keys(schema)["optimizer.name"].choices
    assert config_class({}) is schema and config_class(LION) is config_class(LION)  # made once


@pytest.mark.parametrize("content", [None, 3, {"optimizer": 4}, {"optimizer": {"name": ["lion"]}}])
def test_content_of_any_form_has_a_class(content):
    assert issubclass(config_class(content), Config)


def test_the_reference_of_settings_shows_the_components():
    schema = config_class(LION)
    assert key_of("optimizer.beta", schema).doc == "Decay of the momentum."
    assert key_of("optimizer.beta") is None
    assert suggest("optimizer.bta", schema) == ["optimizer.beta"]
    assert "optimizer.pride\n    a whole number (default: 3)" in show_keys(["optimizer"], schema)


def test_mistakes_in_them_are_named_like_in_ours(base, write):
    text = base.replace("optimizer:\n", "optimizer:\n  name: lion\n  beta: 2\n  prid: 4\n  momentum: x\n")
    with pytest.raises(UserError) as refused:
        load(write(text))
    message = str(refused.value)
    assert "optimizer.beta must be a number above 0 and below 1; it is 2" in message
    assert "optimizer.prid is an unknown key; did you mean optimizer.pride?" in message
    assert "optimizer.momentum must be a number" in message


def test_a_configuration_reads_back_from_its_text_and_from_a_checkpoint(base, write):
    text = base.replace("optimizer:\n", "optimizer:\n  name: lion\n  beta: 0.5\n")
    config = load(write(text)).config
    assert load(write(to_yaml(config), "again.yaml")).config == config
    assert read_stored(config.model_dump(mode="json"), "step-1", print) == config


def test_a_checkpoint_of_what_nobody_registered_is_refused(base, write):
    text = base.replace("optimizer:\n", "optimizer:\n  name: lion\n")
    stored = load(write(text)).config.model_dump(mode="json")
    with forgotten():
        from llmkit import registry

        registry._components.clear()
        with pytest.raises(
            UserError, match=r'step-1: its setting optimizer.name = "lion" .*import the module'
        ):
            read_stored(stored, "step-1", print)


def test_changed_settings_of_a_component_are_warned_about_unless_they_say_otherwise(base, write):
    text = base.replace("optimizer:\n", "optimizer:\n  name: lion\n")
    old, new = load(write(text)).config, load("c.yaml", ["optimizer.beta=0.5", "optimizer.pride=4"]).config
    found = compare(old.model_dump(mode="json"), new.model_dump(mode="json"), schema=type(new))
    assert {each.path: each.rule.kind for each in found.all} == {
        "optimizer.beta": "warned", "optimizer.pride": "fixed",
    }  # fmt: skip


def test_a_required_setting_of_a_component_makes_its_section_required():
    class Needy:
        """Needs to be told."""

        class Config(Section):
            """One."""

            size: int
            """Of it."""

    register("schedule", "needy")(Needy)
    schema = config_class({"schedule": {"name": "needy"}})
    with pytest.raises(ValidationError, match="schedule"):
        schema.model_validate({"data": {"sources": [{"type": "stdlib"}]}})
