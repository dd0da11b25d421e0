"""On a terminal a view is drawn under lines that stay; elsewhere there are plain lines."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest

from llmkit.monitor.console import Console, Refresher
from llmkit.monitor.progress import Progress
from tests.limits import HANG
from tests.monitor.screen import Screen
from tests.monitor.test_row_text import ROW


class Terminal:
    """A console on a terminal that a test looks at, and draws on itself."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, columns: int = 100, rows: int = 24) -> None:
        monkeypatch.setattr(Refresher, "_run", lambda self: None)
        self.stream, self.columns = io.StringIO(), columns
        self.console = Console(200, self.stream, terminal=True, size=(columns, rows))
        self.console.follow(Progress("demo", 200), lambda: None)

    def lines(self) -> list[str]:
        return Screen(self.columns).feed(self.stream.getvalue()).lines


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    return Terminal(monkeypatch)


def test_a_log_has_plain_whole_lines() -> None:
    stream = io.StringIO()
    console = Console(200, stream)
    console.follow(Progress("demo", 200), lambda: "evaluating, 3 s")
    console.progress(19)
    console.write(ROW)
    console.write({"step": 20, "eval_loss": 4.25, "eval_bits_per_byte": 1.5})
    console.note("checkpoint saved")
    console.draw()
    console.close()
    assert stream.getvalue() == (
        "step  20/200  loss 4.5679  12.3k tokens/s  1 min 30 s left  MFU 41.2 %\n"
        "step  20/200  held-out loss 4.2500  bits per byte 1.5000\n"
        "checkpoint saved\n"
    )


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setenv("TERM", "dumb")
    console = Console(200, stream)
    console.follow(Progress("demo", 200), lambda: None)
    console.write(ROW)
    console.close()
    assert stream.getvalue() == "step  20/200  loss 4.5679  12.3k tokens/s  1 min 30 s left  MFU 41.2 %\n"


def test_lines_that_stay_appear_above_the_view(terminal: Terminal) -> None:
    terminal.console.write(ROW)
    terminal.console.draw()
    terminal.console.note("first\nsecond")
    terminal.console.write({"step": 20, "eval_loss": 4.25, "eval_bits_per_byte": 1.5})
    lines = terminal.lines()
    assert lines[:3] == ["first", "second", "step  20/200  held-out loss 4.2500  bits per byte 1.5000"]
    assert lines[3] == "" and lines[4].startswith("demo") and lines[5].startswith("loss 4.5679")
    assert len(lines) == 7


def test_rows_of_steps_are_in_the_view_and_those_that_are_odd_stay(terminal: Terminal) -> None:
    terminal.console.write(ROW)
    terminal.console.write({**ROW, "step": 21, "skipped": True})
    terminal.console.draw()
    lines = terminal.lines()
    assert lines[0].startswith("step  21/200  loss 4.5679  update skipped")
    assert not any(line.startswith("step  20") for line in lines)


def test_drawing_again_and_again_grows_nothing(terminal: Terminal) -> None:
    terminal.console.write(ROW)
    for step in range(20, 120):
        terminal.console.progress(step)
        terminal.console.draw()
    assert len(terminal.lines()) == 4
    assert "119/200" in terminal.lines()[1]
    terminal.console.close()
    assert terminal.lines() == []


def test_a_terminal_that_changes_its_size_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch, 40, 10)
    sizes = iter([(100, 24), (40, 10), (200, 5)])
    monkeypatch.setattr("llmkit.monitor.console.size_of", lambda stream: next(sizes))
    terminal.console._size = None
    terminal.console.write(ROW)
    for height in (4, 4, 1):
        terminal.console.draw()
        lines = Screen(200).feed(terminal.stream.getvalue()).lines
        assert len(lines) == height, lines


def test_the_cursor_of_the_terminal_is_left_alone(terminal: Terminal) -> None:
    terminal.console.draw()
    terminal.console.close()
    assert "\x1b[?" not in terminal.stream.getvalue()


def test_the_summary_ends_the_view(terminal: Terminal) -> None:
    terminal.console.draw()
    terminal.console.summary({"held-out loss": "3.21", "checkpoint": "runs/demo"})
    terminal.console.write(ROW)  # from here on lines stay
    assert terminal.lines()[:2] == ["held-out loss  3.21", "checkpoint     runs/demo"]
    assert terminal.lines()[2].startswith("step  20/200")


def test_the_view_is_drawn_by_a_thread_of_its_own_until_it_is_closed() -> None:
    drawn, seen = threading.Event(), list[str | None]()

    def activity() -> str:
        seen.append(threading.current_thread().name)
        drawn.set()
        return "compiling, 3 s"

    stream = io.StringIO()
    console = Console(10, stream, terminal=True, size=(80, 24))
    console.follow(Progress("demo", 10), activity)
    assert drawn.wait(HANG)
    console.close()
    console.close()
    count = len(seen)
    assert seen[0] == "live view" and "live view" not in [each.name for each in threading.enumerate()]
    assert Screen().feed(stream.getvalue()).lines == [] and len(seen) == count


def test_a_terminal_that_takes_nothing_is_not_drawn_on(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(terminal.console._stream), "idle", property(lambda self: False))
    terminal.console.draw()
    assert terminal.stream.getvalue() == ""


def test_a_number_of_steps_that_becomes_known_later_is_shown_from_then_on() -> None:
    stream = io.StringIO()
    console = Console(None, stream)
    console.write({"step": 1, "loss": 9.0})
    console.max_steps = 50
    console.write({"step": 2, "loss": 8.0})
    assert stream.getvalue().splitlines() == ["step 1  loss 9.0000", "step  2/50  loss 8.0000"]


def test_a_table_is_aligned_and_wrapped_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch, 40)
    terminal.console.table([("model", "a word " * 8), ("", "more"), ("run", "")])
    assert terminal.lines() == [
        "model      a word a word a word a word",
        "           a word a word a word a word",
        "           more",
        "run",
    ]
    stream = io.StringIO()
    Console(None, stream).table([("kernels", "word " * 40)])
    assert max(map(len, stream.getvalue().splitlines())) <= 110


def test_text_is_broken_between_words_on_a_terminal_and_code_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch, 40)
    code = "  llmkit generate runs/demo --prompt a_prompt_that_is_long"
    path = "saved /a/path/that/is/longer/than/the/terminal/is/wide/step-00000100; go on"
    terminal.console.note(f"a note that would be wrapped in the middle of a word\n{code}\n{path}")
    terminal.console.summary({"steps": "20", "run folder": "runs/demo: checkpoints/, metrics.jsonl, logs/"})
    shown = terminal.lines()
    assert shown[:2] == ["a note that would be wrapped in the", "middle of a word"]
    assert shown[2] + shown[3] == code
    assert shown[4] == "saved" and shown[5] + shown[6] == path.split()[1] and shown[7] == "go on"
    assert shown[-3:] == [
        "steps       20",
        "run folder  runs/demo: checkpoints/,",
        "            metrics.jsonl, logs/",
    ]


def test_an_event_is_in_the_view(terminal: Terminal) -> None:
    terminal.console.event({"event": "save", "step": 500})
    terminal.console.draw()
    assert terminal.lines()[-1] == "saved step 500"


def test_a_broken_pipe_does_not_end_the_run() -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    console = Console(10, Broken())
    console.note("one")
    console.write({"step": 1})
    view = Console(10, Broken(), terminal=True, size=(80, 24))
    view.follow(Progress("demo", 10), lambda: None)
    view.draw()
    view.close()


def test_text_that_the_terminal_cannot_write_is_replaced_not_lost() -> None:
    raw = io.BytesIO()
    console = Console(10, io.TextIOWrapper(raw, encoding="ascii"))
    console.note("sample: caf\u00e9")
    assert raw.getvalue() == b"sample: caf?\n"


def test_colours_come_into_a_log_only_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = {"step": 3, "loss": None}
    for name, value, coloured in (("FORCE_COLOR", "1", True), ("NO_COLOR", "1", False)):
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv(name, value)
        stream = io.StringIO()
        Console(None, stream).write(bad)
        assert ("\x1b[33m" in stream.getvalue()) == coloured and "\x1b[1A" not in stream.getvalue()


def test_lines_that_stay_and_rows_are_kept_in_a_file_too(terminal: Terminal, tmp_path: Path) -> None:
    terminal.console.keep_log(tmp_path / "rank-00000.log")
    terminal.console.draw()
    terminal.console.note("checkpoint saved", important=True)
    terminal.console.write(ROW)
    lines = (tmp_path / "rank-00000.log").read_text().splitlines()
    assert lines[0] == "checkpoint saved" and lines[1].startswith("step  20/200  loss 4.5679")
    assert len(lines) == 2


def test_a_log_that_cannot_be_opened_stops_nothing(terminal: Terminal, tmp_path: Path) -> None:
    terminal.console.keep_log(tmp_path / "missing" / "rank-00000.log")
    terminal.console.note("on")
    assert terminal.lines() == ["on"]
