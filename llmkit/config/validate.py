"""Validates a tree of settings: the Config, or the list of all mistakes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from llmkit.config.check import check
from llmkit.config.entries import UnusableSettings
from llmkit.config.explain import FaultKind, explain
from llmkit.config.keys import all_keys, general, key_of, numbered, suggest
from llmkit.config.mistakes import COMMAND_LINE, SHOWN, Mistake
from llmkit.config.registered import config_class, where_chosen
from llmkit.config.renamed import RENAMED
from llmkit.config.schema import Config
from llmkit.config.tree import Node, Path, dotted, find, location_of, merge, undotted
from llmkit.config.walk import leaves

ROUNDS = 5
"""How often mistakes are taken out of a tree to look for further ones."""


def validate(tree: Node) -> tuple[Config | None, list[Mistake]]:
    """Returns the Config of a tree, and every mistake in it, one per key; the tree may be changed.

    Where a value is wrong it is taken out and the rest is looked at again, so that one mistake
    hides no other; cross-field checks leave out the keys that are wrong already.
    """
    mistakes: list[Mistake] = []
    wrong: set[str] = set()
    _drop_empty_sections(tree)
    for _ in range(ROUNDS):
        try:
            schema = config_class(tree.plain())
        except UnusableSettings as fault:  # without its class nothing more can be judged
            path = where_chosen(tree.plain(), fault.component)
            return None, [*mistakes, Mistake(location_of(tree, path), str(fault), "", (dotted(path),))]
        try:
            config = schema.model_validate(tree.plain())
        except ValidationError as fault:
            faults: list[tuple[Path, FaultKind, bool]] = []
            for path, kind in _now(_by_key(fault.errors(include_url=False), schema)):
                faults.append((path, kind, len(mistakes) >= SHOWN))
                mistakes += explain(tree, *faults[-1], schema)
            wrong |= {_mend(tree, *each, schema) for each in faults}
            continue
        for found in check(config, origins(config, tree)):
            if not any(_touches(key, bad) for key in found.keys for bad in wrong):
                mistakes.append(replace(found, location=_first_location(tree, found.keys)))
        return (None if mistakes else config), mistakes
    return None, mistakes


def origins(config: Config, tree: Node) -> dict[str, str]:
    """Returns the origin of each setting's value, by its dotted path."""
    return {path: _origin(tree, path) for path, _ in leaves(config)}


def _origin(tree: Node, path: str) -> str:
    node = find(tree, undotted(path))
    if node is None:
        return "default"
    locations = [node.location]
    if isinstance(node.value, list):
        locations += [item.location for item in node.value if item.location.startswith(COMMAND_LINE)]
    short = (COMMAND_LINE if location.startswith(COMMAND_LINE) else location for location in locations)
    return ", ".join(dict.fromkeys(short))


def _touches(key: str, wrong: str) -> bool:
    """Whether one of two dotted keys is the other or lies below it."""
    return f"{key}.".startswith(f"{wrong}.") or f"{wrong}.".startswith(f"{key}.")


def _first_location(tree: Node, keys: Iterable[str]) -> str:
    """Returns the location of the first of some keys that is given, or else of the first one's section."""
    paths = [undotted(key) for key in keys]
    given = [node for path in paths if (node := find(tree, path)) is not None]
    return given[0].location if given else location_of(tree, paths[0])


def _drop_empty_sections(tree: Node) -> None:
    """A section with nothing below it (all its keys commented out) is the same as none."""
    for path, key in all_keys().items():
        section, _, name = path.rpartition(".")
        parent = find(tree, section.split(".") if section else ())
        if key.is_section and parent is not None and isinstance(parent.value, dict):
            node = parent.value.get(name)
            if node is not None and node.value is None and not key.is_list:
                node.value = {}


def _by_key(details: list[ErrorDetails], schema: type[Config]) -> dict[Path, FaultKind]:
    """Pydantic's errors by the key they are about: a union's or list's many errors become one."""
    found: dict[Path, FaultKind] = {}
    for detail in details:
        path: Path = ()
        for part in detail["loc"]:
            key = key_of(dotted(path), schema) if path else None
            if key is not None and not (key.is_section and (isinstance(part, str) or key.is_list)):
                break
            path = (*path, part)
        kind: FaultKind = "wrong"
        if path == detail["loc"] and detail["type"] in ("missing", "extra_forbidden"):
            kind = "missing" if detail["type"] == "missing" else "unknown"
        found.setdefault(path, kind)
    return found


def _now(faults: dict[Path, FaultKind]) -> list[tuple[Path, FaultKind]]:
    """What to report first: a missing key waits until no misnamed one can turn out to be it."""
    everything = list(faults.items())
    return [item for item in everything if item[1] != "missing"] or everything


def _mend(tree: Node, path: Path, kind: FaultKind, brief: bool, schema: type[Config]) -> str:
    """Takes a mistake out of the tree; returns the dotted key that must not be judged any more.

    A misnamed key's value goes to its right name where that is free, to be judged there.
    """
    key = dotted(path)
    if path[:2] in (("data",), ("data", "sources")) and (len(path) <= 3 or path[3] == "type"):
        return _stub_sources(tree, path)
    path = _judged_alone(path, schema)
    parent = find(tree, path[:-1])
    if parent is None or not isinstance(parent.value, dict):  # it went with another mistake
        return key
    removed = parent.value.pop(str(path[-1]), None)
    if kind != "unknown" or removed is None or brief:
        return key
    if general(key) in RENAMED:
        return numbered(RENAMED[general(key)][0], key)
    right = suggest(key, schema)
    if len(right) != 1:
        return key
    section, _, name = right[0].rpartition(".")
    beside = section == ".".join("N" if isinstance(part, int) else part for part in path[:-1])
    there = parent.value.get(name)
    if not beside or (there is not None and not isinstance(there.value, dict)):
        return right[0]
    parent.value[name] = removed if there is None else merge(removed, there)
    return key


def _judged_alone(path: Path, schema: type[Config]) -> Path:
    """What goes with a mistake: all of a list where an entry is no mapping, or lacks a required key."""
    if isinstance(path[-1], int):
        return path[:-1]
    found = key_of(dotted(path), schema)
    if found is not None and found.default == "required" and isinstance(path[-2], int):
        return path[:-2]
    return path


def _stub_sources(tree: Node, path: Path) -> str:
    """Puts a valid source where `data`, its list of sources or one of them is missing or wrong."""
    stub: dict[str, Node] = {"type": Node("stdlib", tree.location)}
    assert isinstance(tree.value, dict)
    data = tree.value.setdefault("data", Node({}, tree.location))
    if not isinstance(data.value, dict):
        data.value = {}
    sources = data.value.setdefault("sources", Node([], data.location))
    if len(path) >= 3 and isinstance(sources.value, list) and isinstance(path[2], int):
        sources.value[path[2]].value = stub
        return dotted(path[:3])
    sources.value = [Node(stub, sources.location)]
    return "data.sources"
