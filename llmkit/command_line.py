"""What the command lines of all commands share; nothing heavy is imported.

A command is a function `add_X_command(commands)` in a module of its room that imports nothing heavy either.
It adds the parser and sets two defaults of it: `command`, which is called as command(options, started), and
`parser` itself.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from typing import TypeAlias

from llmkit.errors import UserError

DATA_POSITIONS = ("keep", "new")
Commands: TypeAlias = "argparse._SubParsersAction[CommandParser]"


class CommandParser(argparse.ArgumentParser):
    """Names the choice that was probably meant by one that does not exist, commands included."""

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        close = difflib.get_close_matches(str(value)[:40], choices, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(choices)}"
        raise argparse.ArgumentError(action, f"there is no {str(value)[:40]!r}; {hint}")


def count(text: str, least: int = 0, most: int = 2**63 - 1) -> int:
    """The number of an option, for argparse's `type`. Raises ArgumentTypeError out of least .. most."""
    if len(text) > 40 or not text.strip().lstrip("+-").isdecimal() or not least <= int(text) <= most:
        shown = "2^63 - 1" if most == 2**63 - 1 else str(most)
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number from {least} to {shown}")
    return int(text)


def positive(text: str) -> int:
    """As `count`, of at least 1."""
    return count(text, least=1)


def add_config(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    """Adds CONFIG and its overrides."""
    parser.add_argument(
        "config", metavar="CONFIG", nargs=nargs, help="a YAML file, such as configs/demo.yaml"
    )
    parser.add_argument(
        "overrides",
        metavar="section.key=value",
        nargs="*",
        default=[],  # else argparse counts them among what is required
        help="settings that win over the file's",
    )


def add_branch(parser: argparse.ArgumentParser) -> None:
    """Adds --from and --data-position, of commands that begin a run."""
    parser.add_argument(
        "--from", dest="branch", metavar="RUN@STEP",
        help="begin a new run with this checkpoint of another one, and its optimizer: RUN@1000, RUN@best, "
        "RUN; a branch that has begun goes on",
    )  # fmt: skip
    parser.add_argument(
        "--data-position", choices=DATA_POSITIONS,
        help="of a branch: read on where the other run stood (keep, the default), or from the beginning",
    )  # fmt: skip


def wrong_branch(branch: str | None, data_position: str | None) -> str | None:
    """What is wrong with --from and --data-position whatever lies where --from points; None: nothing is."""
    if branch is None and data_position is not None:
        return (
            f"--data-position {data_position} goes with --from: a run that goes on keeps its position in the "
            "data; leave it out"
        )
    if data_position not in (None, *DATA_POSITIONS):
        return f"--data-position {data_position!r}: is {' or '.join(DATA_POSITIONS)}"
    if branch is not None and not branch:
        return "--from is empty; name a run or a checkpoint of it, such as runs/demo@1000"
    if branch is not None and "://" in branch:
        return (
            f"--from {branch}: a branch begins with a folder; fetch the copy first (llmkit checkpoint fetch "
            "URL FOLDER), and name that"
        )
    return None


def add_run(parser: argparse.ArgumentParser) -> None:
    """Adds RUN, --ema and --precision, of commands that use a trained model."""
    add_weights(parser)
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Adds RUN and --ema, which `llmkit.weights.open_weights` takes."""
    what = "a run folder, RUN@best, RUN@STEP, a checkpoint, an import, a model in Hugging Face's format"
    parser.add_argument("run", metavar="RUN", help=f"{what}, or the URL of a run's copies")
    parser.set_defaults(takes_weights=True)
    parser.add_argument(
        "--ema", action="store_true", help="the moving average of the weights, of a run with train.ema"
    )


def to_stderr(line: str) -> None:
    """Prints a line for people, beside the output of a command."""
    print(line, file=sys.stderr, flush=True)


def unicode_text(command: str, option: str, argument: str) -> str:
    """A text of the command line, which is UTF-8 in every locale. Raises UserError if it is not."""
    from llmkit.config.override import as_utf8

    text = as_utf8(argument)
    if any("\udc80" <= letter <= "\udcff" for letter in text):  # what stands for bytes that are none
        raise UserError(f"{command}: {option} holds bytes that are no UTF-8")
    return text
