"""Messages of errors: as they are in files, wrapped and coloured on terminals."""

from __future__ import annotations

import io
import os

import pytest

from llmkit.error_text import WIDEST, coloured, show_error, terminal_width, wants_color, wrapped_line

MESSAGE = (
    "llmkit: mine.yaml: 1 mistake\n"
    "  mine.yaml:3: train.max_step is an unknown key; did you mean train.max_steps?\n"
    "      train.max_steps: Optimizer steps; where absent, `max_minutes` decides."
)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def __init__(self, number: int = -1) -> None:
        super().__init__()
        self.number = number

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.number


def test_a_file_gets_the_message_as_it_is():
    stream = io.StringIO()
    show_error(MESSAGE, stream, {"TERM": "xterm"})
    assert stream.getvalue() == MESSAGE + "\n"


def test_a_terminal_gets_lines_of_its_width(monkeypatch):
    monkeypatch.setattr(os, "get_terminal_size", lambda number: os.terminal_size((50, 24)))
    stream = Terminal()
    show_error(MESSAGE, stream, {"TERM": "xterm", "NO_COLOR": "1"})
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 50 and len(lines) == 5
    assert " ".join(stream.getvalue().split()) == " ".join(MESSAGE.split())
    assert [len(line) - len(line.lstrip()) for line in lines] == [0, 2, 6, 6, 10]


def test_lines_are_wrapped_at_words_and_indented_deeper():
    assert wrapped_line("  a place: what is wrong with it, and where it is", 40) == (
        "  a place: what is wrong with it, and\n      where it is"
    )
    path = "/a/very/long/path-that-is-copied-from-here/" + "x" * 60
    assert path in wrapped_line(f"llmkit: {path}: is not there", 40).replace("\n    ", " ")
    assert wrapped_line("short", 40) == "short"
    assert wrapped_line("x " * 100, 10) == "x " * 100


def test_the_width_is_that_of_the_terminal_within_bounds(monkeypatch):
    assert terminal_width(io.StringIO()) is None
    assert terminal_width(Terminal()) is None  # it has no descriptor
    for columns, width in ((50, 50), (0, 80), (500, WIDEST)):
        monkeypatch.setattr(
            os, "get_terminal_size", lambda _, columns=columns: os.terminal_size((columns, 9))
        )
        assert terminal_width(Terminal()) == width


@pytest.mark.parametrize(
    ("stream", "environment", "wanted"),
    [
        (Terminal(), {"TERM": "xterm"}, True),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": ""}, True),
        (Terminal(), {"TERM": "dumb"}, False),
        (Terminal(), {}, False),
        (io.StringIO(), {"TERM": "xterm"}, False),
        (io.StringIO(), {"FORCE_COLOR": "1"}, True),
        (io.StringIO(), {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_colours_are_for_terminals_unless_asked_for(stream, environment, wanted):
    assert wants_color(stream, environment) is wanted


def test_a_closed_stream_has_no_colour():
    stream = io.StringIO()
    stream.close()
    assert wants_color(stream, {"TERM": "xterm"}) is False


def test_what_matters_is_in_colour():
    red, bold, plain = "\x1b[1;31m", "\x1b[1m", "\x1b[0m"
    assert coloured("llmkit train: error: no --frehs; did you mean --fresh?") == (
        f"{red}llmkit train:{plain} error: no --frehs; did you mean {bold}--fresh{plain}?"
    )
    assert coloured("  llmkit: not at the beginning") == "  llmkit: not at the beginning"
