"""Requests to stop a run: signals, stop files, hooks, the end of a time budget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llmkit.run_folder import STOP, RunFolder
from llmkit.stopping import LAUNCHER_GONE, SIGNALS, Listener

HOOK = "a hook"
STOP_FILE, BATCH_FILE, TIME_OVER = "the stop file", "the batch script's stop file", "train.max_minutes"
REASONS = ("", HOOK, TIME_OVER, LAUNCHER_GONE, *(number.name for number in SIGNALS), STOP_FILE, BATCH_FILE)
"""Why a run stops. Ranks exchange indices into this list; of several reasons the last counts."""
SHOWN = 200
"""Characters of a stop file that are shown at most."""
LATE = REASONS.index(TIME_OVER)


class StopRequest:
    """The requests to stop that this rank has received.

    note: is called with the first one, and with stop files that were there before this start.
    time_over: may be set to a function that tells whether the time of the run is over. hook: may be set to
    the hook that asks for a stop, and why.
    """

    def __init__(self, listener: Listener, folder: RunFolder, note: Callable[[str], None]) -> None:
        self._listener, self._folder, self._note = listener, folder, note
        self._noted = False
        self.time_over: Callable[[], bool] = lambda: False
        self.hook = ""
        for file in folder.outdated:
            note(f"note: {file} asked for a stop before this start; it is removed")

    def code(self, timed: bool = True) -> int:
        """Why to stop now, as an index into REASONS; 0 = no reason. timed: the end of the time is one."""
        if (file := self._folder.stop_file()) is not None:  # it may tell more than the signal beside it
            reason = self._kind_of(file)
        else:
            reason = self._listener.reason
        if not reason and timed and self.time_over():
            reason = TIME_OVER
        if not reason and self.hook:
            reason = HOOK
        code = REASONS.index(reason)
        if code and not self._noted:
            self._noted = True
            again = "; press Ctrl-C twice more to quit at once" if reason == "SIGINT" else ""
            self._note(f"asked to stop ({self.describe(code)}): finishing this step, then saving{again}")
        return code

    def file_reason(self) -> str:
        """The stop file, if there is one, in words; empty = there is none."""
        file = self._folder.stop_file()
        return "" if file is None else self.describe(REASONS.index(self._kind_of(file)))

    def give_up(self, everywhere: bool) -> None:
        """From now on a request to stop raises Stopped in what is interruptible: see `Listener.give_up`."""
        self._listener.give_up(everywhere, self.file_reason)

    def hold(self) -> None:
        """From now on nothing is interrupted: whoever asks for `code` sees to it that all is saved."""
        self._listener.hold()

    def _kind_of(self, file: Path) -> str:
        return STOP_FILE if file == self._folder.path / STOP else BATCH_FILE

    def describe(self, code: int) -> str:
        """An index into REASONS in words, with what the batch script or this rank's hook gives as reason."""
        reason = REASONS[code]
        if reason == STOP_FILE:
            return f"{reason} {self._folder.path / STOP}"
        if reason == BATCH_FILE and (file := self._folder.stop_file()) is not None:
            return ": ".join(filter(None, (reason, _first_line(file))))
        return self.hook or reason if reason == HOOK else reason


def _first_line(file: Path) -> str:
    """The first line of a file, made fit to be shown; empty where it has none."""
    try:
        with file.open(encoding="utf-8", errors="replace") as text:
            line = text.readline(SHOWN)
    except OSError:
        return ""
    return "".join(letter for letter in line if letter.isprintable()).strip()
