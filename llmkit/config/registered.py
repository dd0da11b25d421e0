"""The class of a configuration with the settings of registered components in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal, NamedTuple

from pydantic import Field, create_model

from llmkit.config.entries import (
    PARENTS,
    EntryList,
    chosen,
    entry_classes,
    first_use,
    list_field,
    settings_of,
)
from llmkit.config.model_section import ModelChoice
from llmkit.config.operators import FUNCTIONS
from llmkit.config.optimizer_section import Optimizer, Schedule
from llmkit.config.schema import Config
from llmkit.config.section import Section
from llmkit.registry import BUILT_IN, Component, Kind, find, names


class Choice(NamedTuple):
    """A section whose settings depend on what one of them names."""

    section: str
    key: str
    kind: Kind
    common: type[Section]
    """Settings that it has whatever is chosen."""


CHOICES = (
    Choice("model", "type", "model", ModelChoice),
    Choice("optimizer", "name", "optimizer", Optimizer),
    Choice("schedule", "name", "schedule", Schedule),
)


def config_class(content: object) -> type[Config]:
    """The class that checks this configuration, a mapping of sections; `Config` where all of it is ours.

    Raises UnusableSettings where the settings of a component that it chooses cannot be used.
    """
    sections = {}
    for choice in CHOICES:
        component = find(choice.kind, _chosen(content, choice))
        if names(choice.kind) != BUILT_IN[choice.kind]:
            sections[choice.section] = section_of(choice, component)
    lists = entry_classes(content)
    return _config(tuple(sections.items()), tuple(lists.items())) if sections or lists else Config


def components(config: Config) -> Iterator[Component]:
    """The registered components that a configuration uses."""
    for choice in CHOICES:
        found = find(choice.kind, getattr(getattr(config, choice.section), choice.key))
        if found is not None:
            yield found
    for operator in FUNCTIONS:
        if (form := find("operator", getattr(config.kernels.operators, operator))) is not None:
            yield form
    for _, _, component in chosen(config):
        yield component


def where_chosen(content: object, component: Component) -> tuple[str | int, ...]:
    """Path of the setting that chooses a component; () where none does."""
    for choice in CHOICES:
        if choice.kind == component.kind and _chosen(content, choice) == component.name:
            return choice.section, choice.key
    return first_use(content, component)


def _chosen(content: object, choice: Choice) -> object:
    section = content.get(choice.section) if isinstance(content, Mapping) else None
    return section.get(choice.key) if isinstance(section, Mapping) else None


def section_of(choice: Choice, component: Component | None) -> type[Section]:
    """The section with the settings of the component, or ours, in which any known name may stand."""
    return _section(choice, component, names(choice.kind))


@cache
def _section(choice: Choice, component: Component | None, known: tuple[str, ...]) -> type[Section]:
    ours: type[Section] = Config.model_fields[choice.section].annotation  # type: ignore[assignment]
    bases: tuple[type[Section], ...] = (ours,)
    default = ours.model_fields[choice.key].default
    if component is not None:
        default = component.name
        settings = settings_of(component) if component.settings else choice.common
        bases = (settings,) if issubclass(settings, choice.common) else (settings, choice.common)
    doc = ours.model_fields[choice.key].description
    field = (Literal[known], Field(default, description=doc))
    return create_model(bases[0].__name__, __base__=bases, __doc__=bases[0].__doc__, **{choice.key: field})  # type: ignore[call-overload]


@cache
def _config(
    sections: tuple[tuple[str, type[Section]], ...], lists: tuple[tuple[EntryList, type[Section]], ...]
) -> type[Config]:
    chosen_sections, fields = dict(sections), dict[str, Any]()
    for each, entry in lists:
        parent = PARENTS[each.section]
        if not each.section:
            fields |= list_field(each, entry)
            continue
        made = create_model(
            parent.__name__, __base__=parent, __doc__=parent.__doc__, **list_field(each, entry)
        )
        chosen_sections[each.section] = made
    for name, section in chosen_sections.items():
        doc = (section.__doc__ or "").strip() or Config.model_fields[name].description
        required = any(field.is_required() for field in section.model_fields.values())
        fields[name] = (section, Field(description=doc) if required else Field(section(), description=doc))
    return create_model("Config", __base__=Config, **fields)
