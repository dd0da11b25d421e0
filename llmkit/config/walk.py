"""All settings of a configuration in the order of the schema, by their dotted paths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmkit.config.section import Section


def walk(section: Section, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of everything in a section: a section, or a list of them, before what is in it.

    Entries of a list are numbered from 0.
    """
    for name in type(section).model_fields:
        path, value = prefix + name, getattr(section, name)
        yield path, value
        if isinstance(value, Section):
            yield from walk(value, f"{path}.")
        elif holds_sections(value):
            for index, item in enumerate(value):
                yield f"{path}.{index}", item
                yield from walk(item, f"{path}.{index}.")


def leaves(section: Section) -> Iterator[tuple[str, Any]]:
    """Every setting's dotted path and value."""
    return ((path, value) for path, value in walk(section) if not holds_sections(value))


def holds_sections(value: object) -> bool:
    """Whether a value is a section, or a list of them, and no setting itself."""
    return isinstance(value[0] if isinstance(value, list) and value else value, Section)
