"""Which checkpoints of a run are kept beside the newest ones, and which one is the best.

`checkpoints/best.json`, {"step": 1000, "eval_loss": 2.31}, names the checkpoint with the lowest held-out
loss. It is a small file and no link, so that it is the same on every file system and in every copy; the
checkpoint that it names lies among the others, and is never deleted to make room.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from llmkit.checkpoint import format as fmt
from llmkit.checkpoint.rule import is_kept
from llmkit.files import open_regular, write_atomic

BEST = "best.json"
LONGEST = 4096
"""Bytes of best.json that are read."""


class Keep(NamedTuple):
    """What is kept. last: so many of the newest. every: those whose step it divides; 0 = none of them."""

    last: int
    every: int = 0


class Best(NamedTuple):
    """The best checkpoint. eval_loss: its held-out loss, in nats a target."""

    step: int
    eval_loss: float


def step_of(folder: Path) -> int | None:
    """The step in the name of a checkpoint of a run; None for another name, as of an import."""
    named = fmt.FOLDER.fullmatch(folder.name.removeprefix(fmt.REPLACED))
    return int(named[1]) if named else None


def read_best(root: Path) -> Best | None:
    """The best of the checkpoints in `root`; None where no file says so. Raises Damaged for a broken one."""
    path = root / BEST
    try:
        with open_regular(path) as file:
            return parse_best(file.read(LONGEST))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise fmt.Damaged(
            f"{path}: it does not say which checkpoint is the best ({type(error).__name__}: {error}); write "
            '{"step": N, "eval_loss": X} into it, or remove it: the next better evaluation makes it anew'
        ) from error


def parse_best(content: bytes) -> Best:
    """What a best.json says. Raises ValueError for a broken one."""
    try:
        values = json.loads(content)
        step, loss = values["step"], values["eval_loss"]
    except (TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if type(step) is not int or not 0 <= step <= fmt.MAX_STEP:
        raise ValueError(f"step {step!r} is none")
    is_whole = type(loss) is int and abs(loss) < 2**53  # as 2.0 may be written by other programs
    if not is_whole and (type(loss) is not float or not math.isfinite(loss)):
        raise ValueError(f"eval_loss {loss!r} is no finite number")
    return Best(step, float(loss))


def write_best(root: Path, best: Best | None, check: Callable[[], None] = lambda: None) -> None:
    """Says which checkpoint in `root` is the best; None = none of them. check: see `write_atomic`.

    Raises OSError.
    """
    if best is None:
        check()
        with suppress(FileNotFoundError):
            (root / BEST).unlink()
        return
    with write_atomic(root / BEST, check) as file:
        file.write(json.dumps(best._asdict()).encode() + b"\n")


def superfluous(root: Path, older: Sequence[Path], keep: Keep) -> list[Path]:
    """What may be deleted of the checkpoints in `root` that are older than the newest one.

    older: the oldest first. Raises Damaged where it is not known which one is the best.
    """
    named = read_best(root)
    best = None if named is None else named.step
    beyond = older[: max(0, len(older) - (keep.last - 1))]
    return [folder for folder in beyond if not is_kept(step_of(folder), keep.every, best)]
