"""Applies `section.key=value` overrides of the command line to the tree of settings."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence

from llmkit.config.file_text import UnreadableError
from llmkit.config.mistakes import (
    COMMAND_LINE,
    NOT_SHOWN,
    Mistake,
    display,
    printable,
    without_secrets,
)
from llmkit.config.schema import Config, default_source_name
from llmkit.config.tree import Node, merge
from llmkit.config.yaml_reader import read_value

MAX_KEY_PARTS = 16
"""Most parts of an override's dotted key."""

_PART = r"[^.\[\]]+"
_KEY = re.compile(rf"{_PART}(\.{_PART}|\[[^\[\]]+\])*")
_EXAMPLE = "overrides are written section.key=value, such as train.max_steps=100"
_NAMED = re.compile(r"(?P<key>[A-Za-z_]\w*(?:\.[\w-]+|\[[^\[\]]+\])+)\s*[:=]?\s*(?P<value>.*)", re.DOTALL)
_CONFIGURATIONS = (".yaml", ".yml", ".json")


def apply_overrides(
    tree: Node | None, words: Sequence[str], mistakes: list[Mistake]
) -> Iterator[tuple[str, Node]]:
    """Sets each `section.key=value`, as `apply_override` does; yields the settings by their dotted keys."""
    for word, right in joined(words):
        if right:
            form = without_secrets(as_utf8(right))
            shown = form if form.endswith(NOT_SHOWN) else as_utf8(word)
            what = "a setting is written with `=` between key and value, without spaces"
            mistakes.append(Mistake(f"{COMMAND_LINE}: {shown}", what, f"write {shlex.quote(form)}"))
        else:
            yield from apply_override(tree, word, mistakes).items()


def apply_override(tree: Node | None, override: str, mistakes: list[Mistake]) -> dict[str, Node]:
    """Sets one `section.key=value` in the tree, None where there is none; a mistake in it is noted.

    Entries of a list are named by their number or, where they have one, their name:
    `data.sources.1.weight`, `data.sources[1].weight`, `data.sources.web.weight`.
    Returns the setting by its dotted key; empty where it could not be used.
    """
    override = as_utf8(override)
    key, equals, text = override.partition("=")
    location = f"{COMMAND_LINE}: {without_secrets(override)}"
    if not equals:
        mistakes.append(Mistake(location, "there is no `=` in it", _no_override(override)))
        return {}
    parts = key_parts(key)
    if key.startswith("-"):
        mistakes.append(Mistake(location, "overrides have no dashes before them", "write section.key=value"))
    elif parts is None:
        note = "leave out the spaces around the key" if key != key.strip() else ""
        mistakes.append(
            Mistake(location, "the part before `=` is no dotted key, such as train.max_steps", note)
        )
    elif parts[0] == "extends":
        mistakes.append(Mistake(location, "`extends` stands in files only"))
    else:
        try:
            node = read_value(text, location)
            return {} if tree is None else {_put(tree, parts, node): node}
        except UnreadableError as stop:
            hidden = location.endswith(NOT_SHOWN)
            mistakes.append(Mistake(location, "the value cannot be read") if hidden else stop.mistake)
    return {}


def joined(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The overrides among the words of a command line, each with its right form if it is written otherwise.

    As in `train.max_steps 5`, `train.max_steps: 5`, `train.max_steps = 5`; the form is "" where all is well.
    """
    left = list(words)
    while left:
        word = left.pop(0)
        named = None if re.search(r"=.", word, re.DOTALL) else _NAMED.fullmatch(word)
        if word.endswith(_CONFIGURATIONS) and named is not None and not named["value"]:
            yield word, ""  # a second file, such as data.yaml
            continue
        if named is None or re.split(r"[.\[]", word)[0] not in Config.model_fields:
            yield word, ""
            continue
        given, value = [word], named["value"]
        while left and not value and "=" not in left[0].lstrip("=") and not _NAMED.fullmatch(left[0]):
            given.append(left.pop(0))
            value = given[-1].lstrip("=") if given[-1] not in (":", "=") else ""
        if word.endswith("=") and not value:
            yield word, ""  # an empty value, which is null
        else:
            yield " ".join(given), f"{named['key']}={value or 'VALUE'}"


def _no_override(text: str) -> str:
    """Suggests a fix for an argument that is no override."""
    if text.endswith(_CONFIGURATIONS):
        return "one configuration comes first; more of them are named after `extends:` in it"
    if text.endswith(("]", "}", ",")):
        return "the shell cuts an override at its spaces: put it whole into single quotes"
    return _EXAMPLE


def as_utf8(argument: str) -> str:
    """Returns a command-line argument decoded as UTF-8, whatever the locale's encoding."""
    try:
        return os.fsencode(argument).decode()
    except UnicodeError:
        return argument


def key_parts(key: str) -> list[str] | None:
    """The parts of a dotted key, in which `[1]` is the same as `.1`; None if it is none."""
    if key != key.strip() or not _KEY.fullmatch(key):
        return None
    parts = [name or entry for entry, name in re.findall(rf"\[([^\[\]]+)\]|({_PART})", key)]
    return parts if len(parts) <= MAX_KEY_PARTS else None


def _put(tree: Node, parts: list[str], node: Node) -> str:
    """Puts a value into the tree, making the sections above it; returns the dotted key, entries numbered.

    Raises UnreadableError where a list has no such entry.
    """
    here, path = tree, list[str]()
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(here.value, list):
            index = _entry(here.value, part, printable(".".join(path)), node.location)
            path.append(str(index))
            if last:
                here.value[index] = node
            here = here.value[index]
            continue
        path.append(part)
        if not isinstance(here.value, dict):
            here.value, here.location = {}, node.location
        if last:
            here.value[part] = merge(here.value[part], node) if part in here.value else node
        here = here.value.setdefault(part, Node({}, node.location))
    return ".".join(path)


def _entry(entries: list[Node], part: str, where: str, location: str) -> int:
    """Returns the index of the entry that a key part names. Raises UnreadableError unless it is one."""
    if re.fullmatch("[0-9]{1,6}", part) and int(part) < len(entries):
        return int(part)
    names = [_name(entry, index) for index, entry in enumerate(entries)]
    if names.count(part) == 1:
        return names.index(part)
    count = "1 entry" if len(entries) == 1 else f"{len(entries)} entries"
    known = ", ".join(printable(name) for name in names[:20] if name)
    what = f"{where} is a list of {count}, numbered from 0; there is no {display(part)} in it"
    if part in names:
        what = f"{where} has several entries that are called {display(part)}; give the number of one, from 0"
    raise UnreadableError(Mistake(location, what, f"by name: {known}" if known else ""))


def _name(entry: Node, index: int) -> str:
    """Returns the name of a list entry; "" if it has none."""
    fields = entry.value if isinstance(entry.value, dict) else {}
    name, kind = (fields[key].value if key in fields else None for key in ("name", "type"))
    if isinstance(name, str):
        return name
    return default_source_name(kind, index) if isinstance(kind, str) else ""
