"""Requests to stop: signals, and the stop file."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

from llmkit.run_folder import RunFolder

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
REASONS = ("", *(number.name for number in SIGNALS), "the stop file")
"""Why a run stops; ranks exchange the places in this list."""


class StopRequest:
    """While entered, a signal only sets a flag: the loop finishes its step, or no longer waits for the batch
    of the next one, saves and ends.

    A second Ctrl-C gives SIGINT its usual meaning back, so that a third one ends the process at
    once; repeated SIGTERM and SIGUSR1 change nothing.
    """

    def __init__(self, folder: RunFolder, note: Callable[[str], None]) -> None:
        self._folder, self._note = folder, note
        self._signal: signal.Signals | None = None

    def wish(self) -> int:
        """Why to stop now, as a place in REASONS; 0 = no reason."""
        if self._signal is not None:
            return REASONS.index(self._signal.name)
        return REASONS.index("the stop file") if self._folder.stop_requested() else 0

    def _receive(self, number: int, frame: FrameType | None) -> None:
        first, self._signal = self._signal is None, signal.Signals(number)
        if first:
            self._note(f"{self._signal.name} received: finishing this step, then saving")
        elif number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._note("still saving; once more to quit without it")

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
