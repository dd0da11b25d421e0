"""What the command lines of all commands share; nothing heavy is imported.

A command is a function `add_X_command(commands)` in a module of its room that imports nothing heavy either.
It adds the parser and sets two defaults of it: `command`, which is called as command(options, started), and
`parser` itself.
"""

from __future__ import annotations

import argparse
import difflib
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO, TypeAlias

from llmkit.command_examples import HEADINGS, example_text
from llmkit.error_text import WIDEST, show_error, terminal_width, wrapped_line
from llmkit.errors import UserError

DATA_POSITIONS = ("keep", "new")
LOADING = "loading PyTorch"
"""What a command waits for that needs it."""
Commands: TypeAlias = "argparse._SubParsersAction[CommandParser]"


class CommandParser(argparse.ArgumentParser):
    """A parser whose help has defaults and examples, and whose errors say what was probably meant.

    Without arguments, the program shows its help, and a command that has commands below it ends with it and
    code 2. Where a command takes settings, they may be written as options, too (`settings_as_overrides`).
    """

    helps_when_alone = True
    """Whether it does; not where a shell asks what may follow."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", _HelpFormatter)
        super().__init__(**options)
        self.register("action", "parsers", _CommandsAction)
        self.epilog = self.epilog or example_text(self.prog.partition(" ")[2]) or None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's own; without arguments, shows the help of a command that has others below it."""
        args = sys.argv[1:] if args is None else list(args)
        if not args and self._subparsers is not None and self.helps_when_alone:
            program = " " not in self.prog
            self.print_help(None if program else sys.stderr)
            self.exit(0 if program else 2)
        if any(action.dest == "overrides" for action in self._actions):
            try:
                valued = {name for own in self._actions if own.nargs is None for name in own.option_strings}
                args = settings_as_overrides(args, valued)
            except ValueError as fault:
                self.error(str(fault))
        return super().parse_known_args(args, namespace)

    def format_usage(self) -> str:
        """In short, for errors: what is required, and `[options]` for all else."""
        shown = [action for action in self._actions if not action.option_strings or action.required]
        groups = [group for group in self._mutually_exclusive_groups if group.required]
        for group in groups:
            shown += group._group_actions
        formatter = _HelpFormatter(f"{self.prog} [options]")
        formatter.add_usage(None, shown, groups)
        return formatter.format_help()

    def error(self, message: str) -> NoReturn:
        """Ends the program with code 2, after the message and the usage."""
        show_error(f"{self.prog}: error: {message}", sys.stderr)
        self.exit(2, f"{self.format_usage().rstrip()}\n{self.prog} --help says more\n")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        close = difflib.get_close_matches(str(value)[:40], choices, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(choices)}"
        raise argparse.ArgumentError(action, f"there is no {str(value)[:40]!r}; {hint}")


class _CommandsAction(argparse._SubParsersAction):
    """Commands below another one; each is described by the line that stands in the list of them."""

    def add_parser(self, name: str, **options: Any) -> Any:
        if text := options.get("help", ""):
            options.setdefault("description", text[:1].upper() + text[1:].rstrip(".") + ".")
        return super().add_parser(name, **options)


class _HelpFormatter(argparse.HelpFormatter):
    """Help that names defaults, keeps the lines of examples, and lists commands under headings."""

    def __init__(self, prog: str, **options: Any) -> None:
        width = min(terminal_width(sys.stdout) or shutil.get_terminal_size().columns, WIDEST) - 2
        super().__init__(prog, **{"max_help_position": 28, "width": width, **options})

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        if isinstance(action, _CommandsAction):  # whose commands are indented once more than is counted
            longest = max(len(name) for name in action.choices)
            self._action_max_length = max(self._action_max_length, longest + 6)

    def _format_action(self, action: argparse.Action) -> str:
        if not isinstance(action, _CommandsAction):
            return super()._format_action(action)
        lines = list[str]()
        for command in action._get_subactions():
            if (heading := HEADINGS.get(command.dest)) and self._prog.count(" ") == 0:
                lines.append(f"{chr(10) if lines else ''}{'':>{self._current_indent}}{heading}:\n")
            self._indent()
            lines.append(super()._format_action(command))
            self._dedent()
        return "".join(lines)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        nothing = any(action.default is none for none in (None, False, argparse.SUPPRESS))
        if nothing or action.default == [] or "default" in text or not action.option_strings:
            return text
        return f"{text}; default: %(default)s"


_SETTING = re.compile(
    r"--?(?P<key>[A-Za-z_]\w*(?:\.[^.\[\]=\s]+|\[[^\[\]=\s]+\])+)(?P<value>=.*)?", re.DOTALL
)


def settings_as_overrides(arguments: Sequence[str], valued: Collection[str] = ()) -> list[str]:
    """Arguments with `--section.key value` and `--section.key=value` as `section.key=value`.

    Those before the first argument that is no option, which is CONFIG, come behind it. No option has a dot or
    a bracket in its name. valued: the options whose value is the next argument. Raises ValueError where the
    value of a setting is missing.
    """
    found, early, left = list[str](), list[str](), iter(arguments)
    config_came = False
    for argument in left:
        setting = _SETTING.fullmatch(argument)
        if setting is None:
            found.append(argument)
            if argument in valued:
                found += [text for text in [next(left, None)] if text is not None]
            elif not argument.startswith("-") and not config_came:
                found += early
                config_came = True
            continue
        value = setting["value"]
        if value is None:
            text = next(left, None)
            if text is None or text.startswith("--") or re.match(r"[A-Za-z_]\w*[.\[][^=]*=", text):
                raise ValueError(f"{argument} has no value; write {setting['key']}=VALUE")
            value = f"={text}"
        (found if config_came else early).append(setting["key"] + value)
    return found if config_came else found + early


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
    parser.add_argument(
        "--precision", choices=["auto", "bf16", "fp32"], default="auto",
        help="of the arithmetic; auto: bf16 where the device has units for it",
    )  # fmt: skip


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Adds RUN, which `llmkit.checkpoints.run_argument.weights_at` reads, and --ema."""
    what = "a run folder, RUN@best, RUN@STEP, a checkpoint, an import, a model in Hugging Face's format"
    parser.add_argument("run", metavar="RUN", help=f"{what}, or the URL of a run's copies")
    parser.add_argument(
        "--ema", action="store_true", help="the moving average of the weights, of a run with train.ema"
    )


def add_json(parser: argparse.ArgumentParser, what: str = "print a JSON object instead") -> None:
    """Adds --json, of commands whose results programs read. what: its help."""
    parser.add_argument("--json", action="store_true", help=what)


def print_json(value: object) -> None:
    """Prints what a command with --json has to tell: one value, and nothing else, on standard output.

    Numbers that are not finite are null: JSON has none.
    """
    import json

    from llmkit.files import plain

    print(json.dumps(plain(value), indent=2, allow_nan=False), flush=True)


def printer(as_json: bool) -> Callable[[str], None]:
    """Prints a line for people: beside JSON on standard error, else as the output."""
    return to_stderr if as_json else show


def show(line: str) -> None:
    """Prints one or more lines of the output of a command; on a terminal each is wrapped at words.

    Not for commands and scripts, which have to be copied as they are.
    """
    width = terminal_width(sys.stdout)
    if width is not None:
        line = "\n".join(wrapped_line(each, width) for each in line.split("\n"))
    print(line, flush=True)


@contextmanager
def waiting_for(what: str, environment: Mapping[str, str], stream: TextIO | None = None) -> Iterator[None]:
    """Says on a terminal what a command waits for, in a line that is gone when that is there.

    Nothing is said elsewhere, and by the processes of a launch but the first. stream: None: standard error.
    """
    stream = sys.stderr if stream is None else stream
    dumb = environment.get("TERM", "dumb") in ("dumb", "")
    said = not dumb and environment.get("RANK", "0") in ("", "0") and terminal_width(stream) is not None
    if said:
        print(f"{what} ...", end="", file=stream, flush=True)
    try:
        yield
    finally:
        if said:
            print("\r\x1b[K", end="", file=stream, flush=True)


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
