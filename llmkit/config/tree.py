"""A tree of settings as written: every value with its file and line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Scalar = str | int | float | bool | None
Path = tuple[str | int, ...]
"""The keys and list indices that lead to a value."""


@dataclass
class Node:
    """A value with its location, such as "configs/demo.yaml:12"; in a mapping, that of its key.

    replaces: whether a section replaces what is under it in other files, instead of being merged with it.
    """

    value: Scalar | list[Node] | dict[str, Node]
    location: str
    replaces: bool = False

    def plain(self) -> object:
        """The value without locations."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


def merge(under: Node, over: Node) -> Node:
    """`over` on top of `under`: mappings merge, everything else (also a list) replaces.

    An empty section, as is left when all its keys are commented out, changes nothing; one that is marked so
    replaces what is under it.
    """
    if over.replaces:
        return over
    if not isinstance(under.value, dict) or not isinstance(over.value, dict):
        return under if over.value is None and isinstance(under.value, dict) else over
    merged = dict(under.value)
    for key, node in over.value.items():
        merged[key] = merge(merged[key], node) if key in merged else node
    return Node(merged, over.location, under.replaces)


def tree_of(values: Mapping[str, Any], location: str) -> Node:
    """The tree of some values by their dotted keys, all of them from one place."""
    root = Node({}, location)
    for key, value in values.items():
        *sections, name = key.split(".")
        here = root
        for section in sections:
            assert isinstance(here.value, dict)
            here = here.value.setdefault(section, Node({}, location))
        assert isinstance(here.value, dict)
        here.value[name] = _node(value, location)
    return root


def _node(value: Any, location: str) -> Node:
    if isinstance(value, dict):
        return Node({key: _node(each, location) for key, each in value.items()}, location)
    return Node([_node(each, location) for each in value] if isinstance(value, list) else value, location)


def find(tree: Node, path: Iterable[str | int]) -> Node | None:
    """The node at a path, None if there is none."""
    node: Node | None = tree
    for part in path:
        if isinstance(part, str) and node is not None and isinstance(node.value, dict):
            node = node.value.get(part)
        elif isinstance(part, int) and node is not None and isinstance(node.value, list):
            node = node.value[part] if part < len(node.value) else None
        else:
            return None
    return node


def location_of(tree: Node, path: Path) -> str:
    """Returns the location of a path, or else of the innermost section above it that is in the tree."""
    while (node := find(tree, path)) is None:
        path = path[:-1]
    return node.location


def dotted(path: Path) -> str:
    """As in "data.sources.0.type"."""
    return ".".join(str(part) for part in path)


def undotted(key: str) -> Path:
    """The path of a dotted key; its numbers are list indices."""
    return tuple(int(part) if part.isdecimal() else part for part in key.split("."))
