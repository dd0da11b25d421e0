"""`llmkit top`: the live view of runs, from another terminal."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.text import Text

from llmkit.command_line import print_json
from llmkit.config.mistakes import printable
from llmkit.errors import UserError
from llmkit.monitor.live_region import LiveRegion
from llmkit.monitor.live_view import Frame, live_view
from llmkit.monitor.record import read_run
from llmkit.monitor.run_state import RunState
from llmkit.monitor.terminal import Painter, shows_only_ascii, size_of, takes_live_view
from llmkit.monitor.text import duration
from llmkit.watch.runs import read_line
from llmkit.watch.watched import WatchedRun

REFRESH_SECONDS = 1.0


def top_command(options: argparse.Namespace) -> int:
    """Follows the runs until `q` or Ctrl-C; without a terminal, and with --once, prints how they stand:
    with --json as a list with an object for each run (`_as_json`).

    Raises UserError where a folder is no run.
    """
    folders = [Path(run) for run in options.runs]
    for folder in folders:
        read_run(folder)
    if options.json:
        print_json([_as_json(folder) for folder in folders])
        return 0
    view = TopView([WatchedRun(folder) for folder in folders])
    live = takes_live_view(sys.stdout)
    paint = Painter(live)
    if options.once or not live:
        for line in view.lines(size_of(sys.stdout), sys.stdout.encoding):
            print(paint(line))
        return 0
    region = LiveRegion(_write)
    with contextlib.suppress(KeyboardInterrupt), _single_keys() as keyboard:
        while True:
            lines = view.lines(size_of(sys.stdout), sys.stdout.encoding)
            region.show(paint(Text("\n").join(lines)).split("\n"))
            if _quits(keyboard, REFRESH_SECONDS):
                break
    region.leave()
    return 0


class TopView:
    """The views of several runs, one below the other."""

    def __init__(self, runs: list[WatchedRun]) -> None:
        self._runs = runs

    def lines(self, size: tuple[int, int], encoding: str | None) -> list[Text]:
        """Reads what is new of all runs and draws them. size: columns and rows of the terminal."""
        columns, rows = size
        now, drawn = datetime.now().astimezone(), list[Text]()
        for run in self._runs:
            run.poll()
            standing, activity = _how_it_stands(run.folder, now)
            frame = Frame(
                columns, max(1, rows // len(self._runs)), now, shows_only_ascii(encoding),
                activity, standing,
            )  # fmt: skip
            if drawn and rows >= 6 * len(self._runs):
                drawn.append(Text())
            drawn += live_view(run.progress, frame)
        return drawn[: max(1, rows - 1)]


def _as_json(folder: Path) -> dict[str, Any]:
    """A run as `llmkit runs --json` has it, with the newest value of each column and the newest event."""
    record = read_run(folder)
    line = asdict(read_line(folder, folder, time.time()))
    return line | {"newest": dict(record.newest), "event": record.events[-1] if record.events else None}


def _how_it_stands(folder: Path, now: datetime) -> tuple[str | None, str | None]:
    """State and explanation of a run, whose folder may have been moved, or be on a disk that is away."""
    try:
        state = read_run(folder).state
    except UserError:
        return "not there", None
    return _standing(state, now), _explanation(state)


def _standing(state: RunState, now: datetime) -> str | None:
    """As in "stopped 3 h 05 min ago"; None for a run that is under way."""
    if state.name == "running":
        return None
    ago = "" if state.since is None else f" {duration(now.timestamp() - state.since)} ago"
    return state.name + ago


def _explanation(state: RunState) -> str | None:
    """Why a run is where it is, where neither its rows nor its events say so."""
    known = state.name in ("done", "stopped") or state.reason == "is training"
    return None if known else printable(state.reason)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@contextlib.contextmanager
def _single_keys() -> Iterator[int | None]:
    """The descriptor of a keyboard that gives each key at once, without an echo; None where there is none."""
    if not sys.stdin.isatty():
        yield None
        return
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)
    try:
        yield keyboard
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def _quits(keyboard: int | None, seconds: float) -> bool:
    """Waits so long at most; whether `q` was pressed, or the keyboard has gone."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if keyboard is None:
            time.sleep(left)
        elif select.select([keyboard], [], [], left)[0] and os.read(keyboard, 1) in (b"q", b"Q", b""):
            return True
    return False
