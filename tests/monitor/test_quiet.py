"""Consoles that show little."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from llmkit.monitor.progress import Progress
from llmkit.monitor.quiet import QuietConsole, SilentConsole, console_of_rank


def test_a_rank_beside_the_first_shows_nothing_and_logs_its_notes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console = console_of_rank(1)
    assert isinstance(console, SilentConsole)
    console.keep_log(tmp_path / "rank-00001.log")
    console.note("the data are here")
    console.progress(2)
    console.log("RuntimeError: gone")
    assert (tmp_path / "rank-00001.log").read_text() == "the data are here\nRuntimeError: gone\n"
    assert capsys.readouterr().out == ""


def test_quiet_shows_where_the_log_is_what_is_important_and_the_end(tmp_path: Path) -> None:
    stream = io.StringIO()
    console = QuietConsole(stream)
    log = tmp_path / "rank-00000.log"
    console.keep_log(log)
    console.follow(Progress("demo", 200), lambda: None)
    console.table([("model", "3 parameters")])
    console.note("data: built")
    console.write({"step": 20, "loss": 4.5})
    console.note("NOT SAVED: no room", important=True)
    console.summary({"steps": "200", "held-out loss": "3.21"})
    assert stream.getvalue() == f"log: {log}\nNOT SAVED: no room\nsteps 200; held-out loss 3.21\n"
    assert [line.split("  ")[0] for line in log.read_text().splitlines()] == [
        "model", "data: built", "step", "NOT SAVED: no room", "steps", "held-out loss",
    ]  # fmt: skip
    assert isinstance(console_of_rank(0, quiet=True), QuietConsole)
