"""The memory that a rank shares with its watching process: what the rank does at the moment."""

from __future__ import annotations

import mmap
import os
import struct
from typing import NamedTuple

_FORMAT = struct.Struct("=QQdddQBBqq")
SIZE = mmap.PAGESIZE


class Sight(NamedTuple):
    """What a rank was doing when somebody looked.

    beats: grows by one with each sign of life. step: steps that the run has done. limit: seconds after which
    the phase is overdue. step_limit: the same of a step, whatever the phase is. own_seconds: of all counted
    steps of this start, without the waiting for other ranks; steps: their number. phase: an index into
    `llmkit.loop.phases.NAMES`. patient: 1 = seconds in which the rank computes do not count. first_step,
    saved_step: steps done when this start began, and those that the newest checkpoint holds; -1 = unknown.
    """

    beats: int = 0
    step: int = 0
    limit: float = 0.0
    step_limit: float = 0.0
    own_seconds: float = 0.0
    steps: int = 0
    phase: int = 0
    patient: int = 0
    first_step: int = -1
    saved_step: int = -1


class Board:
    """A page of memory, written by one process; `descriptor` is handed to the other one."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, SIZE)

    @classmethod
    def create(cls) -> Board:
        """A new one, which no file system knows. Linux only."""
        descriptor = os.memfd_create("llmkit-watchdog", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, SIZE)
        return cls(descriptor)

    def write(self, sight: tuple[int, int, float, float, float, int, int, int, int, int]) -> None:
        """Replaces what is there; `sight` is a Sight, or a tuple like one, which is made faster."""
        _FORMAT.pack_into(self._memory, 0, *sight)

    def read(self) -> Sight:
        """What is there: read again until two readings agree, as the other process may be writing."""
        before = b""
        while (found := self._memory[: _FORMAT.size]) != before:
            before = found
        return Sight(*_FORMAT.unpack(found))

    def close(self) -> None:
        """Lets go of the memory."""
        self._memory.close()
        os.close(self.descriptor)
