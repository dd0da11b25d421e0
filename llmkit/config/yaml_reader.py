"""Reads one YAML file into a tree that knows the line of every value.

Scalars follow the YAML 1.2 core schema: `1e-4` is a number, `off` is text.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import yaml

from llmkit.config.file_text import UnreadableError, read_text
from llmkit.config.mistakes import Mistake, display, printable
from llmkit.config.tree import Node, Scalar

MAX_DEPTH = 32
MAX_VALUES = 20_000
MAX_QUOTED = 60
"""Longest value of an override that a message shows with the quotes that it needs."""

_CONSTANTS: dict[str, bool | float | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **{sign + inf: float(sign + "inf") for sign in ("", "+", "-") for inf in (".inf", ".Inf", ".INF")},
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_INTEGER = re.compile(r"(?P<ten>[-+]?[0-9]+)|0o(?P<eight>[0-7]+)|0x(?P<sixteen>[0-9a-fA-F]+)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def read_file(path: Path, shown: str, mistakes: list[Mistake]) -> Node | None:
    """The tree of a file, or None if it cannot be read; what is wrong is added to `mistakes`.

    shown: the file's name in messages.
    """
    try:
        text = read_text(path, shown)
        root = _read(text, lambda line: f"{shown}:{line}", mistakes)
        if not isinstance(root.value, dict):
            kind = "is empty" if root.value is None else "is no mapping"
            raise UnreadableError(
                Mistake(root.location, f"the file {kind}; sections such as `data:` are expected")
            )
    except UnreadableError as stop:
        mistakes.append(stop.mistake)
        return None
    return root


def read_value(text: str, location: str) -> Node:
    """The tree of an override's value: one scalar or flow value. Raises UnreadableError."""
    if "\n" in text or "\r" in text:
        raise UnreadableError(
            Mistake(location, 'the value has a line break; write it as "\\n" within double quotes')
        )
    if bad := next((ord(c) for c in text if "\udc80" <= c <= "\udcff"), None):
        # What the interpreter makes of a byte that it cannot decode.
        raise UnreadableError(
            Mistake(location, f"the value holds the byte 0x{bad - 0xDC00:02x}, which is no UTF-8")
        )
    mistakes: list[Mistake] = []
    try:
        node = _read(text, lambda line: location, mistakes, value_only=True)
    except UnreadableError as stop:
        raise UnreadableError(Mistake(location, stop.mistake.what, _quoting(text))) from None
    if mistakes:
        raise UnreadableError(mistakes[0])
    return node


def _quoting(text: str) -> str:
    """How an override's value that is no YAML is mended, as it is typed into a shell."""
    if text[:1] in ("[", "{"):
        return (
            "close what is opened, and put the whole override into single quotes: the shell cuts it at spaces"
        )
    if text.startswith('"') or len(text) > MAX_QUOTED:
        return "put quotes around it"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f"put quotes around it: {shlex.quote(display(escaped, 2 * MAX_QUOTED))}"


def resolve(text: str) -> Scalar:
    """A plain scalar by the YAML 1.2 core schema. Raises ValueError for integers beyond 64 bits."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if match := _INTEGER.fullmatch(text):
        digits, base = match[match.lastgroup or "ten"], {"ten": 10, "eight": 8}.get(match.lastgroup or "", 16)
        number = int(digits, base) if len(digits) <= 64 else 2**64
        if not -(2**63) <= number < 2**63:
            raise ValueError(f"the whole number {printable(text, 40)} does not fit into 64 bits")
        return number
    return float(text) if _FLOAT.fullmatch(text) else text


def _read(
    text: str, location: Callable[[int], str], mistakes: list[Mistake], *, value_only: bool = False
) -> Node:
    """The tree of a text. Raises UnreadableError where the rest of the text would make no sense.

    value_only: it must be one scalar or flow value, as that of an override.
    """
    try:
        loader = _Loader(text, location, mistakes)
        root = loader.get_single_node()
        if value_only:
            _check_value_only(root, text, location)
        return Node(None, location(1)) if root is None else loader.tree(root)
    except yaml.reader.ReaderError as fault:
        line = text.count("\n", 0, fault.position) + 1
        what = f"the control character {chr(fault.character)!a} is not allowed"
        raise UnreadableError(Mistake(location(line), what)) from None
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        problem = printable(str(fault.problem or fault.context or "cannot be parsed"))
        what = f"this is not valid YAML: {problem}{_hint(problem)}"
        raise UnreadableError(Mistake(location(1 if mark is None else mark.line + 1), what)) from None
    except (ValueError, OverflowError):  # an escape such as "\UFFFFFFFF" names no character
        what = "this is not valid YAML: an escape names no character"
        raise UnreadableError(Mistake(location(1), what)) from None


def _hint(problem: str) -> str:
    if "\\t" in problem:
        return " (indent with spaces, not tabs)"
    if "mapping values are not allowed" in problem:
        return " (wrong indentation, or a text with a colon that needs quotes)"
    return " (a file holds one)" if "another document" in problem else ""


def _check_value_only(root: yaml.Node | None, text: str, location: Callable[[int], str]) -> None:
    """Refuses what an override's value must not be: a block of YAML. Raises UnreadableError."""
    what = ""
    outside = text
    if root is not None:
        outside = text[: root.start_mark.index] + text[root.end_mark.index :]
    if isinstance(root, yaml.CollectionNode) and not root.flow_style:
        what = "the value reads as a mapping or list in block form"
    elif isinstance(root, yaml.ScalarNode) and root.style in ("|", ">"):
        what = "the value reads as a block of text"
    elif outside.strip():
        what = f"YAML reads {display(outside.strip())} as no part of the value but as a comment or a mark"
    if what:
        raise UnreadableError(Mistake(location(1), what))


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """PyYAML's composer, which gives nodes with their lines; no value is constructed.

    Anchors, aliases and tags are refused, and a hostile file before it can grow.
    """

    def __init__(self, text: str, location: Callable[[int], str], mistakes: list[Mistake]) -> None:
        super().__init__(text)
        self._location, self._mistakes = location, mistakes
        self._depth = self._values = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        """The next node with all below it."""
        event = self.peek_event()
        self._values += 1
        if isinstance(event, yaml.AliasEvent):
            self._refuse(event, f"aliases (*{printable(event.anchor)}) are not supported")
        if self._values > MAX_VALUES:
            self._refuse(event, f"more than {MAX_VALUES} values; is this a configuration?")
        if self._depth > MAX_DEPTH:
            self._refuse(event, f"nested more than {MAX_DEPTH} levels deep")
        if event.anchor is not None:
            what = f"anchors (&{printable(event.anchor)}) are not supported; repeat the value"
            self._mistake(event, what)
        if event.tag is not None:
            self._mistake(event, f"tags ({printable(event.tag)}) are not supported; leave the tag out")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def tree(self, node: yaml.Node, location: str | None = None) -> Node:
        """The node as a tree of settings; location: of its key."""
        here = location or self._location(node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            return Node(self._scalar(node), here)
        if isinstance(node, yaml.SequenceNode):
            return Node([self.tree(item) for item in node.value], here)
        section: dict[str, Node] = {}
        for name, value in node.value:
            below = self.tree(value, self._location(name.start_mark.line + 1))
            if (key := self._key(name, section)) is not None:
                section[key] = below
        return Node(section, here)

    def _key(self, node: yaml.Node, section: dict[str, Node]) -> str | None:
        """A mapping's key; None where it cannot be used."""
        if not isinstance(node, yaml.ScalarNode):
            self._refuse(node, "a key must be text, not a mapping or list")
        key = str(node.value)
        if key == "<<" and not node.style:
            self._mistake(node, "merge keys (<<) are not supported; use `extends:` or repeat the values")
        elif not isinstance(self._scalar(node), str):
            self._mistake(node, f"a key must be text, not {printable(key) or 'null'}")
        elif key in section:
            line = section[key].location.rpartition(":")[2]
            first = f", first in line {line}" if line.isdecimal() else ""
            self._mistake(node, f'"{printable(key)}" is given twice{first}')
        else:
            return key
        return None

    def _scalar(self, node: yaml.ScalarNode) -> Scalar:
        text = str(node.value)
        if any("\ud800" <= c <= "\udfff" for c in text):
            self._mistake(node, "an escape in this text names half a character (a surrogate)")
            return ""
        try:
            return text if node.style else resolve(text)
        except ValueError as fault:
            self._mistake(node, str(fault))
            return 1

    def _mistake(self, at: yaml.Node | yaml.Event, what: str) -> None:
        self._mistakes.append(Mistake(self._location(at.start_mark.line + 1), what))

    def _refuse(self, at: yaml.Node | yaml.Event, what: str) -> NoReturn:
        raise UnreadableError(Mistake(self._location(at.start_mark.line + 1), what))
