"""The help of every command: examples that its parser takes, and defaults."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmkit.cli import _parser
from llmkit.command_examples import COLUMNS, EXAMPLES, HEADINGS, example_text

ROOT = Path(__file__).parents[1]


def leaves(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """The commands that do something, by their names."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield name, parser
    for action in below:
        for word, sub in action.choices.items():
            yield from leaves(sub, f"{name} {word}".strip())


COMMANDS = dict(leaves(_parser()))


def test_every_command_has_examples_and_no_other():
    assert set(EXAMPLES) == {"", *COMMANDS}
    assert set(HEADINGS) <= {name.partition(" ")[0] for name in COMMANDS}


@pytest.mark.parametrize("command", EXAMPLES)
def test_its_parser_takes_each_example(command):
    for line, _ in EXAMPLES[command]:
        words = shlex.split(line.partition(" > ")[0])
        options, rest = _parser().parse_known_args(words)
        assert not rest and line.startswith(command)
        config = getattr(options, "config", None)
        if config is not None and config.startswith("configs/"):
            assert (ROOT / config).is_file(), line


@pytest.mark.parametrize("command", COMMANDS)
def test_help_describes_every_option_and_shows_its_default(command):
    parser = COMMANDS[command]
    shown = " ".join(parser.format_help().split())
    assert parser.description and f"llmkit {command}" in shown and "examples:" in shown
    for action in parser._actions:
        assert action.help, f"llmkit {command} {action.dest}"
        nothing = any(action.default is none for none in (None, False, argparse.SUPPRESS))
        if action.option_strings and not nothing and action.default != []:
            text = shown.partition(f"{action.option_strings[0]} ")[2]
            assert "default" in text, f"llmkit {command} {action.option_strings[0]}"


def test_commands_are_listed_under_headings():
    lines = _parser().format_help().splitlines()
    at = {text: lines.index(f"  {text}:") for text in HEADINGS.values()}
    for command, heading in HEADINGS.items():
        assert lines[at[heading] + 1].split()[0] == command
    assert not any(line.startswith("    ") and not line.split()[0] for line in lines if line.strip())


def test_notes_stand_beside_what_is_short_and_above_what_is_long(monkeypatch):
    long = "train " + "x" * COLUMNS
    monkeypatch.setitem(EXAMPLES, "train", (("train a.yaml", "short"), (long, "a note"), (long, "")))
    assert example_text("train").splitlines() == [
        "examples:", "  llmkit train a.yaml  # short", "  # a note:", f"  llmkit {long}", f"  llmkit {long}",
    ]  # fmt: skip
    assert all(len(line) <= COLUMNS for line in example_text("").splitlines())
    assert example_text("no such command") == ""
