"""Writing to a file descriptor without ever waiting for whoever reads it."""

from __future__ import annotations

import contextlib
import io
import os
import select
import threading
import time
from collections import deque
from typing import TextIO

WAITING = 1000
"""Texts that wait at most; of more, the newest are left out."""
DRAIN_SECONDS = 2.0
"""How long `drain` waits for a reader that takes nothing."""


class BackgroundWriter:
    """Writes texts to `descriptor` in a thread of its own, in order.

    Where the reader takes nothing (a pager, a stalled network disk), texts wait here, and those beyond
    WAITING are left out and counted. A descriptor that breaks (a closed pipe or terminal) is given up
    silently. The thread uses the descriptor alone, no buffered stream, whose lock it could hold for ever.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting: deque[bytes] = deque()
        self._left_out = 0
        self._written = 0  # texts, or pieces of them: tells a slow reader from one that takes nothing
        self._busy = self._broken = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def idle(self) -> bool:
        """Whether all that was given is written."""
        return self._broken or not (self._waiting or self._busy)

    def write(self, text: bytes) -> None:
        """Gives a text to the thread; returns at once."""
        with self._changed:
            if self._broken:
                return
            if len(self._waiting) >= WAITING:
                self._left_out += 1
                return
            if self._left_out:
                self._waiting.append(f"... {self._left_out} lines were not shown here\n".encode())
                self._left_out = 0
            self._waiting.append(text)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="console", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def drain(self) -> bool:
        """Waits until all is written; False where the reader has taken nothing for DRAIN_SECONDS."""
        with self._changed:
            seen, since = self._written, time.monotonic()
            while not self.idle:
                self._changed.wait(0.1)
                if self._written != seen:
                    seen, since = self._written, time.monotonic()
                elif time.monotonic() - since > DRAIN_SECONDS:
                    return False
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                while not self._waiting:
                    self._changed.wait()
                text, self._busy = self._waiting.popleft(), True
            try:
                self._write(text)
            except (OSError, ValueError):
                self._broken = True
                return

    def _write(self, text: bytes) -> None:
        while text:
            try:
                text = text[os.write(self._descriptor, text) :]
                self._written += 1
            except BlockingIOError:  # a terminal may be set not to wait
                select.select([], [self._descriptor], [])


class UnblockedStream(io.TextIOBase):
    """A stream that is written to in the background, and whose faults raise nothing.

    terminal: what `isatty` says. A stream in memory is written to at once.
    """

    def __init__(self, stream: TextIO, terminal: bool) -> None:
        self._stream, self._is_terminal = stream, terminal
        self._encoding = stream.encoding or "utf-8"
        try:
            self._writer: BackgroundWriter | None = BackgroundWriter(stream.fileno())
        except (OSError, ValueError, AttributeError):
            self._writer = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream; characters that it does not have become question marks."""
        return self._encoding

    def isatty(self) -> bool:
        """Whether this is a terminal."""
        return self._is_terminal

    def write(self, text: str) -> int:
        """Returns at once, whatever becomes of the text."""
        data = text.encode(self._encoding, "replace")
        if self._writer is not None:
            self._writer.write(data)
        else:
            with contextlib.suppress(OSError, ValueError):  # ValueError: the stream was closed
                self._stream.write(data.decode(self._encoding))
                self._stream.flush()
        return len(text)

    @property
    def idle(self) -> bool:
        """Whether all that was written has gone to the stream."""
        return self._writer is None or self._writer.idle

    def drain(self) -> bool:
        """Waits until it has; False where the reader takes nothing, see `BackgroundWriter.drain`."""
        return self._writer is None or self._writer.drain()
