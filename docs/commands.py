"""Makes docs/commands.md, the page of all commands, of the parsers that the program itself uses: `make docs`.

The page is made of the parsers' actions, not of argparse's help, whose form depends on Python's version.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from llmkit.cli import _parser
from llmkit.command_examples import EXAMPLES, HEADINGS

INTRODUCTION = """\
# Commands

Each command with its arguments, options and examples. `make docs` makes this page of the commands' parsers;
`llmkit COMMAND --help` prints the same. `python -m llmkit` is `llmkit`. How settings are written, JSON for
programs, and completion in the shell: [the command line](command-line.md). Exit codes:
[stopping](stopping.md#exit-codes).
"""


def markdown() -> str:
    """The page: a section for each command, in the order and under the headings of `llmkit --help`."""
    parts, heading = [INTRODUCTION], ""
    for name, parser in _commands(_parser()):
        if name in HEADINGS:
            heading = HEADINGS[name]
            parts.append(f"\n## {heading[:1].upper()}{heading[1:]}\n")
        parts.append(_section(name, parser, level=3))
        for below, action in _commands(parser):
            parts.append(_section(f"{name} {below}", action, level=4))
    return "".join(parts)


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """The commands below a parser, by their names."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _section(name: str, parser: argparse.ArgumentParser, level: int) -> str:
    """One command: what it does, its synopsis, tables of what it takes, and examples."""
    text = (
        f"\n{'#' * level} llmkit {name}\n\n{parser.description}\n\n```text\n{_synopsis(name, parser)}\n```\n"
    )
    for group in parser._action_groups:
        rows = [_row(parser, action) for action in group._group_actions if _is_shown(action)]
        if not rows:
            continue
        titled = group.title not in ("positional arguments", "options")
        text += f"\n{str(group.title)[:1].upper()}{str(group.title)[1:]}:\n" if titled else ""
        kind = "option" if all(row.startswith("| `--") for row in rows) else "argument"
        text += f"\n| {kind} | meaning |\n| --- | --- |\n" + "".join(rows)
    if examples := EXAMPLES.get(name):
        lines = (f"# {note}\nllmkit {line}\n" if note else f"llmkit {line}\n" for line, note in examples)
        text += "\n```sh\n" + "".join(lines) + "```\n"
    return text


def _synopsis(name: str, parser: argparse.ArgumentParser) -> str:
    """`llmkit NAME [options] ARGUMENTS`, with the options that are required."""
    words = [f"llmkit {name}"]
    if any(_is_shown(action) and action.option_strings and not action.required for action in parser._actions):
        words.append("[options]")
    for group in parser._mutually_exclusive_groups:
        if group.required:
            words.append(f"({' | '.join(_form(action) for action in group._group_actions)})")
    words += [_form(action) for action in parser._actions if action.option_strings and action.required]
    words += [_form(action) for action in parser._actions if not action.option_strings]
    return " ".join(words)


def _is_shown(action: argparse.Action) -> bool:
    ours = not isinstance(action, (argparse._HelpAction, argparse._SubParsersAction))
    return ours and action.help is not argparse.SUPPRESS


def _form(action: argparse.Action) -> str:
    """How an option or argument is written: `--steps N,N`, `[CONFIG]`, `RUN [RUN ...]`."""
    if isinstance(action.metavar, tuple):
        value = " ".join(action.metavar)
    elif action.metavar is not None:
        value = action.metavar
    elif action.choices is not None:
        value = f"{{{','.join(map(str, action.choices))}}}"
    else:
        value = action.dest.upper() if action.option_strings else action.dest
    forms = {0: "", "?": f"[{value}]", "*": f"[{value} ...]", "+": f"{value} [{value} ...]"}
    value = forms.get(action.nargs, value) if action.nargs is not None else value
    return " ".join([*action.option_strings[-1:], *([value] if value else [])])


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """A row of a table: the form, and the help with the default, as `--help` has it."""
    meaning = parser._get_formatter()._expand_help(action)
    meaning = " ".join(meaning.split()).replace("|", "\\|").replace("<", "&lt;")
    form = _form(action).replace("|", "\\|")
    return f"| `{form}` | {meaning} |\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
