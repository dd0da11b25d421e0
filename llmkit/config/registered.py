"""The class of a configuration whose parts may be registered ones: their settings take the place of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal, NamedTuple

from pydantic import Field, create_model

from llmkit.config.schema import Config, ModelChoice, Optimizer, Schedule, Section
from llmkit.errors import UserError
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
    """The class that checks this configuration, a mapping of sections; `Config` where all of it is ours."""
    sections = {}
    for choice in CHOICES:
        chosen = _chosen(content, choice)
        component = find(choice.kind, chosen)
        if names(choice.kind) != BUILT_IN[choice.kind]:
            sections[choice.section] = section_of(choice, component)
    return _config(tuple(sections.items())) if sections else Config


def components(config: Config) -> Iterator[Component]:
    """The registered components that a configuration uses."""
    for choice in CHOICES:
        found = find(choice.kind, getattr(getattr(config, choice.section), choice.key))
        if found is not None:
            yield found


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
        settings = component.settings or choice.common
        if not (isinstance(settings, type) and issubclass(settings, Section)):
            raise UserError(f"{component.origin}: its Config must be a subclass of llmkit.Section")
        bases = (settings,) if issubclass(settings, choice.common) else (settings, choice.common)
    doc = ours.model_fields[choice.key].description
    field = (Literal[known], Field(default, description=doc))
    return create_model(bases[0].__name__, __base__=bases, __doc__=bases[0].__doc__, **{choice.key: field})  # type: ignore[call-overload]


@cache
def _config(sections: tuple[tuple[str, type[Section]], ...]) -> type[Config]:
    fields: dict[str, Any] = {}
    for name, section in sections:
        doc = (section.__doc__ or "").strip() or Config.model_fields[name].description
        required = any(field.is_required() for field in section.model_fields.values())
        fields[name] = (section, Field(description=doc) if required else Field(section(), description=doc))
    return create_model("Config", __base__=Config, **fields)
