"""Loads a configuration: defaults < files that it extends < the file itself < the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmkit.config import initial_model
from llmkit.config.check import check
from llmkit.config.file_text import shipped, similar
from llmkit.config.initial_model import ReadModel, differing, with_stored_model
from llmkit.config.keys import all_keys
from llmkit.config.layers import Layer, Layers, flat, mixed, tied
from llmkit.config.mistakes import COMMAND_LINE, Mistake, display, error, printable
from llmkit.config.override import apply_overrides
from llmkit.config.paths import with_home
from llmkit.config.remarks import remarks
from llmkit.config.schema import PLUGIN, Config
from llmkit.config.settings import Facts, Settings
from llmkit.config.tree import Node, find, merge, tree_of
from llmkit.config.validate import origins, validate
from llmkit.config.walk import leaves
from llmkit.config.yaml_reader import read_file
from llmkit.errors import UserError
from llmkit.files import may_exist
from llmkit.registry import import_plugin

ASSUMED = "assumed"
"""Origin of a value that stands for one that was not given."""

MAX_EXTENDS = 8
"""Longest chain of files that extend each other."""

MAX_FILES = 64
"""Most files in all."""


@dataclass(frozen=True)
class Loaded:
    """A valid configuration.

    origins: for each setting (dotted, list indices from 0) where its value came from:
        "default", "configs/demo.yaml:12" or "command line".
    path: the file that was named.
    remarks: notes on settings that are valid but probably not intended, a sentence each.
    """

    config: Config
    origins: dict[str, str]
    path: Path
    remarks: tuple[str, ...] = ()

    @property
    def settings(self) -> Settings:
        """The configuration as one that can say where its values came from."""
        return Settings(self.config, self.origins)

    @classmethod
    def of(cls, config: Config, name: str = "settings") -> Loaded:
        """A configuration that was made in Python; `name` stands for its file in messages."""
        return cls(config, {path: name for path, _ in leaves(config)}, Path(name))


def load(
    path: str | Path, overrides: Sequence[str] = (), read_model: ReadModel | None = None,
    assumed: Mapping[str, Any] | None = None,
) -> Loaded:  # fmt: skip
    """Reads a configuration file, with `section.key=value` overrides on top.

    read_model: reads the model that `train.init_from` names; None = what the configuration says is all.
    assumed: values by their dotted keys that stand in for defaults, where neither the files nor the command
    line say anything; their origin is `ASSUMED`.
    Raises UserError that names every mistake at once, each with its file and line.
    """
    files = _Files()
    shown = str(path)
    tree = files.read(Path(path), printable(shown, 1000), ())
    files.layers.layers.append(Layer(COMMAND_LINE, {}))
    for key, node in apply_overrides(tree, overrides, files.mistakes):
        files.layers.layers[-1].settings.update(flat(node, key))
    if tree is None:
        raise error(files.mistakes, shown)
    stored = None
    if assumed:
        tree = merge(tree_of(assumed, ASSUMED), tree)
    if read_model is not None:
        tree, stored = with_stored_model(tree, read_model, files.mistakes)
    _import_plugins(tree, files.mistakes)
    config, mistakes = validate(tree)
    if config is None or files.mistakes:
        raise error(files.mistakes + mistakes, shown)
    files.layers.schema = type(config)
    config, found = with_home(config), origins(config, tree)
    loaded, notes = Loaded(config, found, Path(path)), list[str]()
    if stored is not None:
        if unlike := [with_location(loaded, mistake) for mistake in differing(loaded.settings, stored)]:
            raise error(unlike, shown)
        notes += initial_model.notes(loaded.settings, stored)
    notes += [*mixed(files.layers), *tied(files.layers), *remarks(loaded.settings, files.layers)]
    return replace(loaded, remarks=tuple(dict.fromkeys(notes)))


def _import_plugins(tree: Node, mistakes: list[Mistake]) -> None:
    """Imports what `plugins` names, before the settings are judged: it may register what they name."""
    plugins = find(tree, ("plugins",))
    if plugins is None or not isinstance(plugins.value, list):
        return  # which `validate` refuses, if it is anything
    for node in plugins.value:
        if isinstance(node.value, str) and PLUGIN.fullmatch(node.value):
            try:
                import_plugin(node.value)
            except UserError as fault:
                mistakes.append(Mistake(node.location, str(fault), "", ("plugins",)))


def check_again(loaded: Loaded, facts: Facts) -> list[Mistake]:
    """Returns what the checks of `load` find now that more is known."""
    return [with_location(loaded, mistake) for mistake in check(loaded.config, loaded.origins, facts)]


def with_location(loaded: Loaded, mistake: Mistake) -> Mistake:
    """Returns the mistake with its location: that of the first of its keys that is given, else the file."""
    given = (loaded.origins[key] for key in mistake.keys if loaded.origins.get(key, "default") != "default")
    return replace(mistake, location=mistake.location or next(given, str(loaded.path)))


class _Files:
    """The files of one configuration, each read once."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []
        self.layers = Layers()
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
        extends, reset = tree.value.pop("extends", None), tree.value.pop("reset", None)
        chain = (*above, _real(path))
        merged: Node | None = None
        readable, files = True, list[range]()
        for name, location in self._names("extends", "a file", extends):
            first = len(self.layers.layers)
            base = self._extended(path, shown, name, location, chain)
            readable = readable and base is not None
            merged = base if merged is None or base is None else merge(merged, base)
            files.append(range(first, len(self.layers.layers)))
        self.layers.lists.append(files)
        self.layers.layers.append(Layer(shown, dict(flat(tree)), self._reset(tree, reset)))
        if not readable:
            return None
        return tree if merged is None else merge(merged, tree)

    def _names(self, key: str, kind: str, node: Node | None) -> list[tuple[str, str]]:
        """The names after `extends:` or `reset:`, each with its location; kind: of what they are names."""
        if node is None:
            return []
        entries = node.value if isinstance(node.value, list) else [node]
        names = [(n.value, n.location) for n in entries if isinstance(n.value, str) and n.value]
        if len(names) < len(entries):
            shown = display(node.plain())
            what = f"{key} must be the name of {kind}, or a list of names; it is {shown}"
            self.mistakes.append(Mistake(node.location, what))
        return names

    def _reset(self, tree: Node, reset: Node | None) -> tuple[str, ...]:
        """Marks the sections of a file that replace those of the files before it; returns their names."""
        names = self._names("reset", "a section", reset)
        for name, location in names:
            key = all_keys().get(name)
            if key is None or not key.is_section or key.is_list:
                self.mistakes.append(Mistake(location, f"reset: {display(name)} is no section of settings"))
                continue
            section = tree
            for part in name.split("."):
                section.value = {} if section.value is None else section.value
                if not isinstance(section.value, dict):
                    break  # which `validate` refuses
                section = section.value.setdefault(part, Node({}, location))
            section.value, section.replaces = {} if section.value is None else section.value, True
        return tuple(name for name, _ in names)

    def _extended(
        self, path: Path, shown: str, name: str, location: str, chain: tuple[Path, ...]
    ) -> Node | None:
        """A file that another one extends; None, with the mistake noted, if it cannot be used."""
        name = os.path.expanduser(name)
        target = path.parent / name
        shown_target = printable(os.path.normpath(os.path.join(os.path.dirname(shown), name)), 1000)
        what = ""
        if "\0" in name or not may_exist(target):
            what = f"extends: there is no file {shown_target} (names are relative to this file)"
            what += "" if "\0" in name else similar(target) or shipped(shown_target)
        elif os.path.isdir(target):
            what = f"extends: {shown_target} is no file but a folder; name a file in it"
        elif _real(target) in chain:
            circle = [*chain[chain.index(_real(target)) :], _real(target)]
            what = f"extends: the files extend each other in a circle: {' -> '.join(p.name for p in circle)}"
        elif len(chain) > MAX_EXTENDS:
            what = f"extends: more than {MAX_EXTENDS} files extend each other in a row"
        elif self._count >= MAX_FILES:
            what = f"extends: more than {MAX_FILES} files are read in all"
        if what:
            self.mistakes.append(Mistake(location, printable(what, 400)))
            return None
        return self.read(target, shown_target, chain)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
