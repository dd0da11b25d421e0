"""Reads one YAML file into a tree that knows the line of every value.

The parser's events are checked one by one while the tree is built, so a hostile file is refused
before it can grow. Scalars follow the YAML 1.2 core schema: `1e-4` is a number, `off` is text.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import yaml

from llmkit.config.mistakes import Mistake, display, printable
from llmkit.config.tree import Node, Scalar

MAX_BYTES = 2**20
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
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class UnreadableError(Exception):
    """The text cannot be read any further; carries the mistake that says why."""

    def __init__(self, mistake: Mistake) -> None:
        super().__init__(mistake.what)
        self.mistake = mistake


def read_file(path: Path, shown: str, mistakes: list[Mistake]) -> Node | None:
    """The tree of a file, or None if it cannot be read; what is wrong is added to `mistakes`.

    shown: the file's name in messages.
    """
    try:
        text = _text(path, shown)
        root = _read(text, lambda line: f"{shown}:{line}", mistakes)
        if not isinstance(root.value, dict):
            kind = "is empty" if root.value is None else "is no mapping"
            raise UnreadableError(
                Mistake(root.place, f"the file {kind}; sections such as `data:` are expected")
            )
    except UnreadableError as stop:
        mistakes.append(stop.mistake)
        return None
    return root


def read_value(text: str, place: str) -> Node:
    """The tree of an override's value: one scalar or flow value. Raises UnreadableError."""
    if "\n" in text or "\r" in text:
        raise UnreadableError(
            Mistake(place, 'the value has a line break; write it as "\\n" within double quotes')
        )
    if bad := _UNPRINTABLE.search(text):
        what = f"the control character {bad[0]!a}"
        if "\udc80" <= bad[0] <= "\udcff":  # what the interpreter makes of a byte that it cannot decode
            what = f"the byte 0x{ord(bad[0]) - 0xDC00:02x}, which is no UTF-8"
        raise UnreadableError(Mistake(place, f"the value holds {what}"))
    mistakes: list[Mistake] = []
    try:
        node = _read(text, lambda line: place, mistakes, value_only=True)
    except UnreadableError as stop:
        raise UnreadableError(Mistake(place, stop.mistake.what, _quoting(text))) from None
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


def _text(path: Path, shown: str) -> str:
    """The file's text. Raises UnreadableError."""

    def refuse(what: str, line: int | None = None) -> NoReturn:
        raise UnreadableError(Mistake(shown if line is None else f"{shown}:{line}", what))

    try:
        if not path.exists():
            order = "; the configuration comes before the overrides" if "=" in shown else similar(path)
            refuse(f"there is no such file{order}")
        if not path.is_file():
            refuse("this is no file" + (f" but a folder{_within(path, shown)}" if path.is_dir() else ""))
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as fault:
        refuse(f"the file cannot be read: {getattr(fault, 'strerror', None) or fault}")
    if len(raw) > MAX_BYTES:
        refuse("the file is larger than 1 MiB; is this a configuration?")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        refuse(f"the byte 0x{raw[fault.start]:02x} is no UTF-8", raw.count(b"\n", 0, fault.start) + 1)
    if bad := _UNPRINTABLE.search(text):
        refuse(f"the control character {bad[0]!a} is not allowed", text.count("\n", 0, bad.start()) + 1)
    return text


def similar(path: Path) -> str:
    """The name beside a file that is not there which may be meant; "" where there is none."""
    with contextlib.suppress(OSError):
        if close := difflib.get_close_matches(path.name, os.listdir(path.parent), n=1, cutoff=0.75):
            return f"; did you mean {printable(close[0])}?"
    return ""


def _within(folder: Path, shown: str) -> str:
    """The configuration in a folder that was named in its place, as one of a run is."""
    inside = os.path.join(shown, "config.yaml")
    return f"; name a configuration in it: {inside}" if (folder / "config.yaml").is_file() else ""


def _read(
    text: str, place: Callable[[int], str], mistakes: list[Mistake], *, value_only: bool = False
) -> Node:
    """The tree of a text. Raises UnreadableError where the rest of the text would make no sense."""
    builder = _Builder(place, mistakes)
    end = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if value_only:
                _check_value_only(event, place)
            if isinstance(event, yaml.NodeEvent | yaml.CollectionEndEvent):
                end = event.end_mark.index
            builder.add(event)
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        line = 1 if mark is None else mark.line + 1
        problem = printable(str(fault.problem or fault.context or "cannot be parsed"))
        raise UnreadableError(
            Mistake(place(line), f"this is not valid YAML: {problem}{_hint(problem)}")
        ) from None
    except yaml.YAMLError as fault:
        raise UnreadableError(Mistake(place(1), f"this is not valid YAML: {printable(str(fault))}")) from None
    except (ValueError, OverflowError):  # an escape such as "\UFFFFFFFF" names no character
        raise UnreadableError(
            Mistake(place(1), "this is not valid YAML: an escape names no character")
        ) from None
    if value_only and text[end:].strip():
        raise UnreadableError(Mistake(place(1), "the value ends in a comment"))
    return builder.root or Node(None, place(1))


def _hint(problem: str) -> str:
    if "'\\t'" in problem or "\\t" in problem:
        return " (indent with spaces, not tabs)"
    if "mapping values are not allowed" in problem:
        return " (wrong indentation, or a text with a colon that needs quotes)"
    return ""


def _check_value_only(event: yaml.Event, place: Callable[[int], str]) -> None:
    """Refuses what an override's value must not be: a block of YAML. Raises UnreadableError."""
    if isinstance(event, yaml.CollectionStartEvent) and not event.flow_style:
        what = "the value reads as a mapping or list in block form"
    elif isinstance(event, yaml.ScalarEvent) and event.style in ("|", ">"):
        what = "the value reads as a block of text"
    elif isinstance(event, yaml.DocumentStartEvent) and event.explicit:
        what = "the value begins with `---` or `%`"
    else:
        return
    raise UnreadableError(Mistake(place(1), what))


@dataclass
class _Frame:
    """A mapping or list that is being built; `key` is the key whose value comes next."""

    node: Node
    key: str | None = None
    skip: bool = False
    lines: dict[str, str] = field(default_factory=dict)


class _Builder:
    """Builds the tree from parser events on a stack of its own, never by recursion."""

    def __init__(self, place: Callable[[int], str], mistakes: list[Mistake]) -> None:
        self.root: Node | None = None
        self._place = place
        self._mistakes = mistakes
        self._stack: list[_Frame] = []
        self._values = 0
        self._documents = 0

    def add(self, event: yaml.Event) -> None:
        """Takes the next event. Raises UnreadableError."""
        place = self._place(event.start_mark.line + 1)
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise UnreadableError(Mistake(place, "a second document begins here; a file holds one"))
            if event.version or event.tags:
                raise UnreadableError(Mistake(place, "directives (%YAML, %TAG) are not supported"))
        elif isinstance(event, yaml.AliasEvent):
            raise UnreadableError(Mistake(place, f"aliases (*{printable(event.anchor)}) are not supported"))
        elif isinstance(event, yaml.NodeEvent):
            self._node(event, place)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._stack.pop()

    def _node(self, event: yaml.NodeEvent, place: str) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            raise UnreadableError(Mistake(place, f"more than {MAX_VALUES} values; is this a configuration?"))
        if event.anchor is not None:
            self._mistake(place, f"anchors (&{printable(event.anchor)}) are not supported; repeat the value")
        if event.tag is not None:
            self._mistake(place, f"tags ({printable(event.tag)}) are not supported; leave the tag out")
        frame = self._stack[-1] if self._stack else None
        if frame is not None and isinstance(frame.node.value, dict) and frame.key is None:
            self._key(frame, event, place)
            return
        self._value(frame, event, place)

    def _key(self, frame: _Frame, event: yaml.NodeEvent, place: str) -> None:
        """The event is a mapping's key."""
        if not isinstance(event, yaml.ScalarEvent):
            raise UnreadableError(Mistake(place, "a key must be text, not a mapping or list"))
        key, skip = event.value, True
        if event.implicit[0] and key == "<<":
            self._mistake(place, "merge keys (<<) are not supported; use `extends:` or repeat the values")
        elif event.implicit[0] and not isinstance(self._scalar(event, place), str):
            self._mistake(place, f"a key must be text, not {printable(key) or 'null'}")
        elif key in frame.lines:
            line = frame.lines[key].rpartition(":")[2]
            first = f", first in line {line}" if line.isdecimal() else ""
            self._mistake(place, f'"{printable(key)}" is given twice{first}')
        else:
            frame.lines[key], skip = place, False
        frame.key, frame.skip = key, skip

    def _value(self, frame: _Frame | None, event: yaml.NodeEvent, place: str) -> None:
        """The event is a value: of the mapping's last key, of the list, or the whole document."""
        node = Node(None, place)
        if frame is None:
            self.root = node
        elif isinstance(frame.node.value, dict):
            key = frame.key
            assert key is not None
            if not frame.skip:
                node.place = frame.lines[key]
                frame.node.value[key] = node
            frame.key = None
        else:
            assert isinstance(frame.node.value, list)
            frame.node.value.append(node)
        if isinstance(event, yaml.ScalarEvent):
            node.value = self._scalar(event, place)
            return
        if len(self._stack) >= MAX_DEPTH:
            raise UnreadableError(Mistake(place, f"nested more than {MAX_DEPTH} levels deep"))
        node.value = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._stack.append(_Frame(node))

    def _scalar(self, event: yaml.ScalarEvent, place: str) -> Scalar:
        text: str = event.value
        if any("\ud800" <= c <= "\udfff" for c in text):
            self._mistake(place, "an escape in this text names half a character (a surrogate)")
            return ""
        if event.style is not None and event.style != "":
            return text
        try:
            return resolve(text)
        except ValueError as fault:
            self._mistake(place, str(fault))
            return 1

    def _mistake(self, place: str, what: str) -> None:
        self._mistakes.append(Mistake(place, what))
