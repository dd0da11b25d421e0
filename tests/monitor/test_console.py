"""On a terminal one line refreshes itself under lines that stay; elsewhere there are plain lines."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from llmkit.monitor import console as module
from llmkit.monitor.console import Console, SilentConsole, duration
from llmkit.monitor.flops import bits_per_byte

ROW = {
    "step": 20,
    "loss": 4.56789,
    "tokens_per_second": 12345.6,
    "step_seconds": 0.5,
    "mfu": 0.4123,
    "learning_rate": 1e-3,
}


def terminal(width: int = 100, max_steps: int | None = 200) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(max_steps, stream, terminal=True, width=width), stream


def shown(text: str) -> list[str]:
    """The lines that a terminal shows after it was sent `text`, without their bars and colours."""
    lines, row, column = [""], 0, 0
    for code, character in re.findall(r"\x1b\[([0-9;?]*[A-Za-z])|(.|\n)", text):
        if code in ("2K", "K"):
            lines[row] = "" if code == "2K" else lines[row][:column]
        elif code.endswith("A"):
            row -= int(code[:-1])
        elif character == "\r":
            column = 0
        elif character == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        elif character:
            lines[row] = lines[row][:column].ljust(column) + character + lines[row][column + 1 :]
            column += 1
    return [re.sub("^[━╸╺ ]+", "", line).rstrip() for line in lines]


def test_a_log_has_plain_whole_lines() -> None:
    stream = io.StringIO()
    console = Console(200, stream)
    console.progress(19)
    console.row(ROW)
    console.evaluation(20, 4.25, 1.5)
    console.evaluation(20, 4.25, bits_per_byte(85.0, text_bytes=0))
    console.note("checkpoint saved")
    assert stream.getvalue() == (
        "step  20/200  loss 4.5679  12.3k tokens/s  1 min 30 s left  MFU 41.2 %\n"
        "step  20/200  held-out loss 4.2500  bits per byte 1.5000\n"
        "step  20/200  held-out loss 4.2500  bits per byte none (the held-out tokens stand for no text)\n"
        "checkpoint saved\n"
    )


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setenv("TERM", "dumb")
    console = Console(200, stream)
    console.progress(1)
    assert stream.getvalue() == ""


def test_lines_that_stay_appear_above_the_status_line() -> None:
    console, stream = terminal()
    console.row(ROW)
    console.progress(21)
    console.note("first\nsecond")
    assert [line[:12] for line in shown(stream.getvalue())] == [
        "step  20/200",
        "first",
        "second",
        "step  21/200",
    ]


def test_between_rows_the_status_counts_on_with_the_values_last_known() -> None:
    console, stream = terminal()
    console.row(ROW)
    console.progress(40)
    assert shown(stream.getvalue())[-1] == (
        "step  40/200  loss 4.5679  12.3k tokens/s  1 min 20 s left  MFU 41.2 %"
    )


def test_the_status_is_not_refreshed_more_often_than_eyes_can_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.01, 0.09, 0.1])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    console, stream = terminal()
    for step in range(1, 5):
        console.progress(step)
    assert re.findall(r"step +(\d+)/", stream.getvalue()) == ["1", "4"]


@pytest.mark.parametrize("width", [10, 20, 40, 60])
def test_on_a_narrow_terminal_the_progress_line_does_not_wrap(width: int) -> None:
    console, stream = terminal(width)
    console.row(ROW)
    console.progress(21)
    console.progress(22)
    lines = shown(stream.getvalue())
    assert len(lines[-1]) <= width and lines[0].startswith("step  20/200  loss 4.5679"[:width])


def test_a_bar_shows_how_far_the_run_is() -> None:
    console, stream = terminal(120)
    console.progress(100)
    assert len(re.findall("[━╸╺]", stream.getvalue())) == 20
    unknown, stream = terminal(120, max_steps=None)
    unknown.progress(100)
    assert "━" not in stream.getvalue() and "step 100" in stream.getvalue()


def test_the_cursor_of_the_terminal_is_left_alone() -> None:
    console, stream = terminal()
    console.progress(1)
    console.close()
    assert "\x1b[?25" not in stream.getvalue()


def test_the_summary_ends_the_status_line() -> None:
    console, stream = terminal()
    console.progress(200)
    console.summary({"held-out loss": "3.21", "checkpoint": "runs/demo"})
    assert shown(stream.getvalue()) == ["held-out loss  3.21", "checkpoint     runs/demo", ""]


def test_a_skipped_update_and_a_loss_that_is_not_finite_are_named() -> None:
    stream = io.StringIO()
    Console(None, stream).row({"step": 3, "loss": None, "skipped": True, "mfu": None})
    assert stream.getvalue() == "step 3  loss not finite  update skipped\n"


def test_a_step_without_targets_is_named_and_has_no_loss_unless_others_before_it_had() -> None:
    stream = io.StringIO()
    console = Console(None, stream)
    console.row({"step": 3, "loss": None, "no_targets": True})
    console.row({"step": 4, "loss": None, "loss_mean": 2.5, "no_targets": True})
    assert stream.getvalue() == "step 3  no targets\nstep 4  loss 2.5000  no targets\n"


def test_a_number_of_steps_that_becomes_known_later_is_shown_from_then_on() -> None:
    stream = io.StringIO()
    console = Console(None, stream)
    console.row({"step": 1, "loss": 9.0})
    console.max_steps = 50
    console.row({"step": 2, "loss": 8.0})
    assert stream.getvalue().splitlines() == ["step 1  loss 9.0000", "step  2/50  loss 8.0000"]


def test_a_broken_pipe_does_not_end_the_run() -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    console = Console(10, Broken())
    console.note("one")
    console.row({"step": 1})


def test_text_that_the_terminal_cannot_write_is_replaced_not_lost() -> None:
    raw = io.BytesIO()
    console = Console(10, io.TextIOWrapper(raw, encoding="ascii"))
    console.note("sample: caf\u00e9")
    assert raw.getvalue() == b"sample: caf?\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (42.4, "42 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
        (356400, "4 d 03 h"),
    ],
)
def test_durations_are_told_in_the_two_units_that_matter(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_status_line_never_shows_an_older_row() -> None:
    console, stream = terminal()
    console.row(ROW)
    console.progress(25)
    console.row({**ROW, "step": 30, "loss": 3.0})
    assert "loss 3.0000" in shown(stream.getvalue())[-1]


def test_the_mean_since_the_last_row_is_shown_where_a_row_has_one() -> None:
    stream = io.StringIO()
    console = Console(None, stream)
    console.row({"step": 1, "loss": 9.0, "loss_mean": 9.5, "tokens_per_second": None, "mfu": None})
    console.row({"step": 2, "loss": 8.0, "loss_mean": None})
    assert stream.getvalue().splitlines() == ["step 1  loss 9.5000", "step 2  loss 8.0000"]


def test_lines_that_stay_are_kept_in_a_file_too(tmp_path: Path) -> None:
    console, _ = terminal()
    console.keep_log(tmp_path / "rank-00000.log")
    console.progress(3)
    console.note("checkpoint saved")
    console.row(ROW)
    lines = (tmp_path / "rank-00000.log").read_text().splitlines()
    assert lines[0] == "checkpoint saved"
    assert len(lines) == 2


def test_a_log_that_cannot_be_opened_stops_nothing(tmp_path: Path) -> None:
    console, stream = terminal()
    console.keep_log(tmp_path / "missing" / "rank-00000.log")
    console.note("on")
    assert "on" in stream.getvalue()


def test_a_rank_beside_the_first_shows_nothing_and_logs_its_notes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console = SilentConsole()
    console.keep_log(tmp_path / "rank-00001.log")
    console.note("the data are here")
    console.progress(2)
    console.log("RuntimeError: gone")
    assert (tmp_path / "rank-00001.log").read_text() == "the data are here\nRuntimeError: gone\n"
    assert capsys.readouterr().out == ""
