"""Loads a configuration: defaults < files that it extends < the file itself < the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmkit.config.mistakes import (
    COMMAND_LINE,
    NOT_SHOWN,
    Mistake,
    display,
    error,
    printable,
    without_secrets,
)
from llmkit.config.schema import Config
from llmkit.config.tree import Node, merge
from llmkit.config.validate import origins, validate
from llmkit.config.yaml_reader import UnreadableError, read_file, read_value

MAX_EXTENDS = 8
"""Longest chain of files that extend each other."""

MAX_FILES = 64
"""Most files in all."""

MAX_KEY_PARTS = 16
"""Most parts of an override's dotted key."""


@dataclass(frozen=True)
class Loaded:
    """A valid configuration.

    origins: for each setting (dotted, list places numbered from 0) where its value came from:
        "default", "configs/demo.yaml:12" or "command line".
    path: the file that was named.
    """

    config: Config
    origins: dict[str, str]
    path: Path


def load(path: str | Path, overrides: Sequence[str] = ()) -> Loaded:
    """Reads a configuration file, with `section.key=value` overrides on top.

    Raises UserError that names every mistake at once, each with its file and line.
    """
    files = _Files()
    shown = str(path)
    tree = files.read(Path(path), printable(shown, 1000), ())
    for override in overrides:
        _override(tree, override, files.mistakes)
    if tree is None:
        raise error(files.mistakes, shown)
    config, mistakes = validate(tree)
    if config is None or files.mistakes:
        raise error(files.mistakes + mistakes, shown)
    return Loaded(config, origins(config, tree), Path(path))


class _Files:
    """The files of one configuration, each read once."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []
        self._count = 0

    def read(self, path: Path, shown: str, above: tuple[Path, ...]) -> Node | None:
        """The tree of a file with all that it extends merged under it; None if it cannot be read.

        above: the files that led here by extending each other, the first one first.
        """
        self._count += 1
        tree = read_file(path, shown, self.mistakes)
        if tree is None:
            return None
        assert isinstance(tree.value, dict)
        extends = tree.value.pop("extends", None)
        chain = (*above, _real(path))
        merged: Node | None = None
        readable = True
        for name, place in self._names(extends):
            base = self._extended(path, shown, name, place, chain)
            readable = readable and base is not None
            merged = base if merged is None or base is None else merge(merged, base)
        if not readable:
            return None
        return tree if merged is None else merge(merged, tree)

    def _names(self, extends: Node | None) -> list[tuple[str, str]]:
        """The names after `extends:`, each with its place."""
        if extends is None:
            return []
        entries = extends.value if isinstance(extends.value, list) else [extends]
        names = [(n.value, n.place) for n in entries if isinstance(n.value, str) and n.value]
        if len(names) < len(entries):
            shown = display(extends.plain())
            what = f"extends must be the name of a file, or a list of names; it is {shown}"
            self.mistakes.append(Mistake(extends.place, what))
        return names

    def _extended(
        self, path: Path, shown: str, name: str, place: str, chain: tuple[Path, ...]
    ) -> Node | None:
        """A file that another one extends; None, with the mistake noted, if it cannot be used."""
        target = path.parent / name
        shown_target = printable(os.path.normpath(os.path.join(os.path.dirname(shown), name)), 1000)
        what = ""
        if "\0" in name or not target.exists():
            what = f"extends: there is no file {shown_target} (names are relative to this file)"
        elif _real(target) in chain:
            circle = [*chain[chain.index(_real(target)) :], _real(target)]
            what = f"extends: the files extend each other in a circle: {' -> '.join(p.name for p in circle)}"
        elif len(chain) > MAX_EXTENDS:
            what = f"extends: more than {MAX_EXTENDS} files extend each other in a row"
        elif self._count >= MAX_FILES:
            what = f"extends: more than {MAX_FILES} files are read in all"
        if what:
            self.mistakes.append(Mistake(place, printable(what, 400)))
            return None
        return self.read(target, shown_target, chain)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _override(tree: Node | None, override: str, mistakes: list[Mistake]) -> None:
    """Sets one `section.key=value` in the tree; a mistake in it is noted."""
    key, equals, text = override.partition("=")
    place = f"{COMMAND_LINE}: {without_secrets(override)}"
    if not equals:
        example = "overrides are written section.key=value, such as train.max_steps=100"
        mistakes.append(Mistake(place, "there is no `=` in it", example))
        return
    parts = key.split(".")
    if key.startswith("-"):
        mistakes.append(Mistake(place, "overrides have no dashes before them", "write section.key=value"))
    elif not all(parts) or key != key.strip() or len(parts) > MAX_KEY_PARTS:
        mistakes.append(Mistake(place, "the part before `=` is no dotted key, such as train.max_steps"))
    elif parts[0] == "extends":
        mistakes.append(Mistake(place, "`extends` stands in files only"))
    else:
        try:
            node = read_value(text, place)
            if tree is not None:
                _put(tree, parts, node)
        except UnreadableError as stop:
            hidden = place.endswith(NOT_SHOWN)
            mistakes.append(Mistake(place, "the value cannot be read") if hidden else stop.mistake)


def _put(tree: Node, parts: list[str], node: Node) -> None:
    """Puts a value at a dotted place, making the sections above it. Raises UnreadableError."""
    here = tree
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(here.value, list):
            count = len(here.value)
            if not re.fullmatch("[0-9]{1,6}", part) or int(part) >= count:
                where = printable(".".join(parts[:depth]))
                entries = "1 entry" if count == 1 else f"{count} entries"
                what = f"{where} is a list of {entries}, numbered from 0; there is no {display(part)} in it"
                raise UnreadableError(Mistake(node.place, what))
            if last:
                here.value[int(part)] = node
            here = here.value[int(part)]
            continue
        if not isinstance(here.value, dict):
            here.value, here.place = {}, node.place
        if last:
            here.value[part] = merge(here.value[part], node) if part in here.value else node
        here = here.value.setdefault(part, Node({}, node.place))
