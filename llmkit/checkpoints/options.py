"""The command line of `llmkit checkpoint`; imported by every command, so nothing heavy."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from llmkit.command_line import CommandParser, Commands, add_json, count, positive

PLACE = "a run folder, a folder of checkpoints, or a checkpoint, also as RUN@best or RUN@STEP"
Run = Callable[[argparse.Namespace], int]


def add_checkpoint_command(commands: Commands) -> None:
    """Adds `llmkit checkpoint`."""
    what = "list, verify, compare, average, delete, copy or fetch checkpoints, or ask a run for one"
    parser = commands.add_parser("checkpoint", help=what)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    _list_parser(actions)
    _verify_parser(actions)
    _diff_parser(actions)
    _average_parser(actions)
    _prune_parser(actions)
    _save_parser(actions)
    _copy_parser(actions)
    _fetch_parser(actions)


def _list_parser(actions: Commands) -> None:
    parser = _action(actions, "list", "a table of checkpoints; the newest are read until one is good", _list)
    _add_place(parser)
    parser.add_argument("--quick", action="store_true", help="look at the sizes of files alone")
    add_json(parser, "print a JSON list instead")


def _verify_parser(actions: Commands) -> None:
    what = "read all of each checkpoint, and name every file and block that is damaged (then exit code 1)"
    parser = _action(actions, "verify", what, _verify)
    _add_place(parser)
    parser.add_argument("--quick", action="store_true", help="look at the sizes of files alone")
    add_json(parser)


def _diff_parser(actions: Commands) -> None:
    parser = _action(actions, "diff", "compare settings, position in the data and tensors of two", _diff)
    for name, metavar in (("first", "A"), ("second", "B")):
        parser.add_argument(name, metavar=metavar, help=f"{PLACE}; of several the newest good one")
    parser.add_argument(
        "--count", type=count, default=10, help="tensors shown, those that differ most; default: 10"
    )
    add_json(parser)


def _average_parser(actions: Commands) -> None:
    what = "average weights; the result is used as any other: generate, evaluate, export, train.init_from"
    parser = _action(actions, "average", what, _average)
    parser.add_argument(
        "paths", metavar="RUN", nargs="+", help=f"{PLACE}; also an import, or Hugging Face's format"
    )
    parser.add_argument("--out", metavar="OUT", required=True, help="a folder that must not exist")
    parser.add_argument(
        "--steps", type=_steps, metavar="N,N,...", help="of a run: those of these steps; default: all"
    )
    parser.add_argument("--last", type=positive, metavar="N", help="of a run: the newest N of them")
    parser.add_argument(
        "--best", type=positive, metavar="N", help="of all named: the N of the lowest held-out loss"
    )
    parser.add_argument(
        "--decay", type=_decay, metavar="D",
        help="each counts D times as much as the next newer one; default: all count alike",
    )  # fmt: skip
    add_json(parser)


def _prune_parser(actions: Commands) -> None:
    what = "delete old checkpoints, once a newer one is verified; never the newest good one, nor the best"
    parser = _action(actions, "prune", what, _prune)
    parser.add_argument("path", metavar="RUN", help="a run folder, or a folder of checkpoints")
    parser.add_argument("--keep-last", type=positive, metavar="N", help="keep the newest N good ones")
    parser.add_argument("--keep-every", type=positive, metavar="N", help="keep those of every N steps")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    parser.add_argument("--yes", action="store_true", help="do not ask on a terminal")
    add_json(parser, "print a JSON object instead; on a terminal only with --yes or --dry-run")


def _save_parser(actions: Commands) -> None:
    parser = _action(actions, "save", "ask a run that is under way to save now, and wait for it", _save)
    parser.add_argument("run", metavar="RUN", help="its run folder")
    parser.add_argument(
        "--wait", type=positive, default=600, metavar="SECONDS", help="give up after so long; default: 600"
    )
    add_json(parser)


def _copy_parser(actions: Commands) -> None:
    what = "copy the newest good checkpoint, and the record, of a run that is not under way to a store"
    parser = _action(actions, "copy", what, _copy)
    parser.add_argument("run", metavar="RUN", help="its run folder")
    parser.add_argument("--to", metavar="URL", help="instead of checkpoint.copy_to; the run's name is added")
    add_json(parser)


def _fetch_parser(actions: Commands) -> None:
    what = "fetch a checkpoint, and the record, of a run from a store into a new run folder"
    parser = _action(actions, "fetch", what, _fetch)
    parser.add_argument(
        "url", metavar="URL[@STEP]", help="where the run is copied to, with its name: s3://bucket/runs/demo"
    )
    parser.add_argument("out", metavar="OUT", help="a folder that must not exist")
    add_json(parser)


def _action(actions: Commands, name: str, what: str, run: Run) -> CommandParser:
    """The parser of an action, which `run` carries out."""
    parser = actions.add_parser(name, help=what)
    parser.set_defaults(command=lambda options, started: run(options), parser=parser)
    return parser


def _add_place(parser: CommandParser) -> None:
    parser.add_argument("path", metavar="RUN", help=PLACE)


def _steps(text: str) -> list[int]:
    return [count(part) for part in text.split(",")]


def _decay(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number between 0 and 1, such as 0.9")
    return value


def _list(options: argparse.Namespace) -> int:
    from llmkit.checkpoints.listing import list_command

    return list_command(Path(options.path), quick=options.quick, as_json=options.json)


def _verify(options: argparse.Namespace) -> int:
    from llmkit.checkpoints.verifying import verify_command

    return verify_command(Path(options.path), options.quick, os.environ, as_json=options.json)


def _diff(options: argparse.Namespace) -> int:
    from llmkit.checkpoints.difference import diff_command

    return diff_command(Path(options.first), Path(options.second), options.count, as_json=options.json)


def _average(options: argparse.Namespace) -> int:
    from llmkit.checkpoints.average import average_command
    from llmkit.checkpoints.members import Choice

    choice = Choice(options.steps, options.last, options.best)
    paths = [Path(path) for path in options.paths]
    return average_command(paths, Path(options.out), choice, options.decay, as_json=options.json)


def _prune(options: argparse.Namespace) -> int:
    from llmkit.checkpoints.pruning import prune_command

    return prune_command(
        Path(options.path), options.keep_last, options.keep_every,
        dry_run=options.dry_run, yes=options.yes, as_json=options.json,
    )  # fmt: skip


def _save(options: argparse.Namespace) -> int:
    from llmkit.checkpoints.request import save_command

    return save_command(Path(options.run), float(options.wait), as_json=options.json)


def _copy(options: argparse.Namespace) -> int:
    from llmkit.checkpoints.copying import copy_command

    return copy_command(Path(options.run), options.to, as_json=options.json)


def _fetch(options: argparse.Namespace) -> int:
    from llmkit.checkpoints.fetching import fetch_command

    return fetch_command(options.url, Path(options.out), as_json=options.json)
