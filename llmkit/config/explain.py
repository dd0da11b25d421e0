"""Explains a mistake about one key: what is wrong, what is allowed, and which key was probably meant."""

from __future__ import annotations

import difflib
import math
from dataclasses import replace
from typing import Literal

from llmkit.config.keys import Key, all_keys, general, key_of, numbered, suggest
from llmkit.config.mistakes import COMMAND_LINE, Mistake, display, is_secret, listed, printable
from llmkit.config.renamed import REMOVED, RENAMED
from llmkit.config.schema import Config
from llmkit.config.tree import Node, Path, dotted, find, location_of
from llmkit.config.yaml_reader import resolve

FaultKind = Literal["unknown", "missing", "wrong"]
"""A key that is unknown, a required one that is missing, or a value that is not allowed."""

_TRUTH = {
    **dict.fromkeys(("yes", "y", "on", "true"), "true"),
    **dict.fromkeys(("no", "n", "off", "false"), "false"),
}


def explain(
    tree: Node, path: Path, kind: FaultKind, brief: bool, schema: type[Config] = Config
) -> list[Mistake]:
    """Returns the mistakes about one key. brief: do not search for similar keys.

    There are several mistakes only where a missing section has several required keys.
    """
    location, name, key = location_of(tree, path), dotted(path), key_of(dotted(path), schema)
    if kind == "unknown" or key is None:
        unknown = Mistake(location, f"{printable(name)} is an unknown key")
        return [unknown if brief else _unknown(location, path, schema)]
    if kind == "missing":
        required = _required(key, name, schema)
        return [Mistake(location, f"{k.path} is required: {k.allowed}", k.doc, (k.path,)) for k in required]
    node = find(tree, path)
    value = None if node is None else node.plain()
    shown = display(value)
    shown = f"the text {shown}" if shown.startswith('"') else shown
    what = f"{name} must be {key.allowed}; it is {shown}{_hint(value, key, location)}"
    return [Mistake(location, what, "" if key.is_section else key.doc, (name,))]


def _required(key: Key, name: str, schema: type[Config]) -> list[Key]:
    """Returns the key itself, or the required keys of a section."""
    if not key.is_section or key.is_list:
        return [replace(key, path=name)]
    below = [k for k in all_keys(schema).values() if k.path.rpartition(".")[0] == key.path]
    return [k for k in below if k.default == "required"]


def _unknown(location: str, path: Path, schema: type[Config]) -> Mistake:
    """Returns the mistake of an unknown key, with similar keys; never shows its value."""
    key = dotted(path)
    what = f"{printable(key, 100)} is an unknown key"
    if is_secret(key):
        hub = any(word in key.lower() for word in ("hf", "hub", "huggingface"))
        variable = "HF_TOKEN" if hub else "WANDB_API_KEY"
        advice = f"remove it, and set it in the environment instead (such as {variable}) or log in once"
        return Mistake(location, f"{what}, and secrets never belong in a configuration", advice, (key,))
    if isinstance(path[-1], str) and "." in path[-1] and key_of(key, schema) is not None:
        section, _, name = key.rpartition(".")
        what += f" in a file; write `{name}:` below `{section}:` (dotted keys are for the command line)"
        return Mistake(location, what, "", (key,))
    if general(key) in RENAMED:
        new, convert, example = RENAMED[general(key)]
        value = ""
        if example is not None:
            value = f"; what was {display(example)} is {display(convert(example))}"
        what = f"{key} is called {numbered(new, key)} now{value}"
        return Mistake(location, what, all_keys()[new].doc, (key, numbered(new, key)))
    if general(key) in REMOVED:
        return Mistake(location, f"{key} was removed: {REMOVED[general(key)]}", "", (key,))
    right = suggest(key, schema)
    if not right:
        section = general(dotted(path[:-1]))
        names = [p.rpartition(".")[2] for p in all_keys(schema) if p.rpartition(".")[0] == section]
        return Mistake(location, what, f"known here: {', '.join(names)}", (key,))
    what += f"; did you mean {' or '.join(numbered(r, key) for r in right)}?"
    note = f"{numbered(right[0], key)}: {all_keys(schema)[right[0]].doc}" if len(right) == 1 else ""
    return Mistake(location, what, note, (key,))


def _hint(value: object, key: Key, location: str) -> str:
    """Suggests a fix for a value of the wrong type, where there is an obvious one."""
    if isinstance(value, str):
        return _text_hint(value, key)
    if isinstance(value, float) and not math.isfinite(value):
        return "; it must be finite"
    if isinstance(value, float) and value.is_integer() and "whole number" in key.allowed:
        return f"; write {int(value)}"
    if isinstance(value, int | float) and key.allowed.startswith("text"):
        quoted = f'"{display(value)}"'
        return "; put quotes around it: " + (f"'{quoted}'" if location.startswith(COMMAND_LINE) else quoted)
    if isinstance(value, dict) and key.is_section and key.is_list:
        return "; begin each entry with `- `"
    return ""


def _text_hint(value: str, key: Key) -> str:
    """Suggests a fix where a string was given for another type, or for another choice."""
    word = value.lower()
    if key.is_section:
        below = [each for each in all_keys().values() if each.path.rpartition(".")[0] == key.path]
        taking = [each.path for each in below if word in each.choices]
        return f"; {word} is a value of {listed(taking)}" if taking else ""
    if word in ("none", "null", "nil") and key.allowed.endswith("null"):
        return "; write null"
    if word in _TRUTH and "disabled" in key.choices:
        return "; did you mean disabled?"
    if key.choices and (close := difflib.get_close_matches(word, key.choices, n=1, cutoff=0.6)):
        return f"; did you mean {close[0]}?"
    if word in _TRUTH and "true or false" in key.allowed:
        return f"; write {_TRUTH[word]}, without quotes"
    bare = word.replace("_", "").replace(",", "").replace(" ", "")
    if "number" in key.allowed and bare and len(bare) < 19 and isinstance(resolve(bare), int | float):
        return "" if isinstance(resolve(bare), bool) else f"; write {bare}, without quotes or separators"
    return ""
