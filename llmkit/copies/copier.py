"""The trainer's side of copying: it starts the process that copies (`process.py`), never waits for it, and
at the end of the run gives it a limited time.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import llmkit
from llmkit.copies.held import forget
from llmkit.copies.offer import Offer
from llmkit.errors import RunFault
from llmkit.proc import kill_tree
from llmkit.stopping import signals_blocked

END_SECONDS = 30.0
"""That a run waits at its end for what is being copied: in all, or without a byte that was sent."""
Message = dict[str, Any]


class Copier:
    """Copies the checkpoints of a run to a URL, in a process of its own.

    folder: the run folder. command: names this start in messages to others. environment: of the process; keys
    of the store are in it.
    """

    def __init__(self, folder: Path, url: str, command: str, environment: Mapping[str, str]) -> None:
        self._folder, self._url, self._command, self._environment = folder, url, command, environment
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._ends_at: float | None = None
        self.offered: Offer | None = None

    def offer(self, offer: Offer | None = None) -> None:
        """Has a checkpoint copied after what is being copied, in the place of one that waits.

        Without one, lets the process make itself known. Raises RunFault where it cannot be started.
        """
        if offer is not None:
            offer.write(self._folder)
            self.offered = offer
        if self._process is None or self._process.poll() is not None:
            self._process = self._start()
        self._say("copy")

    def messages(self, wait: float = 0.0) -> list[Message]:
        """What the process has said since the last call. wait: seconds, until it says something."""
        if self._process is None or self._process.stdout is None:
            return []
        stream = self._process.stdout.fileno()
        if wait and not select.select([stream], [], [], wait)[0]:
            return []
        while True:
            try:
                part = os.read(stream, 1 << 16)
            except BlockingIOError:
                break
            self._unread += part
            if not part:
                break
        *lines, self._unread = self._unread.split(b"\n")
        found = []
        for line in lines:
            with suppress(ValueError):
                found.append(json.loads(line))
        return [message for message in found if isinstance(message, dict)]

    def end(self) -> None:
        """Has the process copy what waits, and the record as it is now, and then end."""
        if self._process is not None and self._ends_at is None:
            self._ends_at = time.monotonic() + END_SECONDS
            self._say("end")

    def finish(self, take: Callable[[Message], None], may_wait_on: Callable[[], bool]) -> bool:
        """Waits until the process has ended; returns whether everything was copied.

        At most END_SECONDS from `end` on, or as long as more bytes than ever of a file are sent within that
        time and `may_wait_on()` says so; then it is killed. take: is called with what the process says.
        """
        self.end()
        process, until = self._process, self._ends_at
        if process is None or until is None:
            return True
        while process.poll() is None and time.monotonic() < until:
            for message in self.messages(wait=0.2):
                take(message)
                if "sent" in message and may_wait_on():
                    until = time.monotonic() + END_SECONDS
        if process.poll() is None:
            kill_tree(process.pid)
        code = process.wait()
        forget(self._folder / "checkpoints")  # the links of a copy that was killed would keep its bytes
        for message in self.messages():
            take(message)
        for stream in (process.stdin, process.stdout):
            with suppress(OSError):
                if stream is not None:
                    stream.close()
        self._process = self._ends_at = None
        return code == 0

    def _start(self) -> subprocess.Popen[bytes]:
        package_root = str(Path(llmkit.__file__).resolve().parents[1])
        paths = [package_root, *filter(None, [self._environment.get("PYTHONPATH")])]
        command = [sys.executable, "-P", "-m", "llmkit.copies.process"]
        arguments = [str(self._folder), self._url, self._command, str(os.getpid())]
        try:
            with open(self._folder / "logs" / "copies.log", "ab") as log, signals_blocked():
                process = subprocess.Popen(
                    [*command, *arguments],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
                    env={**self._environment, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
                )  # fmt: skip
        except OSError as error:
            raise RunFault(f"the process that copies cannot be started: {error}") from error
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self._unread = b""
        return process

    def _say(self, word: str) -> None:
        assert self._process is not None and self._process.stdin is not None
        with suppress(OSError):  # it has ended; the next offer starts it again
            self._process.stdin.write(f"{word}\n".encode())
            self._process.stdin.flush()
