"""Progress of a run on the terminal, or as plain lines in a log."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, TextIO, cast

import rich.console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llmkit.monitor.background import UnblockedStream
from llmkit.monitor.sink import Sink

REFRESH_SECONDS = 0.1
BAR_WIDTH = 20


class Console(Sink):
    """Shows a run: on a terminal a progress line that refreshes itself under the lines that stay.

    stream: where to write; default: standard output. terminal: whether the stream is one; default:
    asked of the stream and TERM. width: columns; default: asked of the terminal. max_steps may be set
    later, once it is known. A stream that breaks (a closed pipe) is given up silently, and one that
    takes nothing (a pager) is not waited for: the record of a run is in its folder.
    """

    def __init__(
        self,
        max_steps: int | None = None,
        stream: TextIO | None = None,
        terminal: bool | None = None,
        width: int | None = None,
    ) -> None:
        stream = sys.stdout if stream is None else stream
        self.max_steps = max_steps
        self._terminal = _is_terminal(stream) if terminal is None else terminal
        self._stream = UnblockedStream(stream, self._terminal)
        self._rich = _Terminal(
            file=cast(IO[str], self._stream),
            force_terminal=self._terminal,
            width=width,
            highlight=False,
            markup=False,
            emoji=False,
        )
        self._live: Live | None = None
        self._row: Mapping[str, Any] = {}
        self._refreshed = float("-inf")
        self._log: TextIO | None = None

    def keep_log(self, path: Path) -> None:
        """From now on appends every line that stays to this file too; a full disk does not raise."""
        with contextlib.suppress(OSError):
            self._log = path.open("a", encoding="utf-8", errors="replace")

    def progress(self, step: int) -> None:
        """A step is done: refreshes the progress line, at most ten times a second; else does nothing."""
        now = time.monotonic()
        if not self._terminal or not self._stream.idle or now - self._refreshed < REFRESH_SECONDS:
            return
        self._refreshed = now
        self._show({**self._row, "step": step})

    def write(self, row: Mapping[str, Any]) -> None:
        """Prints a row of metrics.jsonl, of a step or of an evaluation, as a line that stays."""
        if "eval_loss" in row:
            accuracy = row.get("eval_rewards/accuracy")
            self.evaluation(row["step"], row["eval_loss"], row["eval_bits_per_byte"], accuracy)
        elif "loss" not in row and any(name.startswith("eval/") for name in row):
            found = {name.removeprefix("eval/"): value for name, value in row.items() if name != "step"}
            shown = [f"{name} {_number(value, '.4g')}" for name, value in found.items()]
            self._print("  ".join([self._step(row["step"]), *shown]))
        else:
            self.row(row)

    def row(self, row: Mapping[str, Any]) -> None:
        """Prints the row of a step as a line that stays."""
        self._row = row
        if self._live is not None:  # which would go on showing the row before
            self._show(row)
        self._print("  ".join(self._fields(row)))

    def _show(self, row: Mapping[str, Any]) -> None:
        """The row as the progress line, with a bar where the number of steps is known."""
        line = Table.grid(padding=(0, 2))
        text = Text("  ".join(self._fields(row)), no_wrap=True, overflow="ellipsis")
        if self.max_steps:
            line.add_row(
                ProgressBar(
                    self.max_steps, row["step"], width=BAR_WIDTH, complete_style="cyan", finished_style="cyan"
                ),
                text,
            )
        else:
            line.add_row(text)
        if self._live is None:
            self._live = Live(
                line, console=self._rich, auto_refresh=False, transient=True,
                redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip
            self._live.start()
        self._live.update(line, refresh=True)

    def evaluation(
        self, step: int, loss: float | None, bits_per_byte: float | None, accuracy: float | None = None
    ) -> None:
        """Prints the result of an evaluation; no bits per byte where no text is held out.

        accuracy: of pairs of answers, the share of which the better one is known.
        """
        parts = [self._step(step), f"held-out loss {_number(loss, '.4f')}"]
        if accuracy is None:
            parts.append(f"bits per byte {shown_bits(bits_per_byte)}")
        else:
            parts.append(f"accuracy {100 * accuracy:.1f} %")
        self._print("  ".join(parts))

    def note(self, text: str) -> None:
        """Prints `text`, over as many lines as it has, above the progress line."""
        for line in text.splitlines() or [""]:
            self._print(line)

    def summary(self, facts: Mapping[str, str]) -> None:
        """Prints the end of a run, a fact a line with the names in a column, and ends the progress line."""
        self.close()
        indent = max((len(name) for name in facts), default=0)
        for name, text in facts.items():
            self._print(f"{name:<{indent}}  {text}")

    def close(self) -> None:
        """Removes the progress line, and waits until all is shown; lines printed later stay as they are."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if not self._stream.drain():
            self.log("standard output takes nothing: what this log holds was not all shown there")

    def _fields(self, row: Mapping[str, Any]) -> list[str]:
        """Most important first: a narrow terminal hides the end of the progress line."""
        step, seconds = row["step"], row.get("step_seconds")
        fields = [self._step(step)]
        if "loss" in row:  # of one step it is that of a few rows, and noisy
            mean = row.get("loss_mean")
            loss = row["loss"] if mean is None else mean
            if loss is not None or not row.get("no_targets"):
                fields.append(f"loss {_number(loss, '.4f')}")
        if row.get("no_targets"):
            fields.append("no targets")
        if row.get("skipped"):
            fields.append("update skipped")
        if row.get("tokens_per_second") is not None:
            fields.append(f"{_thousands(row['tokens_per_second'])} tokens/s")
        if self.max_steps is not None and seconds is not None:
            fields.append(f"{duration((self.max_steps - step) * seconds)} left")
        if row.get("mfu") is not None:
            fields.append(f"MFU {100 * row['mfu']:.1f} %")
        return fields

    def _step(self, step: int) -> str:
        if self.max_steps is None:
            return f"step {step}"
        return f"step {step:>{len(str(self.max_steps))}}/{self.max_steps}"

    def log(self, text: str) -> None:
        """Writes `text` to the log alone."""
        if self._log is not None:
            with contextlib.suppress(OSError):
                self._log.write(text + "\n")
                self._log.flush()

    def _print(self, line: str) -> None:
        self.log(line)
        self._rich.print(Text(line), soft_wrap=True)


class _Terminal(rich.console.Console):
    """rich's console, which leaves the cursor visible: a process that is killed could not show it again."""

    def show_cursor(self, show: bool = True) -> bool:
        """Does nothing."""
        return False


class SilentConsole(Console):
    """The console of ranks other than 0: what it prints goes to the log alone."""

    def __init__(self) -> None:
        super().__init__(terminal=False)

    def _print(self, line: str) -> None:
        self.log(line)


def shown_bits(bits_per_byte: float | None) -> str:
    """Bits per byte, or why there are none."""
    return "none (the held-out tokens stand for no text)" if bits_per_byte is None else f"{bits_per_byte:.4f}"


def duration(seconds: float) -> str:
    """`seconds` in the two units that matter: 42 s, 3 min 05 s, 2 h 10 min, 4 d 03 h."""
    whole = max(0, round(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days} d {hours % 24:02d} h"
    if hours:
        return f"{hours} h {minutes % 60:02d} min"
    if minutes:
        return f"{minutes} min {whole % 60:02d} s"
    return f"{whole} s"


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _number(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)


def _thousands(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.{0 if value >= 100 * size else 1}f}{unit}"
    return f"{value:.0f}"
