"""What a stream can show."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import termios

import pytest
from rich.text import Text

from llmkit.monitor.terminal import Painter, shows_only_ascii, size_of, takes_live_view


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


TERM = {"TERM": "xterm-256color"}


@pytest.mark.parametrize(
    ("more", "takes"),
    [
        ({}, True),
        ({"TERM": "dumb"}, False),
        ({"TERM": ""}, False),
        ({"CI": "true"}, False),
        ({"CI": "false"}, True),
        ({"JPY_PARENT_PID": "12"}, False),
        ({"NO_COLOR": "1"}, True),
        ({"FORCE_COLOR": "1"}, True),
    ],
)
def test_a_terminal_takes_a_view_unless_what_it_shows_is_kept(more: dict[str, str], takes: bool) -> None:
    assert takes_live_view(Terminal(), TERM | more) == takes
    assert not takes_live_view(io.StringIO(), TERM | more)


def test_a_closed_stream_takes_none() -> None:
    stream = io.StringIO()
    stream.close()
    assert not takes_live_view(stream, TERM)


@pytest.mark.parametrize(
    ("terminal", "environment", "painted"),
    [
        (True, TERM, "\x1b[31mred\x1b[0m"),
        (True, TERM | {"NO_COLOR": "1"}, "red"),
        (True, TERM | {"NO_COLOR": ""}, "\x1b[31mred\x1b[0m"),
        (False, TERM, "red"),
        (False, TERM | {"FORCE_COLOR": "1"}, "\x1b[31mred\x1b[0m"),
        (False, TERM | {"FORCE_COLOR": "0"}, "red"),
        (True, {"TERM": "dumb"}, "red"),
    ],
)
def test_colours_follow_the_environment(terminal: bool, environment: dict[str, str], painted: str) -> None:
    assert Painter(terminal, environment)(Text("red", style="red")) == painted


def test_text_is_painted_without_touching_any_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(io.StringIO):
        def write(self, text: str) -> int:
            raise AssertionError("a terminal that takes nothing would block here")

        def flush(self) -> None:
            raise AssertionError("and here")

    paint = Painter(True, TERM)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{name}", Stopped())
    assert paint(Text("red", style="red")) == "\x1b[31mred\x1b[0m"
    assert Painter(True, TERM)(Text("red")) == "red"


def test_long_lines_are_neither_wrapped_nor_cut() -> None:
    line = "word " * 4000
    assert Painter(False, TERM)(Text(line)) == line


def test_the_size_is_that_of_the_terminal_at_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    try:
        with open(theirs, "w", closefd=False) as stream:
            for columns, rows in ((120, 40), (40, 10), (0, 0)):
                fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
                assert size_of(stream) == ((columns, rows) if columns else (80, 24))
    finally:
        os.close(ours)
        os.close(theirs)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("LINES", raising=False)
    assert size_of(io.StringIO()) == (80, 24)
    monkeypatch.setenv("COLUMNS", "132")
    monkeypatch.setenv("LINES", "many")
    assert size_of(io.StringIO()) == (132, 24)


def test_blocks_need_an_encoding_that_has_them() -> None:
    assert not shows_only_ascii("utf-8", TERM) and not shows_only_ascii("UTF8", TERM)
    assert shows_only_ascii("utf-8", {"TERM": "linux"})
    assert shows_only_ascii("ascii") and shows_only_ascii("latin-1") and shows_only_ascii(None)
