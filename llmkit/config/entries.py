"""Lists whose entries choose a component by `type`: their class, and the components that they make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from llmkit.config.monitor_section import Monitor
from llmkit.config.schema import Config, Data, Source
from llmkit.config.section import Entry, Section
from llmkit.errors import UserError
from llmkit.registry import BUILT_IN, Component, Kind, find, names


class UnusableSettings(UserError):
    """The settings that a component declares cannot be used."""

    def __init__(self, component: Component, problem: str) -> None:
        super().__init__(f"{component.origin}: {problem}")
        self.component = component


class EntryList(NamedTuple):
    """A list of a section; section "" = of the configuration itself."""

    section: str
    name: str
    kind: Kind
    entry: type[Section]

    @property
    def path(self) -> str:
        return f"{self.section}.{self.name}" if self.section else self.name


LISTS = (
    EntryList("data", "sources", "source", Source),
    EntryList("", "hooks", "hook", Entry),
    EntryList("monitor", "sinks", "sink", Entry),
)
PARENTS: dict[str, type[Section]] = {"data": Data, "monitor": Monitor, "": Config}


def entry_classes(content: object) -> dict[EntryList, type[Section]]:
    """The class of the entries of each list for which something is registered."""
    found = {}
    for each in LISTS:
        if names(each.kind) != BUILT_IN.get(each.kind, ()):
            used = {entry.get("type") for entry in _entries(content, each) if isinstance(entry, Mapping)}
            components = tuple(c for name in sorted(map(str, used)) if (c := find(each.kind, name)))
            found[each] = _entry_class(each, components, names(each.kind))
    return found


def list_field(each: EntryList, entry: type[Section]) -> dict[str, Any]:
    """The list with entries of this class, for `create_model`."""
    field = PARENTS[each.section].model_fields[each.name]
    entries: Any = list[entry]  # type: ignore[valid-type]
    if field.is_required():
        return {each.name: (Annotated[entries, Field(min_length=1)], Field(description=field.description))}
    return {each.name: (entries, Field([], description=field.description))}


def _entries(content: object, each: EntryList) -> Sequence[Any]:
    section = content.get(each.section) if each.section and isinstance(content, Mapping) else content
    found = section.get(each.name) if isinstance(section, Mapping) else None
    return found if isinstance(found, list) else []


@cache
def _entry_class(each: EntryList, components: tuple[Component, ...], known: tuple[str, ...]) -> type[Section]:
    """The entry with the settings of all components that are used, each optional; `make` checks them.

    Raises UnusableSettings where two of them have settings of one name and different types.
    """
    type_doc = each.entry.model_fields["type"].description
    fields: dict[str, Any] = {"type": (Literal[known], Field(description=type_doc))}
    owners: dict[str, list[Component]] = {}
    for component in components:
        for name in settings_of(component).model_fields:
            owners.setdefault(name, []).append(component)
    for name, sharing in owners.items():
        found = [settings_of(component).model_fields[name] for component in sharing]
        if name in each.entry.model_fields or any(_type(one) != _type(found[0]) for one in found):
            others = "llmkit" if name in each.entry.model_fields else sharing[0].origin
            raise UnusableSettings(sharing[-1], f"its setting {name} is another one in {others}; rename it")
        doc = "; ".join(f"{one.description or ''} (only for {c.name})" for one, c in zip(found, sharing))
        default = found[0].default if len(found) == 1 and not found[0].is_required() else None
        fields[name] = (_type(found[0]) | None, Field(default, description=doc))
    made: type[Section] = create_model(
        each.entry.__name__, __base__=each.entry, __doc__=each.entry.__doc__, **fields
    )
    return made


def _type(field: FieldInfo) -> Any:
    """The type of a setting with its limits."""
    kind: Any = field.annotation
    for constraint in field.metadata:
        kind = Annotated[kind, constraint]
    return kind


def settings_of(component: Component) -> type[Section]:
    """The class of a component's settings. Raises UnusableSettings where it is no Section."""
    settings = component.settings or Section
    if not (isinstance(settings, type) and issubclass(settings, Section)):
        raise UnusableSettings(component, "its Config must be a subclass of llmkit.Section")
    return settings


def chosen(config: Config) -> Iterator[tuple[str, Section, Component]]:
    """Path, settings and component of each entry that a plugin has registered."""
    for each in LISTS:
        parent = getattr(config, each.section) if each.section else config
        for number, entry in enumerate(getattr(parent, each.name)):
            if (component := find(each.kind, entry.type)) is not None:
                yield f"{each.path}.{number}", entry, component


def make(entry: Section, component: Component) -> Any:
    """The component of an entry. Raises UserError where settings are missing, or it cannot be made."""
    if component.settings is None:
        return component.make()
    return component.make(own_settings(entry, component))


def first_use(content: object, component: Component) -> tuple[str | int, ...]:
    """Path of the `type` of the first entry that chooses a component; () where none does."""
    for each in LISTS:
        for number, entry in enumerate(_entries(content, each)):
            chooses = isinstance(entry, Mapping) and entry.get("type") == component.name
            if each.kind == component.kind and chooses:
                return (*each.path.split("."), number, "type")
    return ()


def common_fields(kind: Kind) -> set[str]:
    """Settings that the entries of a kind have whatever they choose."""
    return {name for each in LISTS if each.kind == kind for name in each.entry.model_fields}


def own_settings(entry: Section, component: Component) -> Section:
    """The settings of an entry that are the component's own. Raises UserError where one is missing."""
    schema = settings_of(component)
    values = {name: getattr(entry, name) for name in schema.model_fields}
    given = {name: value for name, value in values.items() if value is not None}
    try:
        return schema.model_validate(given)
    except ValidationError as fault:
        missing = ", ".join(str(error["loc"][-1]) for error in fault.errors())
        raise UserError(f"the {component.kind} {component.name} needs {missing}") from None


def make_all(config: Config, kind: Kind) -> list[Any]:
    """The hooks or sinks of a configuration, in its order."""
    return [make(entry, component) for _, entry, component in chosen(config) if component.kind == kind]
