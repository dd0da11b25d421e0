"""Progress of a run: on a terminal a view that is drawn in place, elsewhere plain lines."""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from rich.text import Text

from llmkit.config.redaction import Redactor
from llmkit.monitor.background import UnblockedStream
from llmkit.monitor.live_region import LiveRegion
from llmkit.monitor.live_view import Frame, live_view
from llmkit.monitor.progress import Progress
from llmkit.monitor.row_text import Kind, row_text
from llmkit.monitor.sink import Sink
from llmkit.monitor.terminal import Painter, shows_only_ascii, size_of, takes_live_view

REFRESH_SECONDS = 1.0
"""Between two drawings of the view. One takes a third of a millisecond of the processor."""
NAMES, LOG_WIDTH = 9, 110
"""Columns of the names of a table, and of its lines where there is no terminal."""
LOW = 10
"""Rows of a terminal from which on a line is left free above the view."""
STYLES: dict[Kind, str] = {"step": "", "evaluation": "bold", "warning": "yellow"}


class Console(Sink):
    """Shows a run: on a terminal a view at its end, under the lines that stay; elsewhere lines alone.

    stream: where to write; default: standard output. terminal: whether the view can be shown there; default:
    `takes_live_view`. size: columns and rows; default: asked of the terminal. A stream that breaks (a closed
    pipe) is given up silently, and one that takes nothing (a pager) is not waited for: the record of a run is
    in its folder.
    """

    def __init__(
        self, max_steps: int | None = None, stream: TextIO | None = None, terminal: bool | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        stream = sys.stdout if stream is None else stream
        self._terminal = takes_live_view(stream) if terminal is None else terminal
        self._stream = UnblockedStream(stream, self._terminal)
        self._size, self._own_stream = size, stream
        self._paint = Painter(self._terminal)
        self._redactor = Redactor(os.environ)
        self._region = LiveRegion(self._stream.write)
        self._lock = threading.RLock()  # a thread draws, too
        self._refresher: Refresher | None = None
        self._log: TextIO | None = None
        self._run = Progress(max_steps=max_steps)
        self._activity: Callable[[], str | None] = lambda: None

    @property
    def max_steps(self) -> int | None:
        """Where the run ends; may be set once it is known."""
        return self._run.max_steps

    @max_steps.setter
    def max_steps(self, steps: int | None) -> None:
        self._run.max_steps = steps

    def keep_log(self, path: Path) -> None:
        """From now on appends every line that stays to this file too; a full disk does not raise."""
        with contextlib.suppress(OSError):
            self._log = path.open("a", encoding="utf-8", errors="replace")

    def follow(self, progress: Progress, activity: Callable[[], str | None]) -> None:
        """Shows the view from now on, where there is one, also while nothing is printed.

        progress: of the run so far. activity: what it does beside steps, in words; called by a thread.
        """
        with self._lock:
            self._run, self._activity = progress, activity
        if self._terminal and self._refresher is None:
            self._refresher = Refresher(self.draw, REFRESH_SECONDS)

    def progress(self, step: int) -> None:
        """A step is done; costs nothing, as the view is drawn by a thread."""
        self._run.step = step

    def draw(self) -> None:
        """Draws the view, unless the terminal has not taken what it was given before."""
        if not self._terminal or not self._stream.idle:
            return
        with self._lock:
            columns, rows = self._size or size_of(self._own_stream)
            frame = Frame(
                columns, rows, datetime.now().astimezone(), shows_only_ascii(self._stream.encoding),
                self._activity(),
            )  # fmt: skip
            lines = self._paint(Text("\n").join(live_view(self._run, frame))).split("\n")
            self._region.show(["", *lines] if rows >= LOW else lines)

    def write(self, row: Mapping[str, Any]) -> None:
        """Takes a row of metrics.jsonl. Where there is a view, it shows those of steps; a line stays of an
        evaluation, and of a step that was not as it should be."""
        with self._lock:
            self._run.take(row)
        line = row_text(row, self.max_steps)
        if line is None:
            return
        text, kind = line
        if self._refresher is not None and kind == "step":
            self.log(text)
        else:
            self._print(text, STYLES[kind])

    def event(self, event: Mapping[str, Any]) -> None:
        """Takes an event of events.jsonl, for the view."""
        with self._lock:
            self._run.take_event(event)

    def note(self, text: str, important: bool = False) -> None:
        """Prints `text`, over as many lines as it has, above the view.

        important: shown where little else is (`--quiet`), and marked.
        """
        for line in text.splitlines() or [""]:
            self._print(line, STYLES["warning"] if important else "")

    def _wrapped(self, line: str) -> str:
        """On a terminal the line, broken between words; what is indented is code, and stays as it is."""
        if not self._terminal or line[:1].isspace():
            return line
        return textwrap.fill(
            line, self._columns, replace_whitespace=False, expand_tabs=False, break_long_words=False,
            break_on_hyphens=False,
        )  # fmt: skip

    @property
    def _columns(self) -> int:
        """Those that a line can have on the terminal without being wrapped by it."""
        return (self._size or size_of(self._own_stream))[0] - 1

    def table(self, lines: Iterable[tuple[str, str]]) -> None:
        """Prints what there is to say about several things: of each its name, in a column, and a text.

        Long texts are wrapped, to the width of the terminal where there is one.
        """
        width = self._columns if self._terminal else LOG_WIDTH
        for name, text in lines:
            for line in _in_columns(name, text, NAMES, width):
                self._print(line, bold=NAMES)

    def summary(self, facts: Mapping[str, str]) -> None:
        """Prints the end of a run, a fact a line with the names in a column, and ends the view."""
        self.close()
        indent = max((len(name) for name in facts), default=0)
        for name, text in facts.items():
            lines = list(_in_columns(name, text, indent, self._columns)) if self._terminal else []
            for line in lines or [f"{name:<{indent}}  {text}"]:
                self._print(line)

    def close(self) -> None:
        """Removes the view, and waits until all is shown; lines printed later stay as they are."""
        if self._refresher is not None:
            self._refresher.stop()
            self._refresher = None
        with self._lock:
            self._region.clear()
        if not self._stream.drain():
            self.log("standard output takes nothing: what this log holds was not all shown there")

    def log(self, text: str) -> None:
        """Writes `text` to the log alone, without what gives access."""
        if self._log is not None:
            with contextlib.suppress(OSError):
                self._log.write(self._redactor.text(text) + "\n")
                self._log.flush()

    def _print(self, line: str, style: str = "", bold: int = 0) -> None:
        """Prints and logs a line that stays, without what gives access. bold: so many characters of it."""
        line = self._redactor.text(line)
        self.log(line)
        text = Text(self._wrapped(line), style=style)
        text.stylize("bold", 0, bold)
        self._show(text)

    def _show(self, line: Text) -> None:
        with self._lock:
            self._region.print_above(self._paint(line) + "\n")


def _in_columns(name: str, text: str, names: int, width: int) -> Iterator[str]:
    """Lines of this width at most, the name in a column of `names` characters; long words are kept whole."""
    parts = textwrap.wrap(
        text, max(20, width - names - 2), break_on_hyphens=False, break_long_words=False
    )  # fmt: skip
    for number, part in enumerate(parts or [""]):
        yield f"{'' if number else name:<{names}}  {part}"


class Refresher:
    """Calls a function again and again, in a thread of its own, until it is stopped."""

    def __init__(self, draw: Callable[[], None], seconds: float) -> None:
        self._draw, self._seconds = draw, seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live view", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns once no call is under way, and none will come."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._draw()
            self._stopped.wait(self._seconds)
