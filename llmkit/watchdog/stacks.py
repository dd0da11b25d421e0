"""Python stacks as faulthandler writes them, and what they say of a thread."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_THREAD = re.compile(r"^(?:Current thread|Thread) 0x([0-9a-f]+)")
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$')
_COMPILERS = (
    "/torch/_dynamo/", "/torch/_inductor/", "/torch/_functorch/", "/triton/", "/torch/utils/cpp_extension",
)  # fmt: skip
_DEBUGGERS = ("pdb.py", "bdb.py", "code.py", "pydevd.py")
_EXCHANGE = re.compile(
    r"\b(all_reduce|all_gather\w*|all_to_all\w*|reduce_scatter\w*|broadcast\w*|barrier|reduce|gather|scatter"
    r"|send|recv|isend|irecv|wait|wait_tensor)\("
)
"""Calls in which a rank waits for others: those into C++ are no frames of Python, so the line is read."""
_DEVICE = re.compile(r"\.(synchronize|item|tolist|cpu|numpy|elapsed_time)\(|run_backward\(")
"""Calls in which a rank waits for its GPU, which may itself wait for others."""
DEVICE = "device"
NOTHING = "unknown"


class Frame(NamedTuple):
    """A call that is under way: its file, the line in it, the function."""

    file: str
    line: int
    function: str

    @property
    def place(self) -> str:
        """As in "all_reduce (torch/distributed/distributed_c10d.py:2501)"."""
        parts = Path(self.file).parts
        for root in ("site-packages", "dist-packages", "llmkit"):
            if root in parts[:-1]:
                start = len(parts) - 1 - parts[::-1].index(root)
                parts = parts[start + (root != "llmkit") :]
                break
        else:
            parts = parts[-1:]
        return f"{self.function} ({'/'.join(parts)}:{self.line})"


class Stack(NamedTuple):
    """The frames of a thread, the innermost first."""

    frames: tuple[Frame, ...] = ()

    @property
    def place(self) -> str:
        """The innermost frame, behind it the one of llmkit or of the user's code that led there."""
        if not self.frames:
            return NOTHING
        own = next((frame for frame in self.frames if not _is_library(frame)), self.frames[0])
        inner = self.frames[0]
        return own.place if own is inner else f"{inner.place}, called by {own.place}"

    @property
    def exchange(self) -> str:
        """The exchange with other ranks that it is in, as "all_reduce"; "" = it is in none.

        A wait for its own device is DEVICE.
        """
        for frame in self.frames[:4]:
            if "/torch/distributed/" in frame.file and not frame.file.endswith("c10d_logger.py"):
                return frame.function
        if not self.frames:
            return ""
        text = line_of(self.frames[0].file, self.frames[0].line)
        if found := _EXCHANGE.search(text):
            return found[1]
        return DEVICE if _DEVICE.search(text) or "run_backward" in self.frames[0].function else ""

    @property
    def compiles(self) -> bool:
        """Whether a compiler is at work."""
        return any(part in frame.file for frame in self.frames for part in _COMPILERS)

    @property
    def debugged(self) -> bool:
        """Whether it stands in a debugger of Python."""
        return any(Path(frame.file).name in _DEBUGGERS or "/debugpy/" in frame.file for frame in self.frames)


def parse(dump: str) -> dict[int, Stack]:
    """The stacks in a dump, by the identity of their threads."""
    found: dict[int, list[Frame]] = {}
    frames: list[Frame] = []
    for line in dump.splitlines():
        if thread := _THREAD.match(line):
            frames = found.setdefault(int(thread[1], 16), [])
        elif frame := _FRAME.match(line):
            frames.append(Frame(frame[1], int(frame[2]), frame[3]))
    return {identity: Stack(tuple(frames)) for identity, frames in found.items()}


def line_of(file: str, number: int) -> str:
    """A line of a source file; "" where it cannot be read."""
    try:
        with open(file, encoding="utf-8", errors="replace") as source:
            for count, line in enumerate(source, start=1):
                if count == number:
                    return line.strip()
    except OSError:
        pass
    return ""


def _is_library(frame: Frame) -> bool:
    return "site-packages" in frame.file or "dist-packages" in frame.file or "/lib/python" in frame.file
