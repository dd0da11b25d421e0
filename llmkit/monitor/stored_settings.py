"""The settings of a start as its run folder keeps them: to show and compare them, not to run them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmkit.config.keys import general, keys
from llmkit.config.layers import flat
from llmkit.config.mistakes import Mistake, display
from llmkit.config.renamed import with_new_names
from llmkit.config.yaml_reader import read_file

MARK = "  # "
"""Stands between a value and its origin in configs/start-0001.yaml."""


@dataclass(frozen=True)
class StoredSettings:
    """Settings by their dotted names of today; entries of lists of sections are numbered from 0.

    origins: where each is from, such as "configs/demo.yaml:12"; none where the file does not say.
    """

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def get(self, name: str, otherwise: Any = None) -> Any:
        """The value of a setting."""
        return self.values.get(name, otherwise)

    def changed(self) -> dict[str, tuple[str, str, str]]:
        """Settings that are not at their defaults, each with its value, its default and its origin.

        A default that does not exist is "". Values are as messages show them: nothing that looks like a
        secret is among them.
        """
        defaults = {key.path: key.default for key in keys()}
        found = {}
        for name, value in self.values.items():
            shown, default = display(value), defaults.get(general(name), "")
            origin = self.origins.get(name, "")
            if shown != default and origin != "default":  # empty lists of sections have no text of a default
                found[name] = (shown, "" if default == "required" else default, origin)
        return found


def read_settings(path: Path) -> StoredSettings:
    """Reads a file of settings, by any version of llmkit; what cannot be read is as if it were not there."""
    mistakes: list[Mistake] = []
    tree = read_file(path, path.name, mistakes)
    if tree is None:
        return StoredSettings()
    lines = path.read_text(errors="replace").splitlines()
    places = {name: node.location.rpartition(":")[2] for name, node in flat(tree)}
    written = {name: lines[int(line) - 1] for name, line in places.items() if line.isdecimal()}
    plain = tree.plain()
    assert isinstance(plain, dict)
    values = dict(_leaves(with_new_names(plain)))
    origins = {
        name: written[name].rpartition(MARK)[2].strip() for name in values if MARK in written.get(name, "")
    }
    return StoredSettings(values, origins)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their dotted names; entries of a list of sections are numbered."""
    if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        yield name, value
        return
    for key, below in value.items():
        yield from _leaves(below, f"{name}.{key}" if name else str(key))


def differences(settings: Sequence[StoredSettings]) -> dict[str, list[str]]:
    """Settings that are not the same for all, each with its value for each of them; "" where one has none."""
    names = dict.fromkeys(name for each in settings for name in each.values)
    defaults = {key.path: key.default for key in keys()}
    found = {}
    for name in names:
        listed = general(name) != name  # where an entry is missing, its settings have no defaults
        absent = "" if listed else defaults.get(name, "")
        shown = [display(each.values[name]) if name in each.values else absent for each in settings]
        if len(set(shown)) > 1:
            found[name] = shown
    return found
