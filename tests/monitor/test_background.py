"""Writing to what is read slowly, or not at all."""

from __future__ import annotations

import contextlib
import io
import os

import pytest

from llmkit.monitor import background
from llmkit.monitor.background import BackgroundWriter, UnblockedStream
from tests.limits import HANG


@pytest.fixture
def pipe(monkeypatch):
    monkeypatch.setattr(background, "DRAIN_SECONDS", HANG)
    reader, writer = os.pipe()
    yield reader, writer
    for end in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(end)


def fill(writer: int) -> int:
    """Fills a pipe to the brim; how many bytes went in."""
    os.set_blocking(writer, False)
    count = 0
    try:
        while True:
            count += os.write(writer, b"x" * 4096)
    except BlockingIOError:
        return count
    finally:
        os.set_blocking(writer, True)


def test_texts_arrive_in_order(pipe):
    writer = BackgroundWriter(pipe[1])
    for number in range(50):
        writer.write(b"%d\n" % number)
    assert writer.drain()
    assert os.read(pipe[0], 4096).split() == [b"%d" % number for number in range(50)]


def test_a_full_pipe_is_not_waited_for_and_what_was_left_out_is_told(pipe, monkeypatch):
    monkeypatch.setattr(background, "WAITING", 3)
    there = fill(pipe[1])
    writer = BackgroundWriter(pipe[1])
    writer.write(b"first\n")
    while writer._waiting:  # until the thread has it, and is stuck
        pass
    for number in range(7):
        writer.write(b"%d\n" % number)
    with monkeypatch.context() as patch:
        patch.setattr(background, "DRAIN_SECONDS", 0.2)
        assert not writer.drain()
    while there:
        there -= len(os.read(pipe[0], there))
    assert writer.drain()
    writer.write(b"last\n")
    assert writer.drain()
    assert os.read(pipe[0], 4096) == b"first\n0\n1\n2\n... 4 lines were not shown here\nlast\n"


def test_a_terminal_that_does_not_wait_is_waited_for(pipe):
    there = fill(pipe[1])
    os.set_blocking(pipe[1], False)
    writer = BackgroundWriter(pipe[1])
    writer.write(b"text")
    while there:
        there -= len(os.read(pipe[0], there))
    assert writer.drain()
    assert os.read(pipe[0], 4096) == b"text"


def test_a_reader_that_has_gone_is_given_up(pipe):
    writer = BackgroundWriter(pipe[1])
    os.close(pipe[0])
    writer.write(b"text")
    assert writer.drain()
    writer.write(b"more")
    assert writer.idle


def test_a_stream_in_memory_is_written_to_at_once_and_its_faults_raise_nothing():
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    stream = io.StringIO()
    unblocked = UnblockedStream(stream, terminal=True)
    assert unblocked.write("a") == 1 and stream.getvalue() == "a"
    assert unblocked.isatty() and unblocked.idle and unblocked.drain()
    assert UnblockedStream(Broken(), terminal=False).write("text") == 4
    stream.close()
    assert unblocked.write("b") == 1


def test_a_stream_of_the_system_is_written_to_in_the_background(pipe):
    with open(pipe[1], "w", encoding="ascii", closefd=False) as stream:
        unblocked = UnblockedStream(stream, terminal=False)
        assert unblocked.encoding == "ascii" and not unblocked.isatty()
        unblocked.write("caf\u00e9\n")
        assert unblocked.drain()
    assert os.read(pipe[0], 100) == b"caf?\n"
