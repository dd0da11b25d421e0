"""A configuration as YAML that reads back as the same one, and as `llmkit config` prints it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from llmkit.config.keys import Key, all_keys, general, keys, suggest
from llmkit.config.load import Loaded
from llmkit.config.mistakes import printable
from llmkit.config.override import key_parts
from llmkit.config.schema import Config
from llmkit.config.walk import holds_sections, walk
from llmkit.config.yaml_reader import resolve
from llmkit.errors import UserError

_PLAIN_FIRST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_PLAIN = _PLAIN_FIRST | frozenset("0123456789_./-")
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r", "\0": "\\0"}


def to_yaml(config: Config, origins: dict[str, str] | None = None) -> str:
    """Returns the configuration as YAML, defaults included; `load` reads it back as the same Config.

    origins: where given, each line ends in a comment that says where its value came from.
    """
    lines = list(_lines(config))
    if origins is None:
        return "".join(f"{text}\n" for text, _ in lines)
    lines_with_origins = [(text, printable(origins.get(path, ""), 1100)) for text, path in lines]
    width = max((len(text) for text, origin in lines_with_origins if origin and len(text) <= 60), default=0)
    return "".join(
        f"{text:<{width}}  # {origin}\n" if origin else f"{text}\n" for text, origin in lines_with_origins
    )


def show(loaded: Loaded, derived: str) -> str:
    """What `llmkit config` prints: each setting with its origin, the derived values, and remarks.

    derived: the values that follow from the settings, as YAML comments.
    """
    text = to_yaml(loaded.config, loaded.origins) + "\n" + derived
    return text + "".join(f"# note: {remark}\n" for remark in loaded.remarks)


def show_section(loaded: Loaded, name: str) -> str:
    """One section of what `show` gives."""
    lines = to_yaml(loaded.config, loaded.origins).splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if line.startswith(f"{name}:"))
    behind = (number for number, line in enumerate(lines) if number > first and line[0] not in " -")
    return "".join(lines[first : next(behind, len(lines))])


def show_keys(names: Sequence[str] = (), schema: type[Config] = Config) -> str:
    """The reference as plain text: what each setting takes, its default, its meaning.

    names: dotted settings or sections to show; all settings if empty. Raises UserError for others.
    """
    blocks = (
        f"{k.path}\n    {k.allowed}{f' (default: {k.default})' if k.default else ''}\n    {k.doc}\n"
        for k in keys_named(names, schema)
    )
    return "\n".join(blocks)


def keys_named(names: Sequence[str] = (), schema: type[Config] = Config) -> list[Key]:
    """The settings, and what is in the sections, that are named; all settings if none is.

    Raises UserError for names of neither.
    """
    return [key for name in names for key in _keys_of(name, schema)] if names else keys(schema)


def wrapped(text: str, width: int) -> str:
    """What `show` gives, its comments below the settings at most `width` columns wide, in whole words.

    What goes on stays comments, below the last column that has room for it.
    """
    return "\n".join(
        _wrapped_comment(line, width) if line.startswith("# ") and len(line) > width else line
        for line in text.split("\n")
    )


def _wrapped_comment(line: str, width: int) -> str:
    columns = [gap.end() for gap in re.finditer(" {2,}", line)]
    at = max((column for column in columns if column <= width * 2 // 3), default=len("# note: "))
    parts = textwrap.wrap(line[at:], max(width - at, 1), break_long_words=False, break_on_hyphens=False)
    return line[:at] + f"\n#{' ' * (at - 1)}".join(parts)


def coloured(text: str) -> str:
    """What `show` gives, for a terminal: defaults recede, what was given and notes stand out."""
    lines, in_note = [], False
    for line in text.split("\n"):
        setting, mark, origin = line.partition("  # ")
        in_note = line.startswith("# note:") or (in_note and line.startswith("#  "))
        if in_note:
            line = f"\x1b[33m{line}\x1b[0m"
        elif mark and setting and not line.startswith("#"):
            style = ("2", "2") if origin == "default" else ("1", "36")
            line = f"\x1b[{style[0]}m{setting}\x1b[0m{mark[:2]}\x1b[{style[1]}m# {origin}\x1b[0m"
        lines.append(line)
    return "\n".join(lines)


def _keys_of(name: str, schema: type[Config]) -> list[Key]:
    """A setting, or a section with all that is in it."""
    path = general(".".join(key_parts(name) or [name])).removesuffix(".N")
    if path in all_keys(schema):
        return [key for key in all_keys(schema).values() if f"{key.path}.".startswith(f"{path}.")]
    right = suggest(path, schema)
    sections = ", ".join(
        key.path for key in all_keys(schema).values() if key.is_section and "." not in key.path
    )
    remedy = f"did you mean {' or '.join(right)}?" if right else f"the sections are {sections}"
    raise UserError(f"config --keys: {printable(name, 100)} is no setting or section; {remedy}")


def _lines(config: Config) -> Iterator[tuple[str, str]]:
    """The lines of a configuration, each with the dotted path of the setting on it, "" for a heading."""
    dash = ""
    for path, value in walk(config):
        depth, name = path.count("."), path.rpartition(".")[2]
        if name.isdecimal():
            dash = "- "  # an entry of a list begins
            continue
        heading = holds_sections(value)
        indent = "  " * (depth - len(dash) // 2)
        yield f"{indent}{dash}{name}:" + ("" if heading else f" {yaml_value(value)}"), "" if heading else path
        dash = ""


def yaml_value(value: Any) -> str:
    """A setting as one YAML scalar, flow list or flow mapping."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_quoted(v) if isinstance(v, str) else yaml_value(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(name)}: {yaml_value(v)}" for name, v in value.items()) + "}"
    plain = value[:1] in _PLAIN_FIRST and set(value) <= _PLAIN and isinstance(resolve(value), str)
    return value if plain else _quoted(value)


def _quoted(text: str) -> str:
    """A text in double quotes, in which YAML reads it back unchanged."""
    return '"' + "".join(_ESCAPES.get(c) or _character(c) for c in text) + '"'


def _character(c: str) -> str:
    if c.isprintable():
        return c
    return f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}"
