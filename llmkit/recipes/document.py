"""A configuration in which every value says why it is this one, as the text of a YAML file."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from llmkit.config.show import yaml_value
from llmkit.recipes.recipe import Setting

Sections: TypeAlias = Mapping[str, Mapping[str, Setting]]
"""Section -> key -> its value, which may hold further ones in mappings, and in lists of them."""
LINE = 110
WHY = 44
"""Column at which the reasons begin; they go below each other from there."""


def amount(value: float) -> str:
    """A number of weights or tokens to three digits, such as 97.5M or 11.9B."""
    value = float(f"{value:.3g}")
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def to_text(sections: Sections, heading: str) -> str:
    """The file: a heading as comments, then the sections.

    heading: paragraphs between blank lines.
    """
    lines = [
        f"# {line}".rstrip() for part in heading.split("\n") for line in textwrap.wrap(part, LINE - 2) or [""]
    ]
    for name, settings in sections.items():
        if settings:
            lines += ["", f"{name}:", *_lines(settings, "  ")]
    return "\n".join(lines) + "\n"


def plain(sections: Sections) -> dict[str, Any]:
    """The values alone, as `Config.model_validate` takes them."""
    return {name: _plain(settings) for name, settings in sections.items() if settings}


def _plain(value: Any) -> Any:
    if isinstance(value, Setting):
        return _plain(value.value)
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _lines(settings: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, setting in settings.items():
        value, why = setting if isinstance(setting, Setting) else (setting, "")
        if isinstance(value, Mapping):
            yield from _explained(f"{indent}{key}:", why)
            yield from _lines(value, indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            yield from _explained(f"{indent}{key}:", why)
            for entry in value:
                first, *others = _lines(entry, f"{indent}    ")
                yield f"{indent}  - {first.strip()}"
                yield from others
        else:
            yield from _explained(f"{indent}{key}: {yaml_value(value)}", why)


def _explained(line: str, why: str) -> Iterator[str]:
    """A line with its reason behind it; what does not fit stands below."""
    if not why:
        yield line
        return
    first, *others = textwrap.wrap(why, LINE - WHY - 2)
    if len(line) > WHY - 2:
        yield line
        others.insert(0, first)
    else:
        yield f"{line:<{WHY - 2}}  # {first}"
    yield from (f"{'':<{WHY}}# {other}" for other in others)
