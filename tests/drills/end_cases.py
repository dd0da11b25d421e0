"""What the ranks of tests/drills/test_ends.py do: `llmkit train`, with something that ends it."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmkit.cli import main
from llmkit.data.batches import BatchReader
from llmkit.data.eval_loader import EvalLoader
from llmkit.engine.native import NativeEngine
from llmkit.errors import UserError
from llmkit.loop.trainer import Trainer
from tests.limits import HANG

Patch = pytest.MonkeyPatch


def end_self(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def at_step(patch: Patch, number: int, act: Callable[[], None]) -> None:
    """Calls `act` as a step begins."""
    train_step, begun = NativeEngine.train_step, itertools.count(1)

    def counted(self: NativeEngine, *arguments: Any) -> Any:
        if next(begun) == number:
            act()
        return train_step(self, *arguments)

    patch.setattr(NativeEngine, "train_step", counted)


def in_evaluation(patch: Patch) -> None:
    """Is asked to stop after the third batch of the first evaluation."""
    batches, begun = EvalLoader.__iter__, itertools.count(1)

    def watched(self: EvalLoader) -> Iterator[Any]:
        first = next(begun) == 1
        for index, batch in enumerate(batches(self)):
            if first and index == 3:
                end_self()
            yield batch

    patch.setattr(EvalLoader, "__iter__", watched)


def blocks_that_end(patch: Patch, count: int, last: Callable[[], None]) -> None:
    """After `count` blocks of data (of 1, 2, 4, ... steps) comes `last`."""
    made = BatchReader.blocks

    def ending(self: BatchReader) -> Iterator[Any]:
        yield from itertools.islice(made(self), count)
        last()

    patch.setattr(BatchReader, "blocks", ending)


def broken_line() -> None:
    raise UserError("web.jsonl:17: there is no text in it")


def stall_and_stop(patch: Patch) -> None:
    """No data come after 3 steps, and a stop is asked for while they are awaited."""
    blocks_that_end(patch, 2, lambda: time.sleep(HANG))

    stop_code = Trainer.stop_code

    def signalled(trainer: Trainer) -> int:
        if trainer.state.step == 3:
            end_self()
        return stop_code(trainer)

    patch.setattr(Trainer, "stop_code", signalled)
    patch.setattr("llmkit.data.prefetch.CLOSE_SECONDS", 0.0)


def build_and_stop(patch: Patch) -> None:
    patch.setattr("llmkit.loop.prepare.prepare", lambda *arguments, **named: end_self())


def fail(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


ACTS: dict[str, Callable[[Patch], None]] = {
    "step": lambda patch: at_step(patch, 4, end_self),
    "evaluation": in_evaluation,
    "stall": stall_and_stop,
    "build": build_and_stop,
    "broken line": lambda patch: blocks_that_end(patch, 2, broken_line),
    "bug": lambda patch: at_step(patch, 8, fail(ZeroDivisionError("of this rank alone"))),
    "killed": lambda patch: at_step(patch, 8, lambda: end_self(signal.SIGKILL)),
    "nothing": lambda patch: None,
}


def ends(folder: str, ports: list[int], cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`llmkit train` for each case, in a world of its own; what came out of it on this rank.

    A case: its name, overrides, and `acts`: what each rank does.
    """
    rank, found = int(os.environ["RANK"]), []
    os.chdir(folder)
    for port, case in zip(ports, cases, strict=True):
        errors, before = io.StringIO(), dict(os.environ)
        os.environ["MASTER_PORT"] = str(port)
        code: int | str
        with Patch.context() as patch, contextlib.redirect_stderr(errors):
            ACTS[case["acts"][rank]](patch)
            try:
                code = main(["train", "tiny.yaml", f"run.name={case['name']}", *case["overrides"]])
            except Exception as error:
                code = f"{type(error).__name__}: {error}"
        os.environ.clear()
        os.environ.update(before)
        log = Path(f"runs/{case['name']}/logs/rank-{rank:05d}.log")
        found.append({"code": code, "errors": errors.getvalue(), "log": log.read_text()})
    return found
