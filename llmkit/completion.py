"""Completion in a shell: what Tab offers, by the parsers of the commands themselves (argcomplete).

The shell starts `llmkit` with `_ARGCOMPLETE` set; what it prints is offered. Nothing else of llmkit runs.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmkit.command_line import CommandParser

ASKED = "_ARGCOMPLETE"
"""The variable of the environment by which a shell asks for what it may offer."""
SHELLS = ("bash", "zsh", "fish")


def add_completion_options(parser: argparse.ArgumentParser) -> None:
    """What `llmkit completion` takes."""
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=f"one of {', '.join(SHELLS)}")


def shell_code(shell: str) -> str:
    """What a shell must run for `llmkit` to be completed in it."""
    from argcomplete import shellcode

    return str(shellcode(["llmkit"], True, shell)).strip() + "\n"


def offer(parser: argparse.ArgumentParser) -> None:
    """Prints what fits at the cursor, for the shell, and ends the process."""
    from argcomplete import autocomplete
    from argcomplete.completers import DirectoriesCompleter, FilesCompleter

    CommandParser.helps_when_alone = False
    folders, configurations = DirectoriesCompleter(), FilesCompleter(("yaml", "yml"))

    def runs(prefix: str, **_: Any) -> list[str]:
        return list(checkpoints(prefix)) if "@" in prefix else list(folders(prefix))

    by_metavar = {
        "CONFIG": configurations, "section.key=value": settings, "OUT": folders, "DIR": folders,
        "FOLDER": folders, "RUN": runs, "RUN@STEP": runs, "A": runs, "B": runs, "HF_DIR": folders,
    }  # fmt: skip
    for action in _actions(parser):
        metavar = action.metavar if isinstance(action.metavar, str) else ""
        if metavar in by_metavar:
            setattr(action, "completer", by_metavar[metavar])  # noqa: B010 (argparse does not know it)
    autocomplete(parser, always_complete_options=False)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The actions of a parser and of all below it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)


def settings(prefix: str, **_: Any) -> list[str]:
    """Settings as `section.key=`; sections where nothing is given yet; values behind `=`."""
    from llmkit.config.keys import all_keys, key_of

    key, equals, _value = prefix.partition("=")
    if equals:
        found = key_of(key.replace("[", ".").replace("]", ""))
        choices = [] if found is None else [*found.choices]
        if found is not None and "true or false" in found.allowed:
            choices = ["true", "false", *choices]
        return [f"{key}={choice}" for choice in choices]
    known = all_keys().values()
    if not prefix:
        return [f"{each.path}." for each in known if each.is_section and "." not in each.path]
    return [f"{_numbered(each.path, prefix)}=" for each in known if not each.is_section]


def _numbered(path: str, prefix: str) -> str:
    """A key with the numbers of list entries that a prefix has, written as there; 0 where it has none yet.

    The last one may not be whole yet: its bracket is closed.
    """
    found = re.findall(r"\[\d+\]?|\.\d+(?=\.|$)", prefix)
    numbers = iter(f"{each}]" if each[0] == "[" and each[-1] != "]" else each for each in found)
    return re.sub(r"\.N(?=\.)", lambda _: next(numbers, ".0"), path)


def checkpoints(prefix: str) -> Iterator[str]:
    """RUN@best and RUN@STEP of the checkpoints of a run folder."""
    run = prefix.rpartition("@")[0]
    steps = sorted(Path(run, "checkpoints").glob("step-*"))
    if steps and os.path.lexists(Path(run, "checkpoints", "best.json")):
        yield f"{run}@best"
    for folder in steps:
        step = folder.name.removeprefix("step-")
        if step.isdecimal():
            yield f"{run}@{int(step)}"
