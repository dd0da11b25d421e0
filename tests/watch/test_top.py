"""`llmkit top`, on folders and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import threading
from pathlib import Path

import pytest

from llmkit.cli import main
from llmkit.watch import top as module
from llmkit.watch.top import TopView
from llmkit.watch.watched import WatchedRun
from tests.monitor.screen import Screen
from tests.watch.folders import add_row, make_run

STOPPED = {"event": "stop", "step": 40, "reason": "SIGTERM"}


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and time."""
    found = {str(path): path.stat() for path in folder.rglob("*")}
    return {name: (status.st_size, status.st_mtime_ns) for name, status in found.items()}


def test_once_prints_how_a_run_stands_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "demo", steps=40, end=STOPPED)
    before = tree(tmp_path)
    assert main(["top", str(folder), "--once"]) == 0
    first, *more = capsys.readouterr().out.splitlines()
    assert first.startswith("demo") and "40/100" in first and "stopped " in first and first.endswith(" ago")
    assert any(line.startswith("loss -30.0000") for line in more)
    assert any(line.startswith("stopped: SIGTERM") for line in more)
    assert not any("save in" in line for line in more)
    assert tree(tmp_path) == before


def test_a_run_that_stopped_between_two_rows_is_at_the_step_that_it_stopped_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(make_run(tmp_path / "a", steps=25, end=STOPPED))
    assert main(["top", folder, "--once"]) == 0
    assert "40/100" in capsys.readouterr().out.splitlines()[0]
    assert main(["runs", str(tmp_path)]) == 0
    assert " 40/100 " in capsys.readouterr().out


def test_programs_get_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(make_run(tmp_path / "a", steps=40, end=STOPPED)), str(make_run(tmp_path / "b", steps=3))]
    add_row(tmp_path / "b", {"step": 4, "loss": 1.0})
    assert main(["top", *folders, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["name"] == "a" and first["path"] == folders[0] and first["state"] == "stopped"
    assert first["step"] == first["newest"]["step"] == 40 and first["event"]["reason"] == "SIGTERM"
    assert second["step"] == 4 and second["max_steps"] == 100 and second["newest"]["loss"] == second["loss"]


def test_several_runs_are_below_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("a", "b", "c")
    assert main(["top", "--once", *(str(make_run(tmp_path / name, steps=3)) for name in names)]) == 0
    printed = capsys.readouterr().out
    assert [line[0] for line in printed.splitlines() if "3/100" in line] == [*names]


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err
    assert main(["top", str(tmp_path / "missing")]) == 2


@pytest.mark.parametrize(("columns", "rows"), [(120, 40), (80, 24), (40, 10), (20, 3), (1, 1)])
def test_the_view_is_never_larger_than_the_terminal(tmp_path: Path, columns: int, rows: int) -> None:
    view = TopView([WatchedRun(make_run(tmp_path / f"run-{k}", steps=20)) for k in range(5)])
    lines = view.lines((columns, rows), "utf-8")
    assert len(lines) <= max(1, rows - 1)
    assert all(line.cell_len <= max(1, columns - 1) for line in lines)


def test_a_folder_that_is_moved_away_keeps_its_figures_and_comes_back(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo", steps=40)
    view = TopView([WatchedRun(folder)])
    view.lines((80, 24), "utf-8")
    folder.rename(tmp_path / "other")
    shown = [line.plain for line in view.lines((80, 24), "utf-8")]
    assert "40/100" in shown[0] and shown[0].endswith("not there")
    (tmp_path / "other").rename(folder)
    add_row(folder, {"step": 41, "loss": 1.5})
    shown = [line.plain for line in view.lines((80, 24), "utf-8")]
    assert "41/100" in shown[0] and "not there" not in shown[0]


class Keyboard:
    """A terminal for the input of this process, into which a test types."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ours, theirs = pty.openpty()
        self.stream = os.fdopen(theirs, "r")
        monkeypatch.setattr("sys.stdin", self.stream)

    def type(self, text: bytes) -> None:
        os.write(self.ours, text)

    def close(self) -> None:
        self.stream.close()
        os.close(self.ours)


def test_it_follows_until_q_is_pressed_and_leaves_the_last_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(tmp_path / "demo", steps=40)
    drawn, keyboard = list[str](), Keyboard(monkeypatch)
    monkeypatch.setattr(module, "takes_live_view", lambda stream: True)
    monkeypatch.setattr(module, "REFRESH_SECONDS", 0.01)

    def write(text: str) -> None:
        drawn.append(text)
        if len(drawn) == 1:
            add_row(folder, {"step": 41, "loss": 1.5})
        elif "41/100" in text:
            keyboard.type(b"xq")

    monkeypatch.setattr(module, "_write", write)
    try:
        assert main(["top", str(folder)]) == 0
    finally:
        keyboard.close()
    screen = Screen().feed("".join(drawn))
    assert "41/100" in screen.lines[0] and len(screen.lines) == screen.row == 3


def test_ctrl_c_ends_it_like_q(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "demo", steps=40)
    keyboard = Keyboard(monkeypatch)
    monkeypatch.setattr(module, "takes_live_view", lambda stream: True)

    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_quits", interrupted)
    monkeypatch.setattr(module, "_write", lambda text: None)
    try:
        assert main(["top", str(folder)]) == 0
    finally:
        keyboard.close()


def test_without_a_keyboard_it_waits_and_goes_on() -> None:
    assert module._quits(None, 0.01) is False
    reader, writer = os.pipe()
    threading.Timer(0.0, os.close, [writer]).start()
    assert module._quits(reader, 60.0)  # the keyboard has gone
    os.close(reader)
